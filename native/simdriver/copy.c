/* Copies, memset and pinned host memory. Contents move at once, the time passes on a copy engine. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { TO_DEVICE = 0, TO_HOST = 1 };

static CUresult move(void *to, const void *from, size_t bytes, uint8_t engine, CUstream stream, bool per_thread,
                     bool wait) {
  CUresult result = sim_check();
  if (result) return result;
  if (sim_capture_of(stream)) return CUDA_ERROR_NOT_SUPPORTED;
  memmove(to, from, bytes);
  const struct sim_device *card = sim_card(sim_current()->device);
  uint32_t slot = sim_resolve_stream(stream, per_thread);
  struct sim_command command = {.kind = SIM_COPY, .engine = engine};
  command.duration_ns = 1000 + (uint64_t)((double)bytes * 1e9 / (double)card->bytes_per_second);
  result = sim_enqueue(slot, command);
  if (wait && !result) sim_stream_wait(slot);
  return result;
}

static void *host(CUdeviceptr address) { return (void *)(uintptr_t)address; }

#define BOTH(name, suffix, declared, call)    \
  SIM_EXPORT CUresult name declared {         \
    const bool per_thread = false;            \
    return call;                              \
  }                                           \
  SIM_EXPORT CUresult name##suffix declared { \
    const bool per_thread = true;             \
    return call;                              \
  }

BOTH(cuMemcpy, _ptds, (CUdeviceptr to, CUdeviceptr from, size_t bytes),
     move(host(to), host(from), bytes, TO_DEVICE, NULL, per_thread, true))
BOTH(cuMemcpyHtoD_v2, _ptds, (CUdeviceptr to, const void *from, size_t bytes),
     move(host(to), from, bytes, TO_DEVICE, NULL, per_thread, true))
BOTH(cuMemcpyDtoH_v2, _ptds, (void *to, CUdeviceptr from, size_t bytes),
     move(to, host(from), bytes, TO_HOST, NULL, per_thread, true))
BOTH(cuMemcpyDtoD_v2, _ptds, (CUdeviceptr to, CUdeviceptr from, size_t bytes),
     move(host(to), host(from), bytes, TO_DEVICE, NULL, per_thread, true))
BOTH(cuMemcpyAsync, _ptsz, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream),
     move(host(to), host(from), bytes, TO_DEVICE, stream, per_thread, false))
BOTH(cuMemcpyHtoDAsync_v2, _ptsz, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream),
     move(host(to), from, bytes, TO_DEVICE, stream, per_thread, false))
BOTH(cuMemcpyDtoHAsync_v2, _ptsz, (void *to, CUdeviceptr from, size_t bytes, CUstream stream),
     move(to, host(from), bytes, TO_HOST, stream, per_thread, false))

static CUresult fill(CUdeviceptr to, unsigned value, size_t count, size_t width) {
  CUresult result = sim_check();
  if (result) return result;
  if (width == 1) memset(host(to), (int)value, count);
  else
    for (size_t i = 0; i < count; i++) ((unsigned *)host(to))[i] = value;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
  return fill(to, value, count, 1);
}
SIM_EXPORT CUresult cuMemsetD8_v2_ptds(CUdeviceptr to, unsigned char value, size_t count) {
  return fill(to, value, count, 1);
}
SIM_EXPORT CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) { return fill(to, value, count, 4); }
SIM_EXPORT CUresult cuMemsetD32_v2_ptds(CUdeviceptr to, unsigned value, size_t count) {
  return fill(to, value, count, 4);
}

SIM_EXPORT CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
  (void)flags;
  CUresult result = sim_check();
  if (result) return result;
  *address = bytes ? malloc(bytes) : NULL;
  return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
SIM_EXPORT CUresult cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
SIM_EXPORT CUresult cuMemFreeHost(void *address) {
  CUresult result = sim_check();
  if (!result) free(address);
  return result;
}
