/* The SM timeline: which command of which stream occupies the device when.
 *
 * There are no executor threads. The state is advanced lazily, event by event, by whoever holds the lock, so it is
 * a function of the enqueues alone and works the same in wall and in virtual time and across processes.
 * Kernels are not preempted. Of the streams whose next command is a kernel, the one whose process has received the
 * least SM time goes first, of its streams the one that waits longest, and nobody overtakes it when it does not fit yet. */
#include <string.h>

#include "sim.h"

static void bins_add(struct sim_bins *bins, uint64_t from, uint64_t to) {
  while (from < to) {
    uint64_t bin = from / SIM_BIN_NS, end = (bin + 1) * SIM_BIN_NS;
    if (end > to) end = to;
    if (bin > bins->last_bin) {
      uint64_t stale = bin - bins->last_bin;
      for (uint64_t i = 0; i < stale && i < SIM_BINS; i++) bins->busy_ns[(bin - i) % SIM_BINS] = 0;
      bins->last_bin = bin;
    }
    bins->busy_ns[bin % SIM_BINS] += (uint32_t)(end - from);
    from = end;
  }
}

uint32_t sim_bin_percent(const struct sim_bins *bins, uint64_t from_ns, uint64_t to_ns) {
  uint64_t busy = 0, first = from_ns / SIM_BIN_NS, last = to_ns / SIM_BIN_NS;
  for (uint64_t bin = first; bin < last; bin++)
    if (bin <= bins->last_bin && bin + SIM_BINS > bins->last_bin) busy += bins->busy_ns[bin % SIM_BINS];
  uint64_t span = (last - first) * SIM_BIN_NS;
  return span ? (uint32_t)((busy * 100 + span / 2) / span) : 0;
}

static struct sim_process_device *owner(const struct sim_stream *stream) {
  return &sim->processes[stream->process].device[stream->device];
}

static void account(struct sim_device *device, uint64_t to) {
  uint64_t from = device->accounted_ns;
  if (to <= from) return;
  struct sim_process_device *seen[SIM_RUNNING];
  uint32_t count = 0;
  for (uint32_t i = 0; i < device->running_count; i++) {
    const struct sim_running *item = &device->running[i];
    if (!item->sms) continue;
    struct sim_process_device *process = owner(&sim->streams[item->stream]);
    process->sm_ns += item->sms * (to - from);
    device->sm_ns += item->sms * (to - from);
    uint32_t known = 0;
    while (known < count && seen[known] != process) known++;
    if (known < count) continue;
    seen[count++] = process;
    process->busy_ns += to - from;
    bins_add(&process->bins, from, to);
  }
  if (count) {
    device->busy_ns += to - from;
    bins_add(&device->bins, from, to);
  }
  device->accounted_ns = to;
}

static void set_active(struct sim_device *device, uint32_t index) {
  struct sim_stream *stream = &sim->streams[index];
  if (stream->active) return;
  stream->active = 1;
  device->active[device->active_count++] = index;
}

static void clear_active(struct sim_device *device, uint32_t position) {
  sim->streams[device->active[position]].active = 0;
  device->active[position] = device->active[--device->active_count];
}

void sim_event_finish(uint32_t index, uint32_t generation, uint64_t now_ns) {
  struct sim_event *event = &sim->events[index];
  if (event->done >= generation) return;
  event->done = generation;
  event->time_ns = now_ns;
}

/* Commands that take no time. Returns whether anything moved. */
static bool drain(struct sim_stream *stream, uint64_t now) {
  bool moved = false;
  while (!stream->running && stream->head < stream->tail) {
    const struct sim_command *command = &stream->queue[stream->head % SIM_QUEUE];
    if (command->kind == SIM_RECORD) sim_event_finish(command->event, command->generation, now);
    else if (command->kind != SIM_WAIT || sim->events[command->event].done < command->generation) break;
    stream->head++;
    moved = true;
  }
  return moved;
}

static void start(struct sim_device *device, uint32_t index, uint64_t now) {
  struct sim_stream *stream = &sim->streams[index];
  const struct sim_command *command = &stream->queue[stream->head % SIM_QUEUE];
  struct sim_running *item = &device->running[device->running_count++];
  item->stream = index;
  item->sms = command->kind == SIM_KERNEL ? command->sms : 0;
  item->finish_ns = now + command->duration_ns;
  stream->running = 1;
  stream->started_ns = now;
  device->free_sms -= item->sms;
  if (command->kind == SIM_COPY) device->engine_busy[command->engine] = 1;
  owner(stream)->service += item->sms * command->duration_ns;
}

/* The streams of one process take turns. */
static bool goes_before(const struct sim_stream *one, const struct sim_stream *other) {
  uint64_t service = owner(one)->service, other_service = owner(other)->service;
  return service < other_service || (service == other_service && one->started_ns < other->started_ns);
}

/* Start whatever can start at this moment. */
static void dispatch(struct sim_device *device, uint64_t now) {
  for (bool again = true; again;) {
    again = false;
    uint32_t best = SIM_NONE;
    for (uint32_t i = 0; i < device->active_count;) {
      uint32_t index = device->active[i];
      struct sim_stream *stream = &sim->streams[index];
      if (drain(stream, now)) again = true;
      if (stream->head == stream->tail) {
        clear_active(device, i);
        continue;
      }
      i++;
      if (stream->running || device->running_count == SIM_RUNNING) continue;
      const struct sim_command *command = &stream->queue[stream->head % SIM_QUEUE];
      if (command->kind == SIM_COPY && !device->engine_busy[command->engine]) {
        start(device, index, now);
      } else if (command->kind == SIM_KERNEL && (best == SIM_NONE || goes_before(stream, &sim->streams[best]))) {
        best = index;
      }
    }
    if (best == SIM_NONE) continue;
    const struct sim_stream *stream = &sim->streams[best];
    if (stream->queue[stream->head % SIM_QUEUE].sms <= device->free_sms) {
      start(device, best, now);
      again = true;
    }
  }
}

static void finish(struct sim_device *device, uint32_t position) {
  struct sim_running item = device->running[position];
  struct sim_stream *stream = &sim->streams[item.stream];
  const struct sim_command *command = &stream->queue[stream->head % SIM_QUEUE];
  device->running[position] = device->running[--device->running_count];
  device->free_sms += item.sms;
  if (command->kind == SIM_COPY) device->engine_busy[command->engine] = 0;
  else owner(stream)->kernels++;
  stream->running = 0;
  stream->done_ns += command->duration_ns;
  stream->head++;
}

static void advance_device(struct sim_device *device, uint64_t now) {
  for (;;) {
    uint32_t next = SIM_NONE;
    for (uint32_t i = 0; i < device->running_count; i++)
      if (next == SIM_NONE || device->running[i].finish_ns < device->running[next].finish_ns) next = i;
    if (next == SIM_NONE || device->running[next].finish_ns > now) break;
    uint64_t moment = device->running[next].finish_ns;
    account(device, moment);
    finish(device, next);
    dispatch(device, moment);
  }
  account(device, now);
  dispatch(device, now);
}

static void advance(struct sim_device *device, uint64_t now_ns) {
  if (device->active_count || device->running_count) advance_device(device, now_ns);
  else device->accounted_ns = now_ns > device->accounted_ns ? now_ns : device->accounted_ns;
}

void sim_advance(uint64_t now_ns) {
  for (uint32_t i = 0; i < sim->device_count; i++) advance(&sim->devices[i], now_ns);
  for (uint32_t i = 0; i < SIM_SLICES; i++)
    if (sim->slices[i].in_use) advance(&sim->devices[SIM_DEVICES + i], now_ns);
}

/* A process that comes back from idling starts level with the least served of those at work. */
static void catch_up(struct sim_device *device, struct sim_stream *stream) {
  uint64_t least = UINT64_MAX;
  for (uint32_t i = 0; i < device->active_count; i++) {
    if (sim->streams[device->active[i]].process == stream->process) return;
    uint64_t service = owner(&sim->streams[device->active[i]])->service;
    if (service < least) least = service;
  }
  if (least != UINT64_MAX && owner(stream)->service < least) owner(stream)->service = least;
}

bool sim_push(uint32_t index, const struct sim_command *command, uint64_t now_ns) {
  struct sim_stream *stream = &sim->streams[index];
  struct sim_device *device = &sim->devices[stream->device];
  sim_advance(now_ns);
  if (stream->tail - stream->head >= SIM_QUEUE) return false;
  if (!stream->active) catch_up(device, stream);
  stream->queue[stream->tail % SIM_QUEUE] = *command;
  stream->tail++;
  stream->sent_ns += command->duration_ns;
  set_active(device, index);
  dispatch(device, now_ns);
  return true;
}

uint64_t sim_stream_bound(const struct sim_stream *stream, uint64_t target_ns, uint64_t now_ns) {
  const struct sim_device *device = &sim->devices[stream->device];
  uint64_t left = target_ns > stream->done_ns ? target_ns - stream->done_ns : 0;
  if (stream->running) {
    uint64_t spent = now_ns - stream->started_ns;
    left = left > spent ? left - spent : 0;
    if (left) return now_ns + left;
  }
  if (left) {
    /* Not started: it must at least run its own length, and nothing starts before something ends. */
    uint64_t next = SIM_FOREVER;
    for (uint32_t i = 0; i < device->running_count; i++)
      if (device->running[i].finish_ns < next) next = device->running[i].finish_ns;
    if (next != SIM_FOREVER) return next + left > now_ns ? next + left : now_ns + 1;
    return now_ns + left;
  }
  return now_ns + 20000;
}

void sim_stream_drop(uint32_t index, uint64_t now_ns) {
  struct sim_stream *stream = &sim->streams[index];
  struct sim_device *device = &sim->devices[stream->device];
  account(device, now_ns);
  for (uint32_t i = 0; i < device->running_count; i++)
    if (device->running[i].stream == index) finish(device, i--);
  for (uint32_t i = 0; i < device->active_count; i++)
    if (device->active[i] == index) clear_active(device, i--);
  for (uint64_t i = stream->head; i < stream->tail; i++) {
    const struct sim_command *command = &stream->queue[i % SIM_QUEUE];
    if (command->kind == SIM_RECORD) sim_event_finish(command->event, command->generation, now_ns);
  }
  stream->head = stream->tail;
  stream->in_use = 0;
  dispatch(device, now_ns);
}

uint32_t sim_stream_new(uint32_t device) {
  for (uint32_t i = 0; i < SIM_STREAMS; i++) {
    struct sim_stream *stream = &sim->streams[i];
    if (stream->in_use) continue;
    memset(stream, 0, offsetof(struct sim_stream, queue));
    stream->in_use = 1;
    stream->device = device;
    stream->process = sim_self();
    return i;
  }
  return SIM_NONE;
}

uint32_t sim_event_new(void) {
  for (uint32_t i = 0; i < SIM_EVENTS; i++) {
    struct sim_event *event = &sim->events[i];
    if (event->in_use) continue;
    memset(event, 0, sizeof *event);
    event->in_use = 1;
    event->process = sim_self();
    event->stream = SIM_NONE;
    if (i > sim->event_hint) sim->event_hint = i;
    return i;
  }
  return SIM_NONE;
}
