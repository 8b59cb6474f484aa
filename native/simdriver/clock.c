/* Wall-clock and virtual time.
 *
 * Virtual time is a shared clock that stands still while any taking-part thread runs and jumps to the earliest
 * wake-up time once all of them wait. A thread takes part from its first driver call to its end. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

/* A thread that stays away from the driver this long (wall time) no longer holds the clock. */
#define DETACH_AFTER_NS 2000000000ull

static __thread uint32_t my_waiter = SIM_NONE;
static __thread uint32_t my_pid;
static pthread_key_t leave_key;
static pthread_once_t leave_once = PTHREAD_ONCE_INIT;
static _Atomic bool ended;

static uint64_t wall_now(void) {
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
}

uint64_t sim_now(void) { return sim->virtual_time ? atomic_load(&sim->virtual_now_ns) : wall_now(); }

static void wake(struct sim_waiter *waiter) {
  atomic_fetch_add(&waiter->signal, 1);
  syscall(SYS_futex, &waiter->signal, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Lock held. Jump to the earliest wake-up when nobody runs; wake those whose time has come. */
static void try_advance(void) {
  uint64_t earliest = SIM_FOREVER;
  if (sim->joined_processes < sim->expected_processes) return;
  for (uint32_t i = 0; i < sim->waiter_high; i++) {
    struct sim_waiter *waiter = &sim->waiters[i];
    if (waiter->state == SIM_ACTIVE) return;
    if (waiter->state == SIM_WAITING && waiter->wake_ns < earliest) earliest = waiter->wake_ns;
  }
  if (earliest == SIM_FOREVER) return;
  if (earliest > atomic_load(&sim->virtual_now_ns)) atomic_store(&sim->virtual_now_ns, earliest);
  for (uint32_t i = 0; i < sim->waiter_high; i++) {
    struct sim_waiter *waiter = &sim->waiters[i];
    if (waiter->state == SIM_WAITING && waiter->wake_ns <= earliest) {
      waiter->state = SIM_ACTIVE;
      if (i != my_waiter) wake(waiter);
    }
  }
}

static void leave(void *unused) {
  (void)unused;
  if (my_waiter == SIM_NONE || my_pid != (uint32_t)getpid() || !sim) return;
  sim_lock();
  if (!atomic_load(&ended)) sim->waiters[my_waiter].state = SIM_FREE;
  my_waiter = SIM_NONE;
  try_advance();
  sim_unlock();
}

static void make_key(void) { pthread_key_create(&leave_key, leave); }

void sim_clock_after_fork(void) { my_waiter = SIM_NONE; }

void sim_clock_forget_process(uint32_t pid) {
  bool changed = false;
  for (uint32_t i = 0; i < sim->waiter_high; i++)
    if (sim->waiters[i].state != SIM_FREE && sim->waiters[i].pid == pid) {
      sim->waiters[i].state = SIM_FREE;
      if (i == my_waiter) my_waiter = SIM_NONE;
      changed = true;
    }
  if (changed) try_advance();
}

void sim_clock_end(void) { atomic_store(&ended, true); }

/* Lock held. The slots of a process that exits may be another's by now. */
static bool takes_part(void) {
  if (atomic_load(&ended)) my_waiter = SIM_NONE;
  return my_waiter != SIM_NONE;
}

/* Lock held. */
static void join_clock(void) {
  uint32_t slot = 0;
  if (atomic_load(&ended)) return;
  while (slot < SIM_WAITERS && sim->waiters[slot].state != SIM_FREE) slot++;
  if (slot == SIM_WAITERS) return;
  if (slot >= sim->waiter_high) sim->waiter_high = slot + 1;
  my_waiter = slot;
  my_pid = (uint32_t)getpid();
  sim->waiters[slot].state = SIM_ACTIVE;
  sim->waiters[slot].pid = my_pid;
  static uint32_t counted_pid;
  if (counted_pid != my_pid) sim->joined_processes++;
  counted_pid = my_pid;
  pthread_once(&leave_once, make_key);
  pthread_setspecific(leave_key, (void *)1);
}

void sim_clock_enter(void) {
  if (!sim->virtual_time) return;
  if (my_waiter != SIM_NONE && sim->waiters[my_waiter].state == SIM_ACTIVE) return;
  sim_lock();
  if (takes_part()) sim->waiters[my_waiter].state = SIM_ACTIVE;
  else join_clock();
  sim_unlock();
}

void sim_clock_leave(void) {
  if (!sim->virtual_time || my_waiter == SIM_NONE) return;
  sim_lock();
  if (takes_part()) sim->waiters[my_waiter].state = SIM_DETACHED;
  try_advance();
  sim_unlock();
}

/* Lock held: threads that neither wait nor call the driver must not stop the machine's clock for ever. */
static void detach_stalled(void) {
  for (uint32_t i = 0; i < sim->waiter_high; i++)
    if (sim->waiters[i].state == SIM_ACTIVE && i != my_waiter) sim->waiters[i].state = SIM_DETACHED;
}

static void wait_virtual(uint64_t when_ns) {
  sim_clock_enter();
  sim_lock();
  bool outside = !takes_part();
  if (outside || when_ns <= atomic_load(&sim->virtual_now_ns)) {
    sim_unlock();
    if (outside) sched_yield();
    return;
  }
  struct sim_waiter *me = &sim->waiters[my_waiter];
  me->state = SIM_WAITING;
  me->wake_ns = when_ns;
  uint64_t seen_now = 0, seen_at = 0;
  for (;;) {
    try_advance();
    if (!takes_part() || me->state != SIM_WAITING) break;
    uint32_t signal = atomic_load(&me->signal);
    uint64_t now = atomic_load(&sim->virtual_now_ns), wall = wall_now();
    if (now != seen_now || !seen_at) {
      seen_now = now;
      seen_at = wall;
    } else if (wall - seen_at > DETACH_AFTER_NS && sim->joined_processes >= sim->expected_processes) {
      detach_stalled();
      continue;
    }
    sim_unlock();
    struct timespec slice = {0, 100000000};
    bool timed_out = syscall(SYS_futex, &me->signal, FUTEX_WAIT, signal, &slice, NULL, 0) && errno == ETIMEDOUT;
    sim_lock();
    if (timed_out && me->state == SIM_WAITING) sim_reclaim_dead();
  }
  sim_unlock();
}

void sim_wait_until(uint64_t when_ns) {
  if (sim->virtual_time) {
    wait_virtual(when_ns);
    return;
  }
  uint64_t now = wall_now();
  if (when_ns <= now) return;
  /* Short slices, so that a wait notices work that others finished or abandoned meanwhile. */
  uint64_t end = when_ns - now > 20000000ull ? now + 20000000ull : when_ns;
  struct timespec until = {(time_t)(end / 1000000000ull), (long)(end % 1000000000ull)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}
