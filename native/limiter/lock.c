/* The lock of the ledger, never held over a call into the driver. */
#include <errno.h>

#include "limiter.h"
#include "tf_lock.h"

#define ATTACH_LOOKS 100u /* two seconds */

/* Whether it is a process of this worker. The holder's number means the same here only if nobody is of another
 * namespace. */
static bool is_ours(const void *owner, uint32_t process) {
  const struct tf_ledger *ledger = owner;
  uint64_t space = tf_pid_namespace();
  bool found = false;
  for (uint32_t i = 0; i < TF_PROCESSES; i++) {
    const struct tf_process *slot = &ledger->processes[i];
    uint32_t pid = atomic_load(&slot->pid);
    if (pid && slot->pid_namespace != space) return false;
    found |= pid == process && slot->start_ticks == tf_start_ticks(pid);
  }
  return found;
}

static struct tf_lock lock_of(struct tf_ledger *ledger) {
  return (struct tf_lock){&ledger->lock, &ledger->stops_again, is_ours, ledger};
}

static int take(struct tf_ledger *ledger, uint32_t most_looks) {
  struct tf_lock lock = lock_of(ledger);
  int result = tf_lock_take(&lock, most_looks);
  if (result != EOWNERDEAD) return result;
  tf_sum_again(ledger);
  tf_lock_mended(&lock);
  return 0;
}

static void give(struct tf_ledger *ledger) {
  struct tf_lock lock = lock_of(ledger);
  tf_lock_give(&lock);
}

void tf_ledger_lock(void) { take(tf_ledger, UINT32_MAX); }

void tf_ledger_unlock(void) { give(tf_ledger); }

/* The C library aborts over a mutex of no kind that it knows, and one whose holder went with the machine that it ran on
 * is never given up: nobody was left to note that. */
const char *tf_ledger_problem(struct tf_ledger *ledger) {
  pthread_mutexattr_t robust;
  pthread_mutex_t model;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&model, &robust);
  if (ledger->lock.__data.__kind != model.__data.__kind || ledger->sampler.__data.__kind != model.__data.__kind)
    return "ledger: its locks are none";
  int result = take(ledger, ATTACH_LOOKS);
  if (result == ETIMEDOUT || result == ENOTRECOVERABLE) return "ledger: its lock is held by nobody";
  if (!result) give(ledger);
  return NULL;
}
