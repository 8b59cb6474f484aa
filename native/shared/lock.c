#define _GNU_SOURCE
#include "tf_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS 20000000l
#define PATIENCE 50u /* looks */

/* The holder's thread: the C library keeps it in the futex word, for the kernel's sake (robust_list(7)). */
static uint32_t holder(const struct tf_lock *lock) {
  return (uint32_t)__atomic_load_n(&lock->mutex->__data.__lock, __ATOMIC_RELAXED) & FUTEX_TID_MASK;
}

/* The process of a thread that is stopped by a signal; 0: it runs, is gone, or a debugger has it. */
static uint32_t stopped(uint32_t thread) {
  char path[48], text[512];
  snprintf(path, sizeof path, "/proc/%u/status", thread);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  text[length > 0 ? length : 0] = 0;
  const char *state = strstr(text, "\nState:\tT"), *process = strstr(text, "\nTgid:\t");
  return state && process ? (uint32_t)strtoul(process + 7, NULL, 10) : 0;
}

/* One of those who wait does it, or the others after a while, should that one have died over it. */
static void let_go_on(const struct tf_lock *lock, uint32_t looks) {
  uint64_t none = 0, thread = holder(lock);
  uint32_t process = thread ? stopped((uint32_t)thread) : 0;
  if (!process || (lock->may_go_on && !lock->may_go_on(lock->owner, process))) return;
  if (!atomic_compare_exchange_strong(lock->stops_again, &none, thread)) {
    if (looks < PATIENCE) return;
    atomic_store(lock->stops_again, thread);
  }
  if (holder(lock) == thread) kill((pid_t)process, SIGCONT);
  else atomic_compare_exchange_strong(lock->stops_again, &thread, 0);
}

static bool asked_to_stop(const struct tf_lock *lock) {
  uint64_t thread = atomic_load_explicit(lock->stops_again, memory_order_relaxed);
  return thread && thread == (uint64_t)syscall(SYS_gettid);
}

int tf_lock_take(const struct tf_lock *lock, uint32_t most_looks) {
  /* Asked when it had just unlocked. Later it would be what is asked of it now, wherever it is stopped from here on. */
  if (asked_to_stop(lock)) atomic_store(lock->stops_again, 0);
  int result = pthread_mutex_trylock(lock->mutex);
  for (uint32_t looks = 0; (result == EBUSY || result == ETIMEDOUT) && looks < most_looks; looks++) {
    if (looks) let_go_on(lock, looks);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOOK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    result = pthread_mutex_timedlock(lock->mutex, &until);
  }
  return result;
}

void tf_lock_mended(const struct tf_lock *lock) {
  pthread_mutex_consistent(lock->mutex);
  atomic_store(lock->stops_again, 0); /* what was asked of the dead */
}

void tf_lock_give(const struct tf_lock *lock) {
  pthread_mutex_unlock(lock->mutex);
  if (__builtin_expect(!asked_to_stop(lock), 1)) return;
  atomic_store(lock->stops_again, 0);
  kill(getpid(), SIGSTOP);
}
