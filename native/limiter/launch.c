/* Launch calls: admit, launch, tell how it went. */
#include "limiter.h"

static uint64_t blocks_of(unsigned x, unsigned y, unsigned z) { return (uint64_t)x * y * z; }

#define CHARGED(key, blocks, stream, per_thread, call)                                          \
  struct tf_launch launch;                                                                      \
  CUresult result = tf_admit(&launch, (uint64_t)(uintptr_t)(key), blocks, stream, per_thread);  \
  if (result) return result;                                                                    \
  result = call;                                                                                \
  if (launch.sample || (result && launch.cost)) tf_launched(&launch, result);                                                \
  return result

#define KERNEL(name, per_thread)                                                                              \
  TF_EXPORT CUresult name(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,             \
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,        \
                          CUstream stream, void **parameters, void **extra) {                                 \
    CHARGED(function, blocks_of(grid_x, grid_y, grid_z), stream, per_thread,                                  \
            REAL(name)(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream,     \
                       parameters, extra));                                                                   \
  }
KERNEL(cuLaunchKernel, false)
KERNEL(cuLaunchKernel_ptsz, true)

#define COOPERATIVE(name, per_thread)                                                                         \
  TF_EXPORT CUresult name(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,             \
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,        \
                          CUstream stream, void **parameters) {                                               \
    CHARGED(function, blocks_of(grid_x, grid_y, grid_z), stream, per_thread,                                  \
            REAL(name)(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream,     \
                       parameters));                                                                          \
  }
COOPERATIVE(cuLaunchCooperativeKernel, false)
COOPERATIVE(cuLaunchCooperativeKernel_ptsz, true)

#define EXTENDED(name, per_thread)                                                                            \
  TF_EXPORT CUresult name(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) { \
    if (!config) return REAL(name)(config, function, parameters, extra);                                      \
    CHARGED(function, blocks_of(config->gridDimX, config->gridDimY, config->gridDimZ), config->hStream,       \
            per_thread, REAL(name)(config, function, parameters, extra));                                     \
  }
EXTENDED(cuLaunchKernelEx, false)
EXTENDED(cuLaunchKernelEx_ptsz, true)

#define GRAPH(name, per_thread)                                                     \
  TF_EXPORT CUresult name(CUgraphExec executable, CUstream stream) {                \
    CHARGED(executable, 0, stream, per_thread, REAL(name)(executable, stream));     \
  }
GRAPH(cuGraphLaunch, false)
GRAPH(cuGraphLaunch_ptsz, true)
