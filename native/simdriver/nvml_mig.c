/* Hardware partitions in the management library. The state outlives the process that asks, as a driver's does.
 *
 * What is simpler than in a driver: a GPU instance has one compute instance, which takes all of it. */
#include <stdio.h>
#include <string.h>

#include "nvml.h"

#define MIB (1ull << 20)
#define ANY_START UINT32_MAX
#define PROFILES 18u         /* NVML_GPU_INSTANCE_PROFILE_COUNT */
#define COMPUTE_PROFILES 9u  /* NVML_COMPUTE_INSTANCE_PROFILE_COUNT */

/* A card that can be cut. */
#define CHECK_CARD(device)                                  \
  CHECK(device);                                            \
  if (ON_SLICE(device)) return NVML_ERROR_INVALID_ARGUMENT; \
  if (!CARD(device)->slots) return NVML_ERROR_NOT_SUPPORTED
/* And is in the mode for it. */
#define CHECK_CUT(device) \
  CHECK_CARD(device);     \
  if (!CARD(device)->partitioned) return NVML_ERROR_NOT_SUPPORTED

/* Instances have handles of the same kind as devices, in their own table. */
static struct sim_slice *slice_of(const void *handle) {
  uintptr_t place = (uintptr_t)handle - 1;
  if (!sim_nvml_users || place >= SIM_SLICES || !sim->slices[place].in_use) return NULL;
  return &sim->slices[place];
}
static uint32_t place_of(const struct sim_slice *slice) { return (uint32_t)(slice - sim->slices); }
static void *instance(const struct sim_slice *slice) { return (void *)(uintptr_t)(place_of(slice) + 1); }

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *now, unsigned *pending) {
  CHECK_CARD(device);
  *now = CARD(device)->partitioned;
  *pending = CARD(device)->will_be;
  return NVML_SUCCESS;
}

/* The mode changes at once unless the card is in use: then it is pending, and asking again later brings it about. */
SIM_EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned mode, nvmlReturn_t *status) {
  CHECK_CARD(device);
  if (mode > 1) return NVML_ERROR_INVALID_ARGUMENT;
  sim_lock();
  sim_reclaim_dead();
  *status = NVML_SUCCESS;
  if (mode != CARD(device)->partitioned && (sim_card_busy(INDEX(device)) || sim_cut_up(INDEX(device))))
    *status = NVML_ERROR_IN_USE;
  CARD(device)->will_be = mode;
  if (*status == NVML_SUCCESS) CARD(device)->partitioned = mode;
  sim_unlock();
  return NVML_SUCCESS;
}

static const struct sim_profile *profile_by(const struct sim_device *card, bool by_number, unsigned value) {
  uint32_t count;
  const struct sim_profile *profiles = sim_profiles(card, &count);
  for (uint32_t i = 0; i < count; i++)
    if ((by_number ? profiles[i].number : profiles[i].id) == value) return &profiles[i];
  return NULL;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned number,
                                                            nvmlGpuInstanceProfileInfo_t *info) {
  CHECK_CARD(device);
  if (number >= PROFILES) return NVML_ERROR_INVALID_ARGUMENT;
  const struct sim_profile *profile = profile_by(CARD(device), true, number);
  if (!profile) return NVML_ERROR_NOT_SUPPORTED;
  *info =
      (nvmlGpuInstanceProfileInfo_t){.id = profile->id, .sliceCount = profile->slices, .instanceCount = profile->most};
  info->multiprocessorCount = sim_profile_sms(CARD(device), profile);
  info->copyEngineCount = profile->slices;
  info->memorySizeMB = sim_profile_bytes(CARD(device), profile) / MIB;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned number,
                                                             nvmlGpuInstanceProfileInfo_v2_t *info) {
  nvmlGpuInstanceProfileInfo_t simple;
  nvmlReturn_t result = nvmlDeviceGetGpuInstanceProfileInfo(device, number, &simple);
  if (result) return result;
  *info = (nvmlGpuInstanceProfileInfo_v2_t){.version = info->version, .id = simple.id, .sliceCount = simple.sliceCount};
  info->instanceCount = simple.instanceCount;
  info->multiprocessorCount = simple.multiprocessorCount;
  info->copyEngineCount = simple.copyEngineCount;
  info->memorySizeMB = simple.memorySizeMB;
  memcpy(info->name, "MIG ", 4);
  sim_profile_name(CARD(device), profile_by(CARD(device), true, number), info->name + 4, sizeof info->name - 4);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned id,
                                                                      nvmlGpuInstancePlacement_t *placements,
                                                                      unsigned *count) {
  CHECK_CUT(device);
  const struct sim_profile *profile = profile_by(CARD(device), false, id);
  if (!profile) return NVML_ERROR_NOT_SUPPORTED;
  unsigned room = placements ? *count : 0, found = 0;
  for (uint32_t start = 0; start <= profile->last; start += profile->step, found++)
    if (found < room) placements[found] = (nvmlGpuInstancePlacement_t){start, profile->width};
  *count = found;
  return placements && found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(nvmlDevice_t device, unsigned id,
                                                                   nvmlGpuInstancePlacement_t *placements,
                                                                   unsigned *count) {
  return nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, id, placements, count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, unsigned id, unsigned *count) {
  CHECK_CUT(device);
  const struct sim_profile *profile = profile_by(CARD(device), false, id);
  if (!profile) return NVML_ERROR_NOT_SUPPORTED;
  sim_lock();
  *count = 0;
  for (uint32_t start = 0; start <= profile->last; start += profile->step)
    if (sim_may_cut(INDEX(device), profile, start)) ++*count;
  sim_unlock();
  return NVML_SUCCESS;
}

/* Without a wish the last place that is free: what is at the beginning stays for the large ones. */
static nvmlReturn_t create(nvmlDevice_t device, unsigned id, uint32_t start, nvmlGpuInstance_t *made) {
  CHECK_CUT(device);
  const struct sim_profile *profile = profile_by(CARD(device), false, id);
  if (!profile || !made) return NVML_ERROR_INVALID_ARGUMENT;
  if (start != ANY_START && (start > profile->last || start % profile->step)) return NVML_ERROR_INVALID_ARGUMENT;
  sim_lock();
  for (uint32_t back = 0; start == ANY_START && back <= profile->last; back += profile->step)
    if (sim_may_cut(INDEX(device), profile, profile->last - back)) start = profile->last - back;
  uint32_t place = start == ANY_START ? SIM_NONE : sim_cut(INDEX(device), profile, start);
  sim_unlock();
  if (place == SIM_NONE) return NVML_ERROR_INSUFFICIENT_RESOURCES;
  *made = instance(&sim->slices[place]);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *made) {
  return create(device, id, ANY_START, made);
}
SIM_EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned id,
                                                                 const nvmlGpuInstancePlacement_t *placement,
                                                                 nvmlGpuInstance_t *made) {
  CHECK_CUT(device);
  const struct sim_profile *profile = profile_by(CARD(device), false, id);
  if (!placement || !profile || placement->size != profile->width) return NVML_ERROR_INVALID_ARGUMENT;
  return create(device, id, placement->start, made);
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t handle) {
  struct sim_slice *slice = slice_of(handle);
  if (!slice) return NVML_ERROR_INVALID_ARGUMENT;
  sim_lock();
  bool busy = slice->usable;
  if (!busy) {
    slice->in_use = 0;
    sim->devices[SIM_DEVICES + place_of(slice)].lost = 1; /* for programs that still know it */
  }
  sim_unlock();
  return busy ? NVML_ERROR_IN_USE : NVML_SUCCESS;
}

/* Finds the instances of a card: those of a profile, or, without one, that of an id. */
static unsigned instances(uint32_t card, const struct sim_profile *profile, unsigned id, nvmlGpuInstance_t *rows) {
  unsigned found = 0;
  for (uint32_t i = 0; i < SIM_SLICES; i++) {
    const struct sim_slice *slice = &sim->slices[i];
    if (!slice->in_use || slice->card != card) continue;
    if (profile ? sim_profile_of(slice) == profile : slice->id == id) rows[found++] = instance(slice);
  }
  return found;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *rows,
                                                  unsigned *count) {
  CHECK_CUT(device);
  const struct sim_profile *profile = profile_by(CARD(device), false, id);
  if (!profile) return NVML_ERROR_INVALID_ARGUMENT;
  *count = instances(INDEX(device), profile, 0, rows);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *found) {
  CHECK_CUT(device);
  return instances(INDEX(device), NULL, id, found) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *info) {
  const struct sim_slice *slice = slice_of(handle);
  if (!slice) return NVML_ERROR_INVALID_ARGUMENT;
  *info =
      (nvmlGpuInstanceInfo_t){HANDLE(slice->card), slice->id, sim_profile_of(slice)->id, {slice->start, slice->width}};
  return NVML_SUCCESS;
}

/* NVML_COMPUTE_INSTANCE_PROFILE_*: 1, 2, 3, 4, 7, 8 and 6 slices. */
static const unsigned compute_sizes[COMPUTE_PROFILES] = {1, 2, 3, 4, 7, 8, 6};

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t handle, unsigned number,
                                                                     unsigned engines,
                                                                     nvmlComputeInstanceProfileInfo_t *info) {
  const struct sim_slice *slice = slice_of(handle);
  if (!slice || number >= COMPUTE_PROFILES || engines) return NVML_ERROR_INVALID_ARGUMENT;
  if (compute_sizes[number] != slice->slices) return NVML_ERROR_NOT_SUPPORTED;
  *info = (nvmlComputeInstanceProfileInfo_t){.id = number, .sliceCount = slice->slices, .instanceCount = 1};
  info->multiprocessorCount = sim->devices[SIM_DEVICES + place_of(slice)].sms;
  info->sharedCopyEngineCount = slice->slices;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t handle, unsigned number,
                                                                      unsigned engines,
                                                                      nvmlComputeInstanceProfileInfo_v2_t *info) {
  nvmlComputeInstanceProfileInfo_t simple;
  nvmlReturn_t result = nvmlGpuInstanceGetComputeInstanceProfileInfo(handle, number, engines, &simple);
  if (result) return result;
  *info = (nvmlComputeInstanceProfileInfo_v2_t){.version = info->version, .id = simple.id, .instanceCount = 1};
  info->sliceCount = simple.sliceCount;
  info->multiprocessorCount = simple.multiprocessorCount;
  info->sharedCopyEngineCount = simple.sharedCopyEngineCount;
  snprintf(info->name, sizeof info->name, "MIG %uc", simple.sliceCount);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t handle, unsigned id,
                                                             nvmlComputeInstance_t *made) {
  struct sim_slice *slice = slice_of(handle);
  if (!slice || !made || id >= COMPUTE_PROFILES) return NVML_ERROR_INVALID_ARGUMENT;
  if (compute_sizes[id] != slice->slices) return NVML_ERROR_NOT_SUPPORTED;
  sim_lock();
  bool taken = slice->usable;
  slice->usable = 1;
  sim_unlock();
  if (taken) return NVML_ERROR_INSUFFICIENT_RESOURCES;
  *made = instance(slice);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t handle) {
  struct sim_slice *slice = slice_of(handle);
  if (!slice || !slice->usable) return NVML_ERROR_INVALID_ARGUMENT;
  sim_lock();
  sim_reclaim_dead();
  bool busy = sim_slice_busy(place_of(slice));
  if (!busy) slice->usable = 0;
  sim_unlock();
  return busy ? NVML_ERROR_IN_USE : NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t handle, unsigned id,
                                                           nvmlComputeInstance_t *rows, unsigned *count) {
  const struct sim_slice *slice = slice_of(handle);
  if (!slice || id >= COMPUTE_PROFILES) return NVML_ERROR_INVALID_ARGUMENT;
  *count = slice->usable && compute_sizes[id] == slice->slices;
  if (*count) rows[0] = instance(slice);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t handle, unsigned id,
                                                              nvmlComputeInstance_t *found) {
  const struct sim_slice *slice = slice_of(handle);
  if (!slice) return NVML_ERROR_INVALID_ARGUMENT;
  if (!slice->usable || id) return NVML_ERROR_NOT_FOUND;
  *found = instance(slice);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info) {
  const struct sim_slice *slice = slice_of(handle);
  if (!slice || !slice->usable) return NVML_ERROR_INVALID_ARGUMENT;
  unsigned number = 0;
  while (compute_sizes[number] != slice->slices) number++;
  *info = (nvmlComputeInstanceInfo_t){HANDLE(slice->card), instance(slice), 0, number, {0, slice->slices}};
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is) {
  CHECK(device);
  *is = ON_SLICE(device);
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
  CHECK(device);
  *count = ON_SLICE(device) || !CARD(device)->slots ? 0 : CARD(device)->slots == 8 ? SIM_CUTS : CARD(device)->slots;
  return NVML_SUCCESS;
}

/* Devices are numbered in the order of the instances' ids. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *found) {
  CHECK_CUT(device);
  uint32_t slice = sim_slice_at(INDEX(device), index);
  if (slice == SIM_NONE) return NVML_ERROR_NOT_FOUND;
  *found = HANDLE(SIM_DEVICES + slice);
  return NVML_SUCCESS;
}

#define CHECK_SLICE(device) \
  CHECK(device);            \
  if (!ON_SLICE(device)) return NVML_ERROR_INVALID_ARGUMENT

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id) {
  CHECK_SLICE(device);
  *id = SLICE(device)->id;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id) {
  CHECK_SLICE(device);
  *id = 0;
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *card) {
  CHECK_SLICE(device);
  *card = HANDLE(SLICE(device)->card);
  return NVML_SUCCESS;
}
SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
  CHECK_SLICE(device);
  *attributes = (nvmlDeviceAttributes_t){.multiprocessorCount = CARD(device)->sms};
  attributes->sharedCopyEngineCount = SLICE(device)->slices;
  attributes->gpuInstanceSliceCount = attributes->computeInstanceSliceCount = SLICE(device)->slices;
  attributes->memorySizeMB = CARD(device)->memory_bytes / MIB;
  return NVML_SUCCESS;
}
