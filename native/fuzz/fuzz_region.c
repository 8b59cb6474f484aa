/* fuzz-region: gives the limiter a worker's files with arbitrary bytes in them, and uses what it made of them.
 *
 *   fuzz-region folder=DIR driver=LIBRARY [seconds=10] [seed=1] [runs=0 (no bound)] [verbose=0]
 *
 * A run is a function of seed and number alone: `seed=S first=N runs=1` repeats it. It takes a sound worker, changes a
 * few bytes, fields or lengths, repairs the checksum half of the time so that hostile values get past it, attaches, uses
 * the ledger, changes the files once more under the attached process, and checks:
 *   - whatever is attached names at most TF_DEVICES devices, and their names end;
 *   - limits that do not add up leave the last good ones in force;
 *   - no grant exceeds the cap.
 * Crashes, reads out of bounds and undefined behaviour are the sanitizers' part, hangs are the alarm's.
 *
 * The words of the ledger's two mutexes stay: whoever can write there can stop its own processes as it likes. Only their
 * kind, which is checked at the attach, is changed. */
#include "../limiter/region.c"

#include <inttypes.h>
#include <signal.h>

#define STUCK_S 60
#define HEAD (offsetof(struct tf_ledger, processes) + 8 * sizeof(struct tf_process)) /* what is changed of the ledger */
#define CAP (1ull << 30)
#define SHARED 8 /* and so many rows of shared memory */

static uint64_t state, seconds = 10, seed = 1, first, most, verbose, run;
static char folder[4000], driver[4000];
static struct tf_limits sound_limits, *file_limits;
static struct tf_ledger *file_ledger;
static unsigned char sound_head[HEAD];
static int limits_file, ledger_file;
static FILE *told;

/* splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). */
static uint64_t any(void) {
  uint64_t word = state += 0x9E3779B97F4A7C15ull;
  word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9ull;
  word = (word ^ word >> 27) * 0x94D049BB133111EBull;
  return word ^ word >> 31;
}
static uint64_t below(uint64_t bound) { return any() % bound; }

static void fail(const char *what) {
  fprintf(told, "fuzz-region: seed=%" PRIu64 " first=%" PRIu64 ": %s\n", seed, run, what);
  fflush(told);
  abort();
}

static void stuck(int signal) {
  (void)signal;
  fail("stuck");
}

/* A value at which arithmetic goes wrong, if it does. */
static uint64_t edge(void) {
  static const uint64_t edges[] = {0,
                                   1,
                                   15,
                                   16,
                                   17,
                                   64,
                                   255,
                                   511,
                                   512,
                                   INT32_MAX,
                                   0x80000000u,
                                   UINT32_MAX,
                                   INT64_MAX,
                                   1ull << 63,
                                   UINT64_MAX - 1,
                                   UINT64_MAX,
                                   TF_WHOLE_DEVICE_PPM};
  return below(4) ? edges[below(sizeof edges / sizeof *edges)] : any();
}

static void change(unsigned char *bytes, size_t count) {
  uint64_t value = edge();
  switch (below(5)) {
    case 0: bytes[below(count)] ^= (unsigned char)(1u << below(8)); break;
    case 1: bytes[below(count)] = (unsigned char)any(); break;
    case 2: memcpy(bytes + below(count / 4) * 4, &value, 4); break;
    case 3: memcpy(bytes + below(count / 8) * 8, &value, 8); break;
    default: {
      size_t from = below(count), length = below(count - from < 200 ? count - from : 200);
      memset(bytes + from, (int)value, length);
    }
  }
}

static void change_limits(void) {
  for (uint64_t i = below(6); i; i--) change((unsigned char *)file_limits, sizeof *file_limits);
  /* The head has the fields that decide most, and is a small part of the bytes. */
  if (!below(3)) change((unsigned char *)file_limits, offsetof(struct tf_limits, devices));
  if (!below(2)) return;
  file_limits->magic = TF_LIMITS_MAGIC;
  file_limits->version = TF_LAYOUT_VERSION;
  file_limits->layout_hash = TF_LAYOUT_HASH;
  if (below(8)) atomic_fetch_and(&file_limits->sequence, ~1u);
  const struct tf_limits *given = tf_limits;
  struct content content;
  tf_limits = file_limits;
  if (!read_content(&content) && content.device_count <= TF_DEVICES) file_limits->checksum = checksum(&content);
  tf_limits = given;
}

static void change_ledger(bool attached) {
  unsigned char kept[2 * sizeof(pthread_mutex_t)], *bytes = (unsigned char *)file_ledger;
  size_t at = offsetof(struct tf_ledger, lock);
  memcpy(kept, bytes + at, sizeof kept);
  for (uint64_t i = below(6); i; i--) change(bytes, HEAD);
  for (uint64_t i = below(4); i; i--) {
    struct tf_shared *row = &file_ledger->shared[below(SHARED)];
    row->key = row->holders[0] = 1; /* slot 0 is ours, as a rule */
    if (below(2)) change((unsigned char *)row, sizeof *row);
  }
  if (below(2)) memcpy(bytes, sound_head, at);
  memcpy(bytes + at, kept, sizeof kept);
  if (!attached && !below(16)) (below(2) ? &file_ledger->lock : &file_ledger->sampler)->__data.__kind = (int)edge();
}

static void restore(void) {
  *file_limits = sound_limits;
  memcpy(file_ledger, sound_head, HEAD);
  memset(file_ledger->shared, 0, SHARED * sizeof *file_ledger->shared);
}

static void detach(void) {
  /* atexit's part, without its end. */
  if (atomic_load(&self)) leave();
  if (tf_limits) munmap((void *)tf_limits, sizeof *tf_limits);
  if (tf_ledger) munmap(tf_ledger, sizeof *tf_ledger);
  tf_limits = NULL;
  tf_ledger = NULL;
  atomic_store(&current, NULL);
  atomic_store(&seen_sequence, 1);
  atomic_store(&self, NULL);
  atomic_store(&mode, TF_UNKNOWN);
  atomic_store(&tf_gate_word, &no_worker);
  for (int i = 0; i < ORDINALS; i++) atomic_store(&rows_of_ordinals[i], 0);
}

static void check_view(const struct tf_view *view) {
  if (!view) return;
  if (view->device_count > TF_DEVICES) fail("more devices than rows");
  for (uint32_t i = 0; i < view->device_count; i++)
    if (!memchr(view->rows[i].uuid, 0, sizeof view->rows[i].uuid)) fail("a name without an end");
}

static void use_row(int row) {
  struct tf_device_state *device = &tf_ledger->states[row];
  enum tf_class class = (enum tf_class)below(TF_CLASSES);
  uint64_t bytes = edge(), before = tf_used(row), cap = tf_view()->rows[row].vram_bytes;
  tf_owner_is_silent(tf_view());
  if (!tf_reserve(row, class, bytes) && bytes && cap) {
    uint64_t after = tf_used(row);
    if (after > cap || after < bytes) fail("a grant beyond the cap");
  }
  tf_release(row, class, edge());
  if (tf_spill_reserve(row, class, bytes)) tf_spill_undo(row, class, bytes);
  tf_want(row, (int64_t)edge());
  tf_correct(row, (int64_t)edge(), edge());
  tf_note_length(device, edge());
  tf_others_run(row);
  if (before > tf_used(row)) tf_recover_dead();
}

static void use(void) {
  const struct tf_view *view = tf_view();
  check_view(view);
  if (!view) return;
  tf_row_of_uuid(sound_limits.devices[0].uuid);
  tf_refused();
  if (view->device_count) use_row((int)below(view->device_count));
}

static void change_attached(void) {
  const struct tf_view *before = tf_view();
  struct content content;
  change_limits();
  change_ledger(true);
  bool good = read_content(&content);
  check_view(tf_view());
  if (!good && tf_view() != before) fail("limits that do not add up are in force");
  use();
}

static void one_run(void) {
  state = seed ^ run * 0xD1342543DE82EF95ull;
  restore();
  bool shorter = !below(16);
  change_limits();
  change_ledger(false);
  if (shorter && ftruncate(limits_file, (off_t)below(sizeof *file_limits))) fail("ftruncate");
  enum tf_mode found = tf_attach();
  if (shorter && ftruncate(limits_file, sizeof *file_limits)) fail("ftruncate");
  if (shorter && found == TF_ATTACHED) fail("a file that is too short was taken");
  if (found == TF_ATTACHED) {
    use();
    change_attached();
  }
  detach();
}

static void *map_new(const char *name, size_t bytes, int *file) {
  char path[4200];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  *file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  void *memory = *file < 0 || ftruncate(*file, (off_t)bytes)
                     ? MAP_FAILED
                     : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *file, 0);
  if (memory == MAP_FAILED) {
    fprintf(told, "fuzz-region: %s: %s\n", path, strerror(errno));
    exit(64);
  }
  return memory;
}

static void make_sound(void) {
  pthread_mutexattr_t robust;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  file_ledger = map_new("ledger", sizeof *file_ledger, &ledger_file);
  file_limits = map_new("limits", sizeof *file_limits, &limits_file);
  pthread_mutex_init(&file_ledger->lock, &robust);
  pthread_mutex_init(&file_ledger->sampler, &robust);
  file_ledger->magic = TF_LEDGER_MAGIC;
  file_ledger->version = TF_LAYOUT_VERSION;
  file_ledger->layout_hash = TF_LAYOUT_HASH;
  memcpy(sound_head, file_ledger, sizeof sound_head);
  struct content content = {.device_count = 2};
  for (uint32_t i = 0; i < content.device_count; i++) {
    struct tf_device_limit *row = &content.rows[i];
    snprintf(row->uuid, sizeof row->uuid, "GPU-00000000-0000-0000-0000-%012u", i);
    row->vram_bytes = CAP;
    row->compute_ppm = TF_WHOLE_DEVICE_PPM / 2;
  }
  sound_limits.magic = TF_LIMITS_MAGIC;
  sound_limits.version = TF_LAYOUT_VERSION;
  sound_limits.layout_hash = TF_LAYOUT_HASH;
  sound_limits.device_count = content.device_count;
  memcpy(sound_limits.devices, content.rows, sizeof content.rows);
  sound_limits.checksum = checksum(&content);
}

static void read_argument(const char *argument) {
  const struct {
    const char *name;
    uint64_t *value;
  } numbers[] = {
      {"seconds=", &seconds}, {"seed=", &seed}, {"first=", &first}, {"runs=", &most}, {"verbose=", &verbose}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!strncmp(argument, numbers[i].name, strlen(numbers[i].name)))
      *numbers[i].value = strtoull(argument + strlen(numbers[i].name), NULL, 10);
  if (!strncmp(argument, "folder=", 7)) snprintf(folder, sizeof folder, "%s", argument + 7);
  if (!strncmp(argument, "driver=", 7)) snprintf(driver, sizeof driver, "%s", argument + 7);
}

int main(int count, char **arguments) {
  told = stderr;
  for (int i = 1; i < count; i++) read_argument(arguments[i]);
  if (!*folder || !*driver) {
    fprintf(stderr, "fuzz-region: folder= and driver= must be given\n");
    return 64;
  }
  setenv("TENSORFUSION_WORKER_DIR", folder, 1);
  setenv("TENSORFUSION_CUDA_LIBRARY", driver, 1);
  tf_load_driver();
  make_sound();
  /* The limiter says on stderr why it did not attach. */
  if (!verbose) stderr = fopen("/dev/null", "we");
  signal(SIGALRM, stuck);
  uint64_t begun = tf_now(), now = begun;
  for (run = first; (!most || run < first + most) && now < begun + seconds * 1000000000ull; run++) {
    if (!(run % 64)) alarm(STUCK_S);
    one_run();
    now = tf_now();
  }
  alarm(0);
  double took = (double)(now - begun) / 1e9;
  printf("{\"target\": \"region\", \"runs\": %" PRIu64 ", \"seconds\": %.1f, \"runs_per_s\": %.0f}\n", run - first,
         took, (double)(run - first) / took);
  return 0;
}
