/* The machine's state file: opening, first initialisation, process slots, reclaiming what the dead left. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

struct sim_state *sim;
static uint32_t self_slot = SIM_NONE;
static uint32_t self_pid;
static pthread_mutex_t open_guard = PTHREAD_MUTEX_INITIALIZER;

static void device_defaults(struct sim_device *device, uint32_t index) {
  snprintf(device->name, sizeof device->name, "NVIDIA A100-SXM4-40GB");
  snprintf(device->uuid, sizeof device->uuid, "GPU-00000000-0000-0000-0000-%012u", index);
  device->memory_bytes = 16ull << 30;
  device->sms = 108;
  device->threads_per_sm = 2048;
  device->clock_mhz = 1410;
  device->major = 8;
  device->context_bytes = 300ull << 20;
  device->bytes_per_second = 24000000000ull;
}

static void set_device(struct sim_device *device, const char *key, const char *value) {
  uint64_t number = strtoull(value, NULL, 10);
  if (!strcmp(key, "name")) snprintf(device->name, sizeof device->name, "%s", value);
  else if (!strcmp(key, "uuid")) snprintf(device->uuid, sizeof device->uuid, "%s", value);
  else if (!strcmp(key, "memory_bytes")) device->memory_bytes = number;
  else if (!strcmp(key, "context_bytes")) device->context_bytes = number;
  else if (!strcmp(key, "sms")) device->sms = (uint32_t)number;
  else if (!strcmp(key, "threads_per_sm")) device->threads_per_sm = (uint32_t)number;
  else if (!strcmp(key, "clock_mhz")) device->clock_mhz = (uint32_t)number;
  else if (!strcmp(key, "major")) device->major = (uint32_t)number;
  else if (!strcmp(key, "minor")) device->minor = (uint32_t)number;
  else if (!strcmp(key, "copy_bytes_per_second")) device->bytes_per_second = number;
  else if (!strcmp(key, "slots")) device->slots = (uint32_t)number;
  else if (!strcmp(key, "partitioned")) device->partitioned = device->will_be = (uint32_t)number;
}

static void set_machine(struct sim_state *state, const char *key, const char *value) {
  uint64_t number = strtoull(value, NULL, 10);
  if (!strcmp(key, "virtual_time")) state->virtual_time = (uint32_t)number;
  else if (!strcmp(key, "cuda_version")) state->cuda_version = (uint32_t)number;
  else if (!strcmp(key, "expected_processes")) state->expected_processes = (uint32_t)number;
  else if (!strcmp(key, "sample_period_ms")) state->sample_period_ns = number * 1000000ull;
  else if (!strcmp(key, "driver_version")) snprintf(state->driver_version, sizeof state->driver_version, "%s", value);
}

/* The configuration is lines of `key=value`; a line `[device]` opens the next device. */
static void read_config(struct sim_state *state, const char *path) {
  FILE *file = path ? fopen(path, "re") : NULL;
  char line[512];
  while (file && fgets(line, sizeof line, file)) {
    char *end = strpbrk(line, "\r\n");
    if (end) *end = 0;
    char *equals = strchr(line, '=');
    if (!strcmp(line, "[device]")) {
      if (state->device_count == SIM_DEVICES) break;
      device_defaults(&state->devices[state->device_count], state->device_count);
      state->device_count++;
    } else if (equals) {
      *equals = 0;
      if (state->device_count) set_device(&state->devices[state->device_count - 1], line, equals + 1);
      else set_machine(state, line, equals + 1);
    }
  }
  if (file) fclose(file);
  if (!state->device_count) device_defaults(&state->devices[state->device_count++], 0);
}

static void first_time(struct sim_state *state, const char *config) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&state->lock, &attributes);
  state->version = SIM_VERSION;
  state->cuda_version = 12040;
  state->sample_period_ns = 160000000ull;
  snprintf(state->driver_version, sizeof state->driver_version, "550.54.15");
  const char *mode = getenv("TF_SIM_TIME");
  read_config(state, config);
  if (mode) state->virtual_time = !strcmp(mode, "virtual");
  atomic_store(&state->virtual_now_ns, 1000000000ull);
  uint64_t now = 1000000000ull;
  if (!state->virtual_time) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    now = (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
  }
  for (uint32_t i = 0; i < state->device_count; i++) {
    state->devices[i].free_sms = state->devices[i].sms;
    state->devices[i].accounted_ns = now;
  }
  atomic_store(&state->ready, SIM_MAGIC);
}

static struct sim_state *map(int file) {
  void *memory = mmap(NULL, sizeof(struct sim_state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

/* Only who may have to write the beginning takes turns: one that is stopped then holds up nobody later. */
static struct sim_state *open_state(int file) {
  struct stat found;
  struct sim_state *state = NULL;
  if (!fstat(file, &found) && found.st_size >= (off_t)sizeof *state) state = map(file);
  if (state && atomic_load(&state->ready) == SIM_MAGIC) return state;
  if (state) munmap(state, sizeof *state);
  if (flock(file, LOCK_EX)) return NULL;
  state = ftruncate(file, (off_t)sizeof *state) ? NULL : map(file);
  if (state && atomic_load(&state->ready) != SIM_MAGIC) first_time(state, getenv("TF_SIM_CONFIG"));
  flock(file, LOCK_UN);
  return state;
}

int sim_open(const char *path) {
  pthread_mutex_lock(&open_guard);
  if (!sim) {
    char fallback[64];
    if (!path) path = getenv("TF_SIM_STATE");
    if (!path) {
      snprintf(fallback, sizeof fallback, "/tmp/tensorfusion-sim.%u", (unsigned)getuid());
      path = fallback;
    }
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct sim_state *state = file < 0 ? NULL : open_state(file);
    if (!state) fprintf(stderr, "simulated driver: cannot open state file %s: %s\n", path, strerror(errno));
    else if (state->version == SIM_VERSION) sim = state;
    if (file >= 0) close(file);
  }
  pthread_mutex_unlock(&open_guard);
  return sim ? 0 : -1;
}

void sim_uuid(const struct sim_device *card, CUuuid *uuid) {
  const char *text = card->uuid;
  if (!strncmp(text, "GPU-", 4) || !strncmp(text, "MIG-", 4)) text += 4;
  memset(uuid, 0, sizeof *uuid);
  for (int nibble = 0; *text && nibble < 32; text++) {
    if (*text == '-') continue;
    int digit = *text >= '0' && *text <= '9' ? *text - '0' : (*text | 32) - 'a' + 10;
    uuid->bytes[nibble / 2] = (char)(uuid->bytes[nibble / 2] << 4 | (digit & 15));
    nibble++;
  }
}

bool sim_ready(void) { return sim != NULL; }

static void release_slot(uint32_t slot, uint64_t now) {
  struct sim_process *process = &sim->processes[slot];
  for (uint32_t i = 0; i < SIM_STREAMS; i++)
    if (sim->streams[i].in_use && sim->streams[i].process == slot) sim_stream_drop(i, now);
  for (uint32_t i = 0; i < SIM_EVENTS && i < sim->event_hint + 1; i++)
    if (sim->events[i].in_use && sim->events[i].process == slot) sim->events[i].in_use = 0;
  sim_shared_leave(slot);
  for (uint32_t d = 0; d < SIM_ALL; d++) {
    if (!process->device[d].used_bytes && !process->device[d].contexts) continue;
    sim->devices[d].used_bytes -= process->device[d].used_bytes;
    process->device[d].used_bytes = process->device[d].contexts = 0;
  }
  sim_clock_forget_process(process->pid);
  process->alive = 0;
}

/* The owner of the machine looks again and again at the same processes: it holds on to each by a pidfd, which becomes
 * readable when the process ends (pidfd_open(2)), and asks for all of them by one call. */
static bool watches;
static struct pollfd watched[SIM_PROCESSES];
static struct {
  uint32_t pid;
  uint64_t start_ticks;
} held[SIM_PROCESSES];

void sim_watch(void) { watches = true; }

static bool runs(const struct sim_process *process) { return tf_start_ticks(process->pid) == process->start_ticks; }

static void hold_slot(uint32_t slot) {
  const struct sim_process *process = &sim->processes[slot];
  bool same = held[slot].pid == process->pid && held[slot].start_ticks == process->start_ticks;
  if (watched[slot].events && (!process->alive || !same)) {
    close(watched[slot].fd);
    watched[slot].events = 0;
  }
  if (watched[slot].events) return;
  watched[slot].fd = -1;
  if (!process->alive) return;
  int file = (int)syscall(SYS_pidfd_open, process->pid, 0);
  if (file < 0) return;
  if (!runs(process)) { /* the number may have gone to another process before it was opened */
    close(file);
    return;
  }
  watched[slot].fd = file;
  watched[slot].events = POLLIN;
  held[slot].pid = process->pid;
  held[slot].start_ticks = process->start_ticks;
}

/* Which processes have to be asked for one by one: those that are not held, or are said to have ended. */
static void look(void) {
  for (uint32_t i = 0; i < sim->process_high; i++) hold_slot(i);
  if (poll(watched, sim->process_high, 0) < 0)
    for (uint32_t i = 0; i < sim->process_high; i++) watched[i].revents = POLLERR;
}

void sim_reclaim_dead(void) {
  uint64_t now = sim_now();
  sim_advance(now);
  if (watches) look();
  for (uint32_t i = 0; i < sim->process_high; i++) {
    struct sim_process *process = &sim->processes[i];
    if (!process->alive || (watches && watched[i].events && !watched[i].revents)) continue;
    if (!runs(process)) release_slot(i, now);
  }
  for (uint32_t i = 0; i < sim->waiter_high; i++)
    if (sim->waiters[i].state != SIM_FREE && kill((pid_t)sim->waiters[i].pid, 0) && errno == ESRCH)
      sim_clock_forget_process(sim->waiters[i].pid);
}

static void leave(void) {
  if (!sim || self_slot == SIM_NONE || self_pid != (uint32_t)getpid()) return;
  sim_lock();
  sim_advance(sim_now());
  release_slot(self_slot, sim_now());
  sim_clock_end();
  self_slot = SIM_NONE;
  sim_unlock();
}

bool sim_forked;

static void forked(void) {
  self_slot = SIM_NONE;
  sim_forked = true;
  sim_clock_after_fork();
}

/* Most of a row is about devices that its process never used, and was never written. */
static void clear(struct sim_process *process) {
  memset(process, 0, offsetof(struct sim_process, device));
  for (uint32_t d = 0; d < SIM_ALL; d++) {
    struct sim_process_device *use = &process->device[d];
    if (use->busy_ns || use->service || use->kernels || use->used_bytes || use->contexts || use->queued ||
        use->bins.last_bin)
      memset(use, 0, sizeof *use);
  }
}

uint32_t sim_self(void) {
  if (self_slot != SIM_NONE) return self_slot;
  static bool registered;
  if (!registered) {
    registered = true;
    atexit(leave);
    pthread_atfork(NULL, NULL, forked);
  }
  uint32_t chosen = sim->process_high;
  if (chosen == SIM_PROCESSES) {
    sim_reclaim_dead();
    for (chosen = 0; chosen < SIM_PROCESSES && sim->processes[chosen].alive;) chosen++;
    if (chosen == SIM_PROCESSES) return SIM_NONE;
  } else {
    sim->process_high++;
  }
  struct sim_process *process = &sim->processes[chosen];
  clear(process);
  process->pid = self_pid = (uint32_t)getpid();
  process->start_ticks = tf_start_ticks(process->pid);
  process->alive = 1;
  return self_slot = chosen;
}
