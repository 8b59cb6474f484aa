/* The calls of the null driver that answer something: one device of 16 GiB, one context, instant kernels. */
#include "null.h"
#include "tf_cuda.h"

#define MEMORY_BYTES (16ull << 30)
#define ONLY ((void *)1)

NULL_EXPORT CUresult cuDriverGetVersion(int *version) {
  *version = 12040;
  return CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = 0;
  return ordinal ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuDeviceGetUuid(CUuuid *id, CUdevice device) {
  *id = (CUuuid){{0}};
  return device ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *id, CUdevice device) { return cuDeviceGetUuid(id, device); }
NULL_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  *bytes = MEMORY_BYTES;
  return device ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = ONLY;
  return device ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = ONLY;
  return CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
  *device = 0;
  return CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
  *free_bytes = *total_bytes = MEMORY_BYTES;
  return CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
  static CUdeviceptr next = 1ull << 40;
  *address = next += (bytes + 511) & ~511ull;
  return CUDA_SUCCESS;
}
NULL_EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags) {
  (void)flags;
  *event = ONLY;
  return CUDA_SUCCESS;
}
/* A nanosecond: launches are admitted faster than any share could hold them back. */
NULL_EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  (void)start, (void)end;
  *milliseconds = 1e-6f;
  return CUDA_SUCCESS;
}
