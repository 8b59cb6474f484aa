/* The lock of the ledger: a robust mutex, never held over a call into the driver.
 *
 * Whoever lives holds it for microseconds, but a stop signal may come in just these. Nobody may take the lock away: the
 * holder would go on writing one day. So whoever waits for a stopped process of its worker lets that one continue, and
 * it stops again by itself as soon as it has unlocked. */
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

#include "limiter.h"

#define LOOK_NS 20000000l
#define PATIENCE 50u       /* looks */
#define ATTACH_LOOKS 100u  /* two seconds */

/* The holder's thread: the C library keeps it in the futex word, for the kernel's sake (robust_list(7)). */
static uint32_t holder(const struct tf_ledger *ledger) {
  return (uint32_t)__atomic_load_n(&ledger->lock.__data.__lock, __ATOMIC_RELAXED) & FUTEX_TID_MASK;
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

/* Whether it is a process of this worker. The holder's number means the same here only if nobody is of another
 * namespace. */
static bool is_ours(const struct tf_ledger *ledger, uint32_t process) {
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

/* One of those who wait does it, or the others after a while, should that one have died over it. */
static void let_go_on(struct tf_ledger *ledger, uint32_t looks) {
  uint64_t none = 0, thread = holder(ledger);
  uint32_t process = thread ? stopped((uint32_t)thread) : 0;
  if (!process || !is_ours(ledger, process)) return;
  if (!atomic_compare_exchange_strong(&ledger->stops_again, &none, thread)) {
    if (looks < PATIENCE) return;
    atomic_store(&ledger->stops_again, thread);
  }
  if (holder(ledger) == thread) kill((pid_t)process, SIGCONT);
  else atomic_compare_exchange_strong(&ledger->stops_again, &thread, 0);
}

static bool asked_to_stop(const struct tf_ledger *ledger) {
  uint64_t thread = atomic_load_explicit(&ledger->stops_again, memory_order_relaxed);
  return thread && thread == (uint64_t)syscall(SYS_gettid);
}

static int take(struct tf_ledger *ledger, uint32_t most_looks) {
  /* Asked when it had just unlocked. Later it would be what is asked of it now, wherever it is stopped from here on. */
  if (asked_to_stop(ledger)) atomic_store(&ledger->stops_again, 0);
  int result = pthread_mutex_trylock(&ledger->lock);
  for (uint32_t looks = 0; (result == EBUSY || result == ETIMEDOUT) && looks < most_looks; looks++) {
    if (looks) let_go_on(ledger, looks);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOOK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    result = pthread_mutex_timedlock(&ledger->lock, &until);
  }
  if (result != EOWNERDEAD) return result;
  tf_sum_again(ledger);
  pthread_mutex_consistent(&ledger->lock);
  atomic_store(&ledger->stops_again, 0); /* what was asked of the dead */
  return 0;
}

static void give(struct tf_ledger *ledger) {
  pthread_mutex_unlock(&ledger->lock);
  if (LIKELY(!asked_to_stop(ledger))) return;
  atomic_store(&ledger->stops_again, 0);
  kill(getpid(), SIGSTOP);
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
