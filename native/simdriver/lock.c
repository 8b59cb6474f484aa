/* The lock of the machine's state.
 *
 * A real driver works in the kernel, where a stop signal waits until the call returns. Here a process may be stopped
 * while it holds the lock, and nobody may take it away: the holder would go on writing one day. So whoever waits for
 * a stopped holder lets it continue, and it stops again by itself as soon as it has unlocked. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

#define LOOK_NS 20000000l
#define PATIENCE 50u /* looks */

/* The holder's thread: the C library keeps it in the futex word, for the kernel's sake (robust_list(7)). */
static uint32_t holder(void) {
  return (uint32_t)__atomic_load_n(&sim->lock.__data.__lock, __ATOMIC_RELAXED) & FUTEX_TID_MASK;
}

/* The process of a thread that is stopped by a signal; 0: it runs, is gone, or a debugger has it. */
static pid_t stopped(uint32_t thread) {
  char path[48], text[512];
  snprintf(path, sizeof path, "/proc/%u/status", thread);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  text[length > 0 ? length : 0] = 0;
  const char *state = strstr(text, "\nState:\tT"), *process = strstr(text, "\nTgid:\t");
  return state && process ? (pid_t)strtol(process + 7, NULL, 10) : 0;
}

/* One of those who wait does it, or the others after a while, should that one have died over it. */
static void let_go_on(uint32_t looks) {
  uint32_t thread = holder(), none = 0;
  pid_t process = thread ? stopped(thread) : 0;
  if (!process) return;
  if (!atomic_compare_exchange_strong(&sim->stops_again, &none, thread)) {
    if (looks < PATIENCE) return;
    atomic_store(&sim->stops_again, thread);
  }
  if (holder() == thread) kill(process, SIGCONT);
  else atomic_compare_exchange_strong(&sim->stops_again, &thread, 0);
}

static bool asked_to_stop(void) {
  uint32_t thread = atomic_load_explicit(&sim->stops_again, memory_order_relaxed);
  return thread && thread == (uint32_t)syscall(SYS_gettid);
}

void sim_lock(void) {
  /* What was asked of this one when it had just unlocked. Not later: it may be stopped as soon as it has the lock. */
  if (asked_to_stop()) atomic_store(&sim->stops_again, 0);
  int result = pthread_mutex_trylock(&sim->lock);
  for (uint32_t looks = 0; result == EBUSY || result == ETIMEDOUT; looks++) {
    if (looks) let_go_on(looks);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOOK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    result = pthread_mutex_timedlock(&sim->lock, &until);
  }
  /* A process killed inside leaves at worst one half-done command; its slot is reclaimed as a whole later. */
  if (result != EOWNERDEAD) return;
  pthread_mutex_consistent(&sim->lock);
  atomic_store(&sim->stops_again, 0); /* asked of a holder that is gone */
}

void sim_unlock(void) {
  pthread_mutex_unlock(&sim->lock);
  if (!asked_to_stop()) return;
  atomic_store(&sim->stops_again, 0);
  kill(getpid(), SIGSTOP);
}
