#define _GNU_SOURCE
#include "owner.h"

#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tf_process.h"

#define STATE_WORDS (sizeof(struct tf_device_state) / sizeof(uint64_t))
#define PROCESS_WORDS (sizeof(struct tf_process) / sizeof(uint64_t))
_Static_assert(sizeof(struct tf_device_state) % sizeof(uint64_t) == 0, "copied by words");
_Static_assert(sizeof(struct tf_process) % sizeof(uint64_t) == 0, "copied by words");

/* Every field lies in one aligned word, so none is torn; two of 32 bit share one. */
static void copy_words(void *to, const void *from, size_t count) {
  uint64_t *out = to;
  const uint64_t *in = from;
  for (size_t i = 0; i < count; i++) out[i] = __atomic_load_n(&in[i], __ATOMIC_RELAXED);
  atomic_thread_fence(memory_order_acquire);
}

static void make_mutex(pthread_mutex_t *mutex) {
  pthread_mutexattr_t shape;
  pthread_mutexattr_init(&shape);
  pthread_mutexattr_setpshared(&shape, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&shape, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(mutex, &shape);
  pthread_mutexattr_destroy(&shape);
}

void tf_owner_create(struct tf_limits *limits, struct tf_ledger *ledger) {
  make_mutex(&ledger->lock);
  make_mutex(&ledger->sampler);
  ledger->version = limits->version = TF_LAYOUT_VERSION;
  ledger->layout_hash = limits->layout_hash = TF_LAYOUT_HASH;
  __atomic_store_n(&ledger->magic, TF_LEDGER_MAGIC, __ATOMIC_RELEASE);
  __atomic_store_n(&limits->magic, TF_LIMITS_MAGIC, __ATOMIC_RELEASE);
}

int tf_owner_check(const struct tf_limits *limits, const struct tf_ledger *ledger) {
  if (limits->magic != TF_LIMITS_MAGIC || limits->version != TF_LAYOUT_VERSION || limits->layout_hash != TF_LAYOUT_HASH)
    return 1;
  if (ledger->magic != TF_LEDGER_MAGIC || ledger->version != TF_LAYOUT_VERSION || ledger->layout_hash != TF_LAYOUT_HASH)
    return 2;
  return 0;
}

#define FNV_START 0xcbf29ce484222325ull
#define FNV_PRIME 0x100000001b3ull

/* FNV-1a of 64 bit (Fowler, Noll, Vo) over what region.toml says; the layout is little-endian. */
static uint64_t checksum(const struct tf_limits *limits) {
  const uint32_t head[] = {limits->device_count, limits->policy,       limits->heartbeat_needed,
                           limits->full_policy,  limits->full_wait_ms, 0};
  const unsigned char *rows = (const unsigned char *)limits->devices;
  size_t length = limits->device_count * sizeof limits->devices[0];
  uint64_t hash = FNV_START;
  for (size_t i = 0; i < sizeof head / sizeof *head; i++)
    for (int bit = 0; bit < 32; bit += 8) hash = (hash ^ (head[i] >> bit & 0xff)) * FNV_PRIME;
  for (size_t i = 0; i < length; i++) hash = (hash ^ rows[i]) * FNV_PRIME;
  return hash;
}

void tf_owner_write(struct tf_limits *limits, const struct tf_limits *wanted) {
  /* Odd already where an owner died while it wrote. */
  uint32_t writing = atomic_load(&limits->sequence) | 1;
  atomic_store(&limits->sequence, writing);
  /* What follows must not be seen before the odd number. */
  atomic_thread_fence(memory_order_seq_cst);
  limits->device_count = wanted->device_count;
  limits->policy = wanted->policy;
  limits->heartbeat_needed = wanted->heartbeat_needed;
  limits->full_policy = wanted->full_policy;
  limits->full_wait_ms = wanted->full_wait_ms;
  memcpy(limits->devices, wanted->devices, wanted->device_count * sizeof wanted->devices[0]);
  limits->checksum = checksum(wanted);
  atomic_store(&limits->sequence, writing + 1);
  syscall(SYS_futex, &limits->sequence, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void tf_owner_beat(struct tf_limits *limits, uint64_t now_ns) {
  atomic_store_explicit(&limits->heartbeat_ns, now_ns, memory_order_release);
}

size_t tf_owner_copy(struct tf_device_state **states, size_t count, struct tf_device_state *copies, uint32_t *changed) {
  size_t found = 0;
  uint64_t now[STATE_WORDS];
  for (size_t i = 0; i < count; i++) {
    if (!states[i]) continue;
    uint64_t *before = (uint64_t *)&copies[i];
    copy_words(now, states[i], STATE_WORDS);
    if (memcmp(now, before, sizeof now) == 0) continue;
    memcpy(before, now, sizeof now);
    changed[found++] = (uint32_t)i;
  }
  return found;
}

int tf_owner_wants(struct tf_device_state **states, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (states[i] && atomic_load_explicit(&states[i]->wanted_bytes, memory_order_relaxed)) return 1;
  return 0;
}

static int lives(const struct tf_process *process, uint64_t pid_namespace) {
  if (process->pid_namespace != pid_namespace) return 1;
  uint64_t ticks = tf_start_ticks(process->pid);
  return ticks && ticks == process->start_ticks;
}

uint64_t tf_owner_wanted(const struct tf_ledger *ledger, uint32_t row, uint64_t pid_namespace) {
  uint64_t sum = 0;
  for (size_t i = 0; row < TF_DEVICES && i < TF_PROCESSES; i++) {
    struct tf_process process;
    uint64_t wanted = __atomic_load_n(&ledger->processes[i].devices[row].wanted_bytes, __ATOMIC_RELAXED);
    if (!wanted) continue;
    copy_words(&process, &ledger->processes[i], PROCESS_WORDS);
    if (lives(&process, pid_namespace)) sum += wanted;
  }
  return sum;
}

size_t tf_owner_pids(const struct tf_ledger *ledger, uint32_t *found) {
  size_t count = 0;
  for (size_t i = 0; i < TF_PROCESSES; i++) {
    uint32_t pid = atomic_load_explicit(&ledger->processes[i].pid, memory_order_acquire);
    if (pid) found[count++] = pid;
  }
  return count;
}
