/* The management library on the same machine state. It never registers as a process of the device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nvml.h"

#define MILLIWATTS_IDLE 60000u
#define MILLIWATTS_BUSY 340000u

_Atomic int sim_nvml_users;

bool sim_nvml_bad(nvmlDevice_t device) {
  if (!device || INDEX(device) >= SIM_ALL) return true;
  return ON_SLICE(device) ? !SLICE(device)->usable : INDEX(device) >= sim->device_count;
}

/* Of a card and of its partitions, or of a partition alone. */
static bool covers(nvmlDevice_t device, uint32_t index) {
  if (index == INDEX(device)) return true;
  return index >= SIM_DEVICES && sim->slices[index - SIM_DEVICES].in_use &&
         sim->slices[index - SIM_DEVICES].card == INDEX(device);
}

/* Neither a card that is cut nor a partition tells its utilization (NVML's reference, "Multi Instance GPU"). */
static bool silent(nvmlDevice_t device) { return ON_SLICE(device) || CARD(device)->partitioned; }

SIM_EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (sim_open(NULL)) return NVML_ERROR_DRIVER_NOT_LOADED;
  sim_nvml_users++;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
SIM_EXPORT nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }
SIM_EXPORT nvmlReturn_t nvmlShutdown(void) {
  if (!sim_nvml_users) return NVML_ERROR_UNINITIALIZED;
  sim_nvml_users--;
  return NVML_SUCCESS;
}

SIM_EXPORT const char *nvmlErrorString(nvmlReturn_t code) {
  switch (code) {
    case NVML_SUCCESS: return "The operation was successful";
    case NVML_ERROR_UNINITIALIZED: return "Library was not first initialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "An argument is invalid";
    case NVML_ERROR_NO_PERMISSION: return "The current user does not have permission";
    case NVML_ERROR_RESET_REQUIRED: return "The device requires a reset";
    case NVML_ERROR_IN_USE: return "The device is in use";
    case NVML_ERROR_INSUFFICIENT_RESOURCES: return "There are not enough resources";
    case NVML_ERROR_NOT_SUPPORTED: return "The operation is not supported";
    case NVML_ERROR_NOT_FOUND: return "The query found nothing";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "The buffer is too small";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "The driver is not loaded";
    case NVML_ERROR_GPU_IS_LOST: return "The device is lost";
    default: return "Unknown error";
  }
}

static nvmlReturn_t write_text(char *text, unsigned length, const char *value) {
  size_t bytes = strlen(value) + 1;
  if (!text || bytes > length) return NVML_ERROR_INSUFFICIENT_SIZE;
  memcpy(text, value, bytes);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned length) {
  return sim_nvml_users ? write_text(text, length, sim->driver_version) : NVML_ERROR_UNINITIALIZED;
}
SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
  if (!sim_nvml_users) return NVML_ERROR_UNINITIALIZED;
  *version = (int)sim->cuda_version;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
  return nvmlSystemGetCudaDriverVersion(version);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
  if (!sim_nvml_users) return NVML_ERROR_UNINITIALIZED;
  *count = sim->device_count;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
  if (!sim_nvml_users) return NVML_ERROR_UNINITIALIZED;
  if (index >= sim->device_count) return NVML_ERROR_INVALID_ARGUMENT;
  *device = HANDLE(index);
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device) {
  return nvmlDeviceGetHandleByIndex_v2(index, device);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
  if (!sim_nvml_users) return NVML_ERROR_UNINITIALIZED;
  for (unsigned i = 0; i < sim->device_count; i++)
    if (!strcmp(sim->devices[i].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2(i, device);
  uint32_t slice = strncmp(uuid, "MIG-", 4) ? SIM_NONE : sim_slice_named(uuid, sizeof sim->devices[0].uuid);
  if (slice == SIM_NONE) return NVML_ERROR_NOT_FOUND;
  *device = HANDLE(SIM_DEVICES + slice);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned length) {
  CHECK(device);
  return write_text(text, length, CARD(device)->name);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned length) {
  CHECK(device);
  return write_text(text, length, CARD(device)->uuid);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
  CHECK(device);
  *index = INDEX(device);
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *number) {
  return nvmlDeviceGetIndex(device, number);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) {
  CHECK(device);
  unsigned bus = ON_SLICE(device) ? SLICE(device)->card : INDEX(device);
  memset(info, 0, sizeof *info);
  info->bus = bus;
  snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", bus);
  snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:%02X:00.0", bus);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
  CHECK(device);
  sim_lock();
  sim_reclaim_dead();
  memory->total = CARD(device)->memory_bytes;
  memory->used = 0;
  for (uint32_t i = 0; i < SIM_ALL; i++)
    if (covers(device, i)) memory->used += sim->devices[i].used_bytes;
  sim_unlock();
  memory->free = memory->total - memory->used;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
  nvmlMemory_t simple;
  nvmlReturn_t result = nvmlDeviceGetMemoryInfo(device, &simple);
  if (result) return result;
  memory->total = simple.total;
  memory->used = simple.used;
  memory->free = simple.free;
  memory->reserved = 0;
  return NVML_SUCCESS;
}

/* Lock held. The end of the last whole sample period: what is newer is not reported yet. */
static uint64_t sampled_until(void) {
  uint64_t now = sim_now();
  sim_advance(now);
  return now / sim->sample_period_ns * sim->sample_period_ns;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
  CHECK(device);
  if (silent(device)) return NVML_ERROR_NOT_SUPPORTED;
  sim_lock();
  uint64_t end = sampled_until();
  rates->gpu = sim_bin_percent(&CARD(device)->bins, end - sim->sample_period_ns, end);
  sim_unlock();
  rates->memory = rates->gpu / 2;
  return NVML_SUCCESS;
}

/* Samples are stamped by the wall clock, as the driver's are; virtual time has no other clock than its own. */
static uint64_t stamp_offset(void) {
  struct timespec wall, steady;
  if (sim->virtual_time) return 0;
  clock_gettime(CLOCK_REALTIME, &wall);
  clock_gettime(CLOCK_MONOTONIC, &steady);
  return (uint64_t)(wall.tv_sec - steady.tv_sec) * 1000000000ull + (uint64_t)(wall.tv_nsec - steady.tv_nsec);
}

/* One row per process that was busy since `since` (microseconds), averaged over that time, at most a second. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                                        unsigned *count, unsigned long long since) {
  CHECK(device);
  if (silent(device)) return NVML_ERROR_NOT_SUPPORTED;
  if (!samples) {
    *count = SIM_PROCESSES;
    return NVML_ERROR_INSUFFICIENT_SIZE;
  }
  sim_lock();
  uint64_t end = sampled_until(), offset = stamp_offset(), start = since * 1000;
  start = start > offset ? start - offset : 0;
  if (start + 1000000000ull < end) start = end - 1000000000ull;
  unsigned found = 0;
  for (uint32_t i = 0; start < end && i < sim->process_high && found < *count; i++) {
    const struct sim_process *process = &sim->processes[i];
    if (!process->alive) continue;
    uint32_t percent = sim_bin_percent(&process->device[INDEX(device)].bins, start, end);
    if (!percent) continue;
    samples[found++] =
        (nvmlProcessUtilizationSample_t){.pid = process->pid, .timeStamp = (end + offset) / 1000, .smUtil = percent};
  }
  sim_unlock();
  *count = found;
  return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* The layouts of the three versions differ: the newer ones carry two instance numbers. */
static void write_process(void *rows, unsigned place, bool long_rows, const struct sim_process *process,
                          uint32_t index) {
  uint64_t bytes = process->device[index].used_bytes;
  unsigned pid = process->pid, gpu = ~0u, compute = ~0u; /* none */
  if (index >= SIM_DEVICES) gpu = sim->slices[index - SIM_DEVICES].id, compute = 0;
  if (long_rows) ((nvmlProcessInfo_v2_t *)rows)[place] = (nvmlProcessInfo_v2_t){pid, bytes, gpu, compute};
  else ((nvmlProcessInfo_v1_t *)rows)[place] = (nvmlProcessInfo_v1_t){pid, bytes};
}

static nvmlReturn_t processes(nvmlDevice_t device, unsigned *count, void *rows, bool long_rows) {
  CHECK(device);
  nvmlReturn_t result = NVML_SUCCESS;
  unsigned room = rows ? *count : 0, found = 0;
  sim_lock();
  sim_reclaim_dead();
  for (uint32_t i = 0; i < sim->process_high; i++)
    for (uint32_t d = 0; sim->processes[i].alive && d < SIM_ALL; d++) {
      if (!covers(device, d) || !sim->processes[i].device[d].contexts) continue;
      if (found < room) write_process(rows, found, long_rows, &sim->processes[i], d);
      found++;
    }
  sim_unlock();
  if (found > room) result = NVML_ERROR_INSUFFICIENT_SIZE;
  *count = found;
  return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned *count, void *rows) {
  return processes(device, count, rows, false);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count, void *rows) {
  return processes(device, count, rows, true);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, void *rows) {
  return processes(device, count, rows, true);
}
static nvmlReturn_t no_processes(nvmlDevice_t device, unsigned *count) {
  CHECK(device);
  *count = 0;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned *count, void *rows) {
  (void)rows;
  return no_processes(device, count);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned *count, void *rows) {
  (void)rows;
  return no_processes(device, count);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count, void *rows) {
  (void)rows;
  return no_processes(device, count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
  nvmlUtilization_t rates;
  nvmlReturn_t result = nvmlDeviceGetUtilizationRates(device, &rates);
  if (!result) *milliwatts = MILLIWATTS_IDLE + rates.gpu * (MILLIWATTS_BUSY - MILLIWATTS_IDLE) / 100;
  return result;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
  CHECK(device);
  sim_lock();
  uint64_t now = sim_now();
  sim_advance(now);
  *millijoules = (unsigned long long)((double)now / 1e9 * MILLIWATTS_IDLE +
                                      (double)CARD(device)->busy_ns / 1e9 * (MILLIWATTS_BUSY - MILLIWATTS_IDLE));
  sim_unlock();
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *celsius) {
  if (sensor) return NVML_ERROR_INVALID_ARGUMENT;
  nvmlUtilization_t rates;
  nvmlReturn_t result = nvmlDeviceGetUtilizationRates(device, &rates);
  if (!result) *celsius = 35 + rates.gpu * 40 / 100;
  return result;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int kind, unsigned *mhz) {
  CHECK(device);
  if (kind < 0 || kind > 3) return NVML_ERROR_INVALID_ARGUMENT;
  *mhz = CARD(device)->clock_mhz;
  return NVML_SUCCESS;
}

/* For the owner of the machine, who has no variables set: which state to open, before anything else. */
SIM_EXPORT int tfSimOpen(const char *state, const char *config) {
  if (config) setenv("TF_SIM_CONFIG", config, 1);
  sim_watch();
  return sim_open(state);
}

/* The truth about every process that used the device or a partition of it, also of those that ended: a row keeps its
 * place until the machine needs it for another process. */
struct row {
  uint32_t pid, alive;
  uint64_t start_ticks, used_bytes, busy_ns;
};

SIM_EXPORT int tfSimProcesses(unsigned index, struct row *rows, unsigned room) {
  unsigned found = 0;
  if (!sim_ready() || index >= sim->device_count) return -1;
  sim_lock();
  sim_reclaim_dead();
  for (uint32_t i = 0; i < sim->process_high && found < room; i++) {
    const struct sim_process *process = &sim->processes[i];
    struct row row = {process->pid, process->alive, process->start_ticks, 0, 0};
    for (uint32_t d = 0; d < SIM_ALL; d++) {
      if (!covers(HANDLE(index), d)) continue;
      row.used_bytes += process->device[d].used_bytes;
      row.busy_ns += process->device[d].busy_ns;
    }
    if (row.busy_ns || row.used_bytes) rows[found++] = row;
  }
  sim_unlock();
  return (int)found;
}

#define NOT_SUPPORTED(name)                           \
  SIM_EXPORT nvmlReturn_t name(nvmlDevice_t device) { \
    CHECK(device);                                    \
    return NVML_ERROR_NOT_SUPPORTED;                  \
  }
NOT_SUPPORTED(nvmlDeviceGetNvLinkState)
NOT_SUPPORTED(nvmlDeviceGetNvLinkVersion)
NOT_SUPPORTED(nvmlDeviceGetNvLinkRemotePciInfo_v2)
NOT_SUPPORTED(nvmlDeviceGetNvLinkRemoteDeviceType)
