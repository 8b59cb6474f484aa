/* Kernels. A module offers built-in kernels by name, whatever its image says:
 *
 *   spin_us(uint64 microseconds)    occupies the device
 *   spin_<N>us, spin_<N>ns          the same with the length in the name
 *   fill(address, uint32 value, uint64 count)
 *   saxpy(uint64 count, float a, x, y)   y = a x + y, really computed
 *   bad_access()                    an illegal address: a sticky error */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { SPIN, FIXED, FILL, SAXPY, BAD_ACCESS };
static const struct {
  const char *name;
  uint8_t sizes[SIM_PARAMETERS];
} kinds[] = {
    [SPIN] = {"spin_us", {8}},          [FIXED] = {"", {0}},
    [FILL] = {"fill", {8, 4, 8}},       [SAXPY] = {"saxpy", {8, 4, 8, 8}},
    [BAD_ACCESS] = {"bad_access", {0}},
};

/* A computed kernel takes a launch and one pass over its memory at this rate. */
#define LAUNCH_NS 2000u
#define BYTES_PER_NS 1000u

SIM_EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  CUresult result = sim_check();
  if (result) return result;
  if (!module || !image) return CUDA_ERROR_INVALID_VALUE;
  *module = malloc(1);
  return *module ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
SIM_EXPORT CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }
SIM_EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options,
                                       void **values) {
  (void)count, (void)options, (void)values;
  return cuModuleLoadData(module, image);
}
SIM_EXPORT CUresult cuModuleUnload(CUmodule module) {
  CUresult result = sim_check();
  if (!result) free(module);
  return result; /* functions stay: a stream may still hold them */
}

SIM_EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  CUresult result = sim_check();
  if (result) return result;
  if (!module || strlen(name) >= sizeof((struct CUfunc_st *)0)->name) return CUDA_ERROR_NOT_FOUND;
  struct CUfunc_st made = {.kind = -1};
  char *unit;
  snprintf(made.name, sizeof made.name, "%s", name);
  for (int kind = SPIN; kind <= BAD_ACCESS; kind++)
    if (kind != FIXED && !strcmp(name, kinds[kind].name)) made.kind = kind;
  uint64_t length = !strncmp(name, "spin_", 5) ? strtoull(name + 5, &unit, 10) : 0;
  if (made.kind < 0 && length && (!strcmp(unit, "us") || !strcmp(unit, "ns"))) {
    made.kind = FIXED;
    made.fixed_ns = *unit == 'u' ? length * 1000 : length;
  }
  if (made.kind < 0) return CUDA_ERROR_NOT_FOUND;
  *function = malloc(sizeof **function);
  if (!*function) return CUDA_ERROR_OUT_OF_MEMORY;
  **function = made;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  *value = attribute == 0 ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult sim_prepare(struct sim_launch *launch, CUfunction function, uint64_t blocks, void **parameters) {
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (!blocks) return CUDA_ERROR_INVALID_VALUE;
  memset(launch, 0, sizeof *launch);
  launch->function = function;
  launch->blocks = blocks;
  for (uint32_t i = 0; i < SIM_PARAMETERS && kinds[function->kind].sizes[i]; i++) {
    if (!parameters) return CUDA_ERROR_INVALID_VALUE;
    memcpy(&launch->parameters[i], parameters[i], kinds[function->kind].sizes[i]);
  }
  return CUDA_SUCCESS;
}

/* Does the work and returns how long it takes. */
static uint64_t perform(const struct sim_launch *launch) {
  const uint64_t *given = launch->parameters;
  if (launch->function->kind == SPIN) return given[0] * 1000;
  if (launch->function->kind == FIXED) return launch->function->fixed_ns;
  if (launch->function->kind == FILL) {
    uint32_t *cells = (uint32_t *)(uintptr_t)given[0];
    for (uint64_t i = 0; i < given[2]; i++) cells[i] = (uint32_t)given[1];
    return LAUNCH_NS + given[2] * 4 / BYTES_PER_NS + sim_touch_ns(given[0], given[2] * 4);
  }
  float factor;
  memcpy(&factor, &given[1], sizeof factor);
  const float *from = (const float *)(uintptr_t)given[2];
  float *to = (float *)(uintptr_t)given[3];
  for (uint64_t i = 0; i < given[0]; i++) to[i] += factor * from[i];
  return LAUNCH_NS + given[0] * 12 / BYTES_PER_NS + sim_touch_ns(given[2], given[0] * 4) +
         sim_touch_ns(given[3], given[0] * 8);
}

CUresult sim_run(const struct sim_launch *launch, uint32_t stream) {
  if (launch->function->kind == BAD_ACCESS) {
    sim_stick(CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
  }
  uint32_t sms = sim_card(sim_current()->device)->sms;
  struct sim_command command = {.kind = SIM_KERNEL, .duration_ns = perform(launch)};
  command.sms = launch->blocks < sms ? (uint32_t)launch->blocks : sms;
  return sim_enqueue(stream, command);
}

static CUresult launch(CUfunction function, uint64_t blocks, CUstream stream, void **parameters, bool per_thread) {
  CUresult result = sim_check();
  struct sim_launch item;
  if (result) return result;
  if ((result = sim_prepare(&item, function, blocks, parameters))) return result;
  if (sim_capture_of(stream)) return sim_graph_kernel(sim_capture_of(stream), &item);
  return sim_run(&item, sim_resolve_stream(stream, per_thread));
}

#define GRID ((uint64_t)grid_x * grid_y * grid_z)
#define LAUNCH(name, per_thread)                                                                                     \
  SIM_EXPORT CUresult name(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, \
                           unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,               \
                           void **parameters, void **extra) {                                                        \
    (void)block_x, (void)block_y, (void)block_z, (void)shared_bytes, (void)extra;                                    \
    return launch(function, GRID, stream, parameters, per_thread);                                                   \
  }
LAUNCH(cuLaunchKernel, false)
LAUNCH(cuLaunchKernel_ptsz, true)

#define COOPERATIVE(name, per_thread)                                                                                \
  SIM_EXPORT CUresult name(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, \
                           unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,               \
                           void **parameters) {                                                                      \
    (void)block_x, (void)block_y, (void)block_z, (void)shared_bytes;                                                 \
    return launch(function, GRID, stream, parameters, per_thread);                                                   \
  }
COOPERATIVE(cuLaunchCooperativeKernel, false)
COOPERATIVE(cuLaunchCooperativeKernel_ptsz, true)

static CUresult launch_ex(const CUlaunchConfig *config, CUfunction function, void **parameters, bool per_thread) {
  if (!config) return CUDA_ERROR_INVALID_VALUE;
  uint64_t blocks = (uint64_t)config->gridDimX * config->gridDimY * config->gridDimZ;
  return launch(function, blocks, config->hStream, parameters, per_thread);
}
SIM_EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                                     void **extra) {
  (void)extra;
  return launch_ex(config, function, parameters, false);
}
SIM_EXPORT CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function, void **parameters,
                                          void **extra) {
  (void)extra;
  return launch_ex(config, function, parameters, true);
}

/* The calls from before CUDA 4.0: their parameters would be set by other calls, so only kernels without any run. */
SIM_EXPORT CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream) {
  if (width < 0 || height < 0) return CUDA_ERROR_INVALID_VALUE;
  return launch(function, (uint64_t)width * (uint64_t)height, stream, NULL, false);
}
SIM_EXPORT CUresult cuLaunchGrid(CUfunction function, int width, int height) {
  return cuLaunchGridAsync(function, width, height, NULL);
}
SIM_EXPORT CUresult cuLaunch(CUfunction function) { return cuLaunchGrid(function, 1, 1); }
