/* What the parts of the simulated management library share. */
#ifndef TF_SIM_NVML_H
#define TF_SIM_NVML_H

#include "sim.h"
#include "tf_nvml.h"

/* A handle is the device's place in the machine's table, from 1 on. */
#define INDEX(device) ((uint32_t)((uintptr_t)(device) - 1))
#define CARD(device) (&sim->devices[INDEX(device)])
#define HANDLE(index) ((nvmlDevice_t)(uintptr_t)((index) + 1))
#define ON_SLICE(device) (INDEX(device) >= SIM_DEVICES)
#define SLICE(device) (&sim->slices[INDEX(device) - SIM_DEVICES])

#define CHECK(device)                                           \
  if (!sim_nvml_users) return NVML_ERROR_UNINITIALIZED;         \
  if (sim_nvml_bad(device)) return NVML_ERROR_INVALID_ARGUMENT; \
  if (CARD(device)->lost) return NVML_ERROR_GPU_IS_LOST

extern _Atomic int sim_nvml_users;
bool sim_nvml_bad(nvmlDevice_t device);

#endif
