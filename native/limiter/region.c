/* The worker's two files: limits (read-only for us) and ledger (ours and our siblings'). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "limiter.h"

/* An owner that gives no sign for so long is a fault, where a heartbeat is asked for. */
#define SILENT_NS 2500000000ull
#define ORDINALS 64
#define ATTACH_ATTEMPTS 100 /* with a yield after each: the owner may be kept from running in the middle of a write */
#define RELOAD_ATTEMPTS 5
#define BAD_NS 1000000000ull
#define RELOAD_PAUSE_NS 1000000ull

struct tf_ledger *tf_ledger;
const struct tf_limits *tf_limits;

static struct tf_view views[2];
static const struct tf_view *_Atomic current;
static _Atomic uint32_t seen_sequence = 1; /* odd: nothing read yet */
static pthread_mutex_t reload_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic enum tf_mode mode;
static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;
static struct tf_process *_Atomic self;
static _Atomic int8_t rows_of_ordinals[ORDINALS]; /* row + 2; 0: not looked up, 1: none */
static _Atomic int visible_devices;
static bool closed_by_environment;

#define GATE_SHUT UINT32_MAX /* a sequence is even, or odd only while it is written */
static const _Atomic uint32_t no_worker;
const _Atomic uint32_t *_Atomic tf_gate_word = &no_worker;
_Atomic uint32_t tf_gate_value = GATE_SHUT;

/* What the checksum runs over: the head and the rows in use. */
struct content {
  uint32_t device_count, policy, heartbeat_needed, full_policy, full_wait_ms, zero;
  struct tf_device_limit rows[TF_DEVICES];
};

static uint64_t checksum(const struct content *content) {
  /* FNV-1a, 64 bit (Fowler, Noll, Vo): catches a torn or foreign write; it is no protection from an attacker. */
  uint64_t hash = 0xcbf29ce484222325ull;
  size_t length = offsetof(struct content, rows) + content->device_count * sizeof content->rows[0];
  for (size_t i = 0; i < length; i++) hash = (hash ^ ((const unsigned char *)content)[i]) * 0x100000001b3ull;
  return hash;
}

static bool read_content(struct content *content) {
  *content = (struct content){
      .device_count = tf_limits->device_count,
      .policy = tf_limits->policy,
      .heartbeat_needed = tf_limits->heartbeat_needed,
      .full_policy = tf_limits->full_policy,
      .full_wait_ms = tf_limits->full_wait_ms,
  };
  if (content->device_count > TF_DEVICES) return false;
  memcpy(content->rows, tf_limits->devices, content->device_count * sizeof content->rows[0]);
  return tf_limits->checksum == checksum(content);
}

static void fill(struct tf_view *view, const struct content *content) {
  view->device_count = content->device_count;
  view->policy = content->policy;
  view->heartbeat_needed = content->heartbeat_needed;
  view->full_policy = content->full_policy;
  view->full_wait_ms = content->full_wait_ms;
  for (uint32_t i = 0; i < content->device_count; i++) {
    const struct tf_device_limit *from = &content->rows[i];
    struct tf_row *to = &view->rows[i];
    if (strncmp(to->uuid, from->uuid, sizeof to->uuid - 1) != 0) memcpy(to->uuid, from->uuid, sizeof to->uuid - 1);
    to->vram_bytes = from->vram_bytes;
    to->context_bytes = from->context_bytes;
    to->spill_bytes = from->spill_bytes;
    to->compute_ppm = from->compute_ppm;
    to->contended = from->contended;
    to->measured_busy_ns = from->measured_busy_ns;
    to->measured_at_ns = from->measured_at_ns;
  }
}

/* One consistent copy of the limits, or false. */
static bool copy_limits(struct tf_view *view, uint32_t *sequence, int attempts) {
  struct content content;
  for (int wrong = 0; attempts && wrong < 3; attempts--) {
    *sequence = atomic_load(&tf_limits->sequence);
    bool sound = read_content(&content);
    atomic_thread_fence(memory_order_acquire);
    bool still = !(*sequence & 1) && *sequence == atomic_load(&tf_limits->sequence);
    if (still && sound) {
      fill(view, &content);
      return true;
    }
    wrong += still; /* nobody writes, so it will not get better */
    sched_yield();
  }
  return false;
}

/* Opens the gate for launches until the limits change, if these hold none of them back. */
static void set_gate(const struct tf_view *view, uint32_t sequence) {
  /* Under the open policy a silent owner would change nothing for launches that are not limited anyway. */
  bool open = !view->heartbeat_needed || view->policy != TF_POLICY_CLOSED;
  for (uint32_t i = 0; i < view->device_count; i++)
    if (view->rows[i].compute_ppm && view->rows[i].compute_ppm < TF_WHOLE_DEVICE_PPM) open = false;
  atomic_store(&tf_gate_value, open ? sequence : GATE_SHUT);
}

/* Once per second that they stay so: an owner may be kept from running in the middle of a write. */
static void note_bad_limits(uint64_t now, bool bad) {
  static uint64_t since;
  if (!bad) since = 0;
  else if (!since) since = now;
  else if (now - since >= BAD_NS) {
    since = now;
    atomic_fetch_add(&tf_ledger->bad_limits, 1);
  }
}

static void reload(void) {
  static uint64_t again_at;
  if (pthread_mutex_trylock(&reload_lock)) return; /* somebody is at it; the old limits hold for a moment longer */
  struct tf_view *next = atomic_load(&current) == &views[0] ? &views[1] : &views[0];
  uint32_t sequence;
  uint64_t now = tf_now();
  if (now < again_at) {
    /* Of an owner that died while it wrote there is nothing to be had: not every call shall find that out. */
  } else if (copy_limits(next, &sequence, RELOAD_ATTEMPTS)) {
    atomic_store(&current, next);
    atomic_store(&seen_sequence, sequence);
    tf_rescale(next);
    set_gate(next, sequence);
    note_bad_limits(now, false);
  } else {
    again_at = now + RELOAD_PAUSE_NS;
    note_bad_limits(now, true);
  }
  pthread_mutex_unlock(&reload_lock);
}

const struct tf_view *tf_view(void) {
  if (atomic_load_explicit(&mode, memory_order_acquire) != TF_ATTACHED && tf_attach() != TF_ATTACHED) return NULL;
  if (!LIKELY(atomic_load_explicit(&tf_limits->sequence, memory_order_acquire) ==
              atomic_load_explicit(&seen_sequence, memory_order_relaxed)))
    reload();
  return atomic_load_explicit(&current, memory_order_acquire);
}

/* NULL, and why. */
static void *map_file(const char *folder, const char *name, size_t bytes, bool writable, const char **problem) {
  static __thread char text[128];
  char path[4096];
  struct stat status;
  *problem = "path is too long";
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return NULL;
  int file = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
  void *memory = MAP_FAILED;
  *problem = "file is shorter than its layout";
  bool whole = file >= 0 && !fstat(file, &status) && (uint64_t)status.st_size >= bytes;
  /* A hole that a full file system cannot fill would end the program at the first touch (mmap(2), SIGBUS). */
  if (whole && writable && fallocate(file, 0, 0, (off_t)bytes) && errno != EOPNOTSUPP) *problem = NULL;
  else if (whole) {
    memory = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file, 0);
    *problem = NULL;
  }
  if (file < 0 || (!*problem && memory == MAP_FAILED)) *problem = strerror_r(errno, text, sizeof text);
  if (file >= 0) close(file);
  return memory == MAP_FAILED ? NULL : memory;
}

static const char *other_layout(const struct tf_limits *limits, const struct tf_ledger *ledger) {
  if (limits->magic != TF_LIMITS_MAGIC) return "limits: not a limits file";
  if (ledger->magic != TF_LEDGER_MAGIC) return "ledger: not a ledger file";
  if (limits->version != TF_LAYOUT_VERSION || ledger->version != TF_LAYOUT_VERSION)
    return "the layout has another version";
  if (limits->layout_hash != TF_LAYOUT_HASH || ledger->layout_hash != TF_LAYOUT_HASH)
    return "the layout was built from another declaration";
  return NULL;
}

static const char *open_region(const char *folder) {
  const char *problem;
  uint32_t sequence = 0;
  void *limits = map_file(folder, "limits", sizeof(struct tf_limits), false, &problem);
  void *ledger = limits ? map_file(folder, "ledger", sizeof(struct tf_ledger), true, &problem) : NULL;
  if (ledger) problem = other_layout(limits, ledger);
  if (ledger && !problem) problem = tf_ledger_problem(ledger);
  tf_limits = limits;
  if (ledger && !problem && !copy_limits(&views[0], &sequence, ATTACH_ATTEMPTS))
    problem = "limits: checksum does not match";
  if (problem || !ledger) {
    tf_limits = NULL;
    if (limits) munmap(limits, sizeof(struct tf_limits));
    if (ledger) munmap(ledger, sizeof(struct tf_ledger));
    return problem ? problem : "file cannot be mapped";
  }
  tf_ledger = ledger;
  atomic_store(&current, &views[0]);
  atomic_store(&seen_sequence, sequence);
  return NULL;
}

static void leave(void) {
  struct tf_process *slot = atomic_load(&self);
  if (!slot || atomic_load(&slot->pid) != (uint32_t)getpid()) return;
  tf_ledger_lock();
  tf_sharing_leave((uint32_t)(slot - tf_ledger->processes));
  memset(slot->devices, 0, sizeof slot->devices);
  atomic_store(&slot->pid, 0);
  tf_sum_again(tf_ledger);
  tf_ledger_unlock();
  atomic_store(&self, NULL);
}

static struct tf_process *claim(struct tf_ledger *ledger) {
  if (!ledger) return NULL;
  uint32_t pid = (uint32_t)getpid();
  uint64_t start = tf_start_ticks(pid), space = tf_pid_namespace();
  struct tf_process *chosen = NULL;
  for (int attempt = 0; attempt < 2 && !chosen; attempt++) {
    if (attempt) tf_recover_dead();
    tf_ledger_lock();
    bool ours = false;
    for (uint32_t i = 0; i < TF_PROCESSES; i++) {
      struct tf_process *slot = &ledger->processes[i];
      uint32_t holder = atomic_load(&slot->pid);
      /* Our own from before an exec: what it held went with the old program. */
      ours = holder == pid && slot->pid_namespace == space;
      if (ours) chosen = slot;
      if (ours) break;
      if (!holder && !chosen) chosen = slot;
    }
    if (chosen) {
      if (ours) tf_sharing_leave((uint32_t)(chosen - ledger->processes));
      memset(chosen->devices, 0, sizeof chosen->devices);
      chosen->start_ticks = start;
      chosen->pid_namespace = space;
      atomic_store(&chosen->pid, pid);
      if (ours) tf_sum_again(tf_ledger);
    }
    tf_ledger_unlock();
  }
  return chosen;
}

struct tf_process *tf_self(void) { return atomic_load_explicit(&self, memory_order_acquire); }

static void in_child(void) {
  tf_region_after_fork();
  tf_memory_after_fork();
  tf_sharing_after_fork();
  tf_pools_after_fork();
  tf_graphs_after_fork();
  tf_cost_after_fork();
  tf_sampler_after_fork();
}

void tf_region_after_fork(void) {
  /* The parent's slot stays the parent's. The child attaches anew when it calls us. */
  atomic_store(&self, NULL);
  atomic_store(&tf_gate_value, GATE_SHUT);
  if (atomic_load(&mode) == TF_ATTACHED) atomic_store(&mode, TF_UNKNOWN);
  pthread_mutex_init(&attach_lock, NULL);
  pthread_mutex_init(&reload_lock, NULL);
}

static enum tf_mode attach(void) {
  const char *folder = getenv("TENSORFUSION_WORKER_DIR");
  const char *policy = getenv("TENSORFUSION_FAULT_POLICY");
  static bool registered;
  closed_by_environment = policy && !strcmp(policy, "closed");
  if (!folder || !*folder) {
    atomic_store(&tf_gate_value, 0);
    return TF_OFF;
  }
  const char *problem = tf_ledger && tf_limits ? NULL : open_region(folder);
  if (!problem) {
    atomic_store(&self, claim(tf_ledger));
    if (!tf_self()) problem = "no free process slot";
  }
  if (problem) {
    tf_attest(closed_by_environment ? "refused" : "open", problem);
    fprintf(stderr, "tensorfusion limiter: %s: %s; %s\n", folder, problem,
            closed_by_environment ? "the GPU is refused" : "limits are not enforced");
    return TF_BROKEN;
  }
  if (!registered) {
    registered = true;
    atexit(leave);
    pthread_atfork(NULL, NULL, in_child);
  }
  tf_rescale(atomic_load(&current));
  atomic_store(&tf_gate_word, &tf_limits->sequence);
  set_gate(atomic_load(&current), atomic_load(&seen_sequence));
  tf_attest("enforced", "");
  return TF_ATTACHED;
}

enum tf_mode tf_attach(void) {
  enum tf_mode known = atomic_load_explicit(&mode, memory_order_acquire);
  if (LIKELY(known != TF_UNKNOWN)) return known;
  pthread_mutex_lock(&attach_lock);
  known = atomic_load(&mode);
  if (known == TF_UNKNOWN) {
    known = attach();
    atomic_store_explicit(&mode, known, memory_order_release);
  }
  pthread_mutex_unlock(&attach_lock);
  return known;
}

bool tf_owner_is_silent(const struct tf_view *view) {
  if (!view->heartbeat_needed) return false;
  struct timespec moment;
  /* As old as the kernel's last tick, at most 10 ms, and cheaper to read. */
  clock_gettime(CLOCK_MONOTONIC_COARSE, &moment);
  uint64_t now = (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
  uint64_t beat = atomic_load(&tf_limits->heartbeat_ns);
  return now > beat && now - beat > SILENT_NS;
}

bool tf_refused(void) {
  enum tf_mode now = tf_attach();
  if (now == TF_OFF) return false;
  if (now == TF_BROKEN) return closed_by_environment;
  const struct tf_view *view = tf_view();
  if (!tf_owner_is_silent(view)) return false;
  bool closed = view->policy == TF_POLICY_CLOSED;
  atomic_fetch_add(closed ? &tf_ledger->fail_closed : &tf_ledger->fail_open, 1);
  return closed;
}

int tf_row_of_uuid(const char *uuid) {
  const struct tf_view *view = tf_view();
  for (uint32_t i = 0; view && i < view->device_count; i++)
    if (!strcmp(view->rows[i].uuid, uuid)) return (int)i;
  return TF_NO_ROW;
}

static int look_up(CUdevice device) {
  CUuuid id;
  call_cuDeviceGetUuid *get = HAS(cuDeviceGetUuid_v2) ? REAL(cuDeviceGetUuid_v2) : REAL(cuDeviceGetUuid);
  if (get(&id, device)) return -2;
  char text[48] = "GPU-";
  for (int i = 0, at = 4; i < 16; i++) {
    at += snprintf(text + at, sizeof text - (size_t)at, "%02x", (unsigned char)id.bytes[i]);
    if (i == 3 || i == 5 || i == 7 || i == 9) text[at++] = '-';
  }
  return tf_row_of_uuid(text);
}

int tf_row_of_device(CUdevice device) {
  if (!tf_view()) return TF_NO_ROW;
  bool cached = device >= 0 && device < ORDINALS;
  int known = cached ? atomic_load_explicit(&rows_of_ordinals[device], memory_order_relaxed) : 0;
  if (known) return known - 2;
  int row = look_up(device);
  if (row == -2) return TF_NO_ROW;
  if (cached) atomic_store(&rows_of_ordinals[device], (int8_t)(row + 2));
  return row;
}

int tf_current_row(void) {
  int count = atomic_load_explicit(&visible_devices, memory_order_relaxed);
  if (LIKELY(count == 1)) return tf_row_of_device(0);
  if (!count && !REAL(cuDeviceGetCount)(&count)) atomic_store(&visible_devices, count);
  CUdevice device;
  return !REAL(cuCtxGetDevice)(&device) ? tf_row_of_device(device) : TF_NO_ROW;
}
