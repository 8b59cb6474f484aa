/* The side of the process that is locked and checkpointed: the gate in front of its calls, and the thread that serves.
 *
 * Calls are counted in and out. A lock closes the gate, lets the calls under way and all submitted work end, and only
 * then holds. Threads that come to a closed gate are counted, which tells the outside that there is work. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

#define SINCE 12080u
#define LOOK_NS 5000000l

static _Atomic uint32_t closed, inside; /* futex words */
static __thread uint32_t depth;

static uint64_t wall_ns(void) {
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
}

static void wait_while(_Atomic uint32_t *word, uint32_t value, long nanoseconds) {
  struct timespec slice = {0, nanoseconds};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nanoseconds ? &slice : NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

static void count_out(void) {
  if (atomic_fetch_sub(&inside, 1) == 1 && atomic_load(&closed)) wake(&inside);
}

/* Only a process that has a slot is ever locked. */
static struct sim_checkpoint *own(void) { return &sim->processes[sim_self()].checkpoint; }

void sim_enter(void) {
  if (depth++) return; /* a host function that calls the driver is in a call already */
  for (;;) {
    atomic_fetch_add(&inside, 1);
    if (!atomic_load(&closed)) return;
    count_out();
    sim_clock_leave();
    atomic_fetch_add(&own()->waiting, 1);
    while (atomic_load(&closed)) wait_while(&closed, 1, 0);
    atomic_fetch_sub(&own()->waiting, 1);
  }
}

void sim_leave(void) {
  if (!--depth) count_out();
}

static void open_gate(void) {
  atomic_store(&closed, 0);
  wake(&closed);
}

static bool idle(uint32_t slot, uint64_t *bound) {
  bool none = true;
  sim_lock();
  uint64_t now = sim_now();
  sim_advance(now);
  for (uint32_t i = 0; i < SIM_STREAMS; i++) {
    const struct sim_stream *stream = &sim->streams[i];
    if (!stream->in_use || stream->process != slot || stream->head == stream->tail) continue;
    *bound = sim_stream_bound(stream, stream->sent_ns, now);
    none = false;
    break;
  }
  sim_unlock();
  return none;
}

/* Calls under way and submitted work end first. Nothing new comes in meanwhile. */
static CUresult lock(uint32_t slot, uint32_t timeout_ms) {
  uint64_t until = timeout_ms ? wall_ns() + timeout_ms * 1000000ull : SIM_FOREVER, bound = 0;
  atomic_store(&closed, 1);
  for (;;) {
    uint32_t calls = atomic_load(&inside);
    if (!calls && idle(slot, &bound)) return CUDA_SUCCESS;
    if (wall_ns() > until) break;
    if (calls) {
      sim_clock_leave();
      wait_while(&inside, calls, LOOK_NS);
    } else {
      sim_clock_enter();
      sim_wait_until(bound);
    }
  }
  open_gate();
  return CUDA_ERROR_NOT_READY;
}

/* The time that contents take to pass the link of each card, all cards at a time. They are moved meanwhile. */
static void begin_pass(const uint64_t bytes[SIM_DEVICES], uint8_t engine, uint32_t streams[SIM_DEVICES]) {
  sim_clock_enter();
  sim_lock();
  for (uint32_t i = 0; i < SIM_DEVICES; i++) {
    streams[i] = bytes[i] ? sim_stream_new(i) : SIM_NONE;
    if (streams[i] == SIM_NONE) continue;
    struct sim_command command = {.kind = SIM_COPY, .engine = engine};
    command.duration_ns = (uint64_t)((double)bytes[i] * 1e9 / (double)sim->devices[i].bytes_per_second);
    sim_push(streams[i], &command, sim_now());
  }
  sim_unlock();
}

static void end_pass(const uint32_t streams[SIM_DEVICES]) {
  for (uint32_t i = 0; i < SIM_DEVICES; i++)
    if (streams[i] != SIM_NONE) {
      sim_stream_wait(streams[i]);
      sim_lock();
      sim_stream_drop(streams[i], sim_now());
      sim_unlock();
    }
}

/* TF_SIM_FAIL_CHECKPOINT=n makes every n-th checkpoint of the process fail, as drivers may. */
static bool injected_failure(void) {
  static uint64_t count;
  const char *text = getenv("TF_SIM_FAIL_CHECKPOINT");
  uint64_t every = text ? strtoull(text, NULL, 10) : 0;
  return every && ++count % every == 0;
}

static CUresult checkpoint(uint32_t slot) {
  struct sim_process *process = &sim->processes[slot];
  struct sim_checkpoint *held = &process->checkpoint;
  uint64_t contents[SIM_DEVICES] = {0};
  uint32_t streams[SIM_DEVICES];
  if (sim_on_slice() || injected_failure()) return CUDA_ERROR_OUT_OF_MEMORY; /* what a driver says on a partition */
  if (sim_shares()) return CUDA_ERROR_NOT_SUPPORTED; /* other processes may use it meanwhile */
  for (uint32_t i = 0; i < sim->device_count; i++)
    contents[i] = process->device[i].used_bytes - process->device[i].contexts * sim->devices[i].context_bytes;
  begin_pass(contents, 1, streams);
  bool saved = sim_image_save();
  end_pass(streams);
  if (!saved) return CUDA_ERROR_OUT_OF_MEMORY;
  sim_lock();
  for (uint32_t i = 0; i < sim->device_count; i++) {
    struct sim_process_device *use = &process->device[i];
    held->bytes[i] = use->used_bytes;
    held->contexts[i] = use->contexts;
    sim->devices[i].used_bytes -= use->used_bytes;
    use->used_bytes = use->contexts = 0;
  }
  sim_unlock();
  return CUDA_SUCCESS;
}

/* All cards or none: what does not fit now may fit later. */
static bool take_cards(uint32_t slot, const uint32_t to[SIM_DEVICES]) {
  struct sim_process *process = &sim->processes[slot];
  struct sim_checkpoint *held = &process->checkpoint;
  bool fits = true;
  sim_lock();
  for (int attempt = 0; attempt < 2; attempt++) {
    fits = true;
    for (uint32_t i = 0; i < sim->device_count; i++) {
      const struct sim_device *card = &sim->devices[to[i]];
      if (held->bytes[i] > card->memory_bytes - card->used_bytes) fits = false;
    }
    if (!fits && !attempt) sim_reclaim_dead();
  }
  for (uint32_t i = 0; fits && i < sim->device_count; i++) {
    struct sim_process_device *use = &process->device[to[i]];
    use->used_bytes += held->bytes[i];
    use->contexts += held->contexts[i];
    sim->devices[to[i]].used_bytes += held->bytes[i];
  }
  sim_unlock();
  return fits;
}

static CUresult restore(uint32_t slot) {
  struct sim_checkpoint *held = &sim->processes[slot].checkpoint;
  uint64_t contents[SIM_DEVICES] = {0};
  uint32_t to[SIM_DEVICES], streams[SIM_DEVICES];
  for (uint32_t i = 0; i < SIM_DEVICES; i++) to[i] = held->to[i];
  if (!take_cards(slot, to)) return CUDA_ERROR_OUT_OF_MEMORY;
  for (uint32_t i = 0; i < sim->device_count; i++)
    contents[to[i]] = held->bytes[i] - held->contexts[i] * sim->devices[i].context_bytes;
  begin_pass(contents, 0, streams);
  bool loaded = sim_image_load();
  end_pass(streams);
  if (!loaded) return CUDA_ERROR_UNKNOWN;
  sim_lock();
  for (uint32_t i = 0; i < SIM_DEVICES; i++) held->bytes[i] = held->contexts[i] = 0;
  for (uint32_t i = 0; i < SIM_STREAMS; i++)
    if (sim->streams[i].in_use && sim->streams[i].process == slot) sim->streams[i].device = to[sim->streams[i].device];
  held->stored = 0;
  sim_move_cards(to);
  sim_unlock();
  return CUDA_SUCCESS;
}

static CUresult perform(uint32_t slot, uint32_t *state) {
  struct sim_checkpoint *asked = &sim->processes[slot].checkpoint;
  CUresult result = CUDA_SUCCESS;
  switch (asked->operation) {
    case SIM_LOCK:
      if (!(result = lock(slot, asked->timeout_ms))) *state = CU_PROCESS_STATE_LOCKED;
      break;
    case SIM_CHECKPOINT:
      if (!(result = checkpoint(slot))) *state = CU_PROCESS_STATE_CHECKPOINTED;
      break;
    case SIM_RESTORE:
      if (!(result = restore(slot))) *state = CU_PROCESS_STATE_LOCKED;
      else if (result != CUDA_ERROR_OUT_OF_MEMORY) *state = CU_PROCESS_STATE_FAILED;
      break;
    case SIM_UNLOCK:
      open_gate();
      *state = CU_PROCESS_STATE_RUNNING;
      break;
    default:
      if (!sim_image_store(asked->path)) result = CUDA_ERROR_OUT_OF_MEMORY;
      else asked->stored = *asked->path != 0;
  }
  return result;
}

static void answer(struct sim_checkpoint *asked, CUresult result, uint32_t state) {
  sim_lock();
  asked->result = (uint32_t)result;
  asked->state = state;
  asked->operation = asked->taken = 0;
  atomic_fetch_add(&asked->answers, 1);
  sim_unlock();
  syscall(SYS_futex, &asked->answers, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void *serve(void *unused) {
  (void)unused;
  sim_lock();
  uint32_t slot = sim_self(), pid = (uint32_t)getpid();
  struct sim_checkpoint *asked = &sim->processes[slot].checkpoint;
  asked->thread = (uint32_t)syscall(SYS_gettid);
  sim_unlock();
  for (;;) {
    sim_lock();
    /* At the end of the process its slot is given back while this thread still runs. */
    bool ours = sim->processes[slot].alive && sim->processes[slot].pid == pid;
    uint32_t bell = atomic_load(&asked->bell), state = asked->state;
    bool work = ours && asked->operation;
    if (work) asked->taken = 1;
    sim_unlock();
    if (!ours) return NULL;
    if (work) {
      CUresult result = perform(slot, &state);
      answer(asked, result, state);
      sim_clock_leave();
    } else {
      syscall(SYS_futex, &asked->bell, FUTEX_WAIT, bell, NULL, NULL, 0);
    }
  }
}

static bool started;

static void forked(void) {
  started = false;
  atomic_store(&closed, 0);
  atomic_store(&inside, 0);
}

void sim_suspend_start(void) {
  static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&guard);
  if (!started && sim->cuda_version >= SINCE) {
    static bool registered;
    if (!registered) pthread_atfork(NULL, NULL, forked);
    registered = true;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* The program's signals are for its own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    started = !pthread_create(&thread, &attributes, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
  }
  pthread_mutex_unlock(&guard);
}
