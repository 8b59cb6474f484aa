/* Launch calls: admit, launch, tell how it went. While nothing is limited they are one comparison and a jump. */
#include "limiter.h"

static uint64_t blocks_of(unsigned x, unsigned y, unsigned z) { return (uint64_t)x * y * z; }

#define CHARGED(key, blocks, stream, per_thread, call)                                         \
  struct tf_launch launch;                                                                     \
  CUresult result = tf_admit(&launch, (uint64_t)(uintptr_t)(key), blocks, stream, per_thread); \
  if (result) return result;                                                                   \
  result = call;                                                                               \
  if (launch.sample || (result && launch.cost)) tf_launched(&launch, result);                  \
  return result

/* The limited path is a function of its own, so that the other one saves no registers for it. */
#define LAUNCH(name, parameters, arguments, key, blocks, stream, per_thread) \
  static __attribute__((noinline)) CUresult limited_##name parameters {      \
    CHARGED(key, blocks, stream, per_thread, REAL(name) arguments);          \
  }                                                                          \
  TF_EXPORT CUresult name parameters { return tf_gate_is_open() ? REAL(name) arguments : limited_##name arguments; }

#define SHAPE                                                                                                 \
  CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
      unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters
#define SHAPE_VALUES function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, parameters
#define SHAPE_BLOCKS blocks_of(grid_x, grid_y, grid_z)

LAUNCH(cuLaunchKernel, (SHAPE, void **extra), (SHAPE_VALUES, extra), function, SHAPE_BLOCKS, stream, false)
LAUNCH(cuLaunchKernel_ptsz, (SHAPE, void **extra), (SHAPE_VALUES, extra), function, SHAPE_BLOCKS, stream, true)
LAUNCH(cuLaunchCooperativeKernel, (SHAPE), (SHAPE_VALUES), function, SHAPE_BLOCKS, stream, false)
LAUNCH(cuLaunchCooperativeKernel_ptsz, (SHAPE), (SHAPE_VALUES), function, SHAPE_BLOCKS, stream, true)

static uint64_t config_blocks(const CUlaunchConfig *config) {
  return config ? blocks_of(config->gridDimX, config->gridDimY, config->gridDimZ) : 0; /* the driver refuses none */
}
static CUstream config_stream(const CUlaunchConfig *config) { return config ? config->hStream : NULL; }
#define CONFIG const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra

LAUNCH(cuLaunchKernelEx, (CONFIG), (config, function, parameters, extra), function, config_blocks(config),
       config_stream(config), false)
LAUNCH(cuLaunchKernelEx_ptsz, (CONFIG), (config, function, parameters, extra), function, config_blocks(config),
       config_stream(config), true)

LAUNCH(cuGraphLaunch, (CUgraphExec executable, CUstream stream), (executable, stream), executable, 0, stream, false)
LAUNCH(cuGraphLaunch_ptsz, (CUgraphExec executable, CUstream stream), (executable, stream), executable, 0, stream, true)

/* The calls from before CUDA 4.0, which the newest drivers still have. */
#define AREA (width > 0 && height > 0 ? blocks_of((unsigned)width, (unsigned)height, 1) : 0)

LAUNCH(cuLaunch, (CUfunction function), (function), function, 1, NULL, false)
LAUNCH(cuLaunchGrid, (CUfunction function, int width, int height), (function, width, height), function, AREA, NULL,
       false)
LAUNCH(cuLaunchGridAsync, (CUfunction function, int width, int height, CUstream stream),
       (function, width, height, stream), function, AREA, stream, false)
