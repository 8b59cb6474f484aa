/* Device queries, error texts and the seam by which other libraries share the simulated clock. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

CUresult sim_cuda_version(int *version) {
  if (sim_open(NULL)) return CUDA_ERROR_NO_DEVICE;
  *version = (int)sim->cuda_version;
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuDriverGetVersion(int *version) { return sim_cuda_version(version); }

SIM_EXPORT CUresult cuDeviceGetCount(int *count) {
  CUresult result = sim_initialised();
  if (!result) *count = (int)sim_visible_count();
  return result;
}

SIM_EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  CUresult result = sim_initialised();
  if (result) return result;
  CUdevice index = ordinal;
  if (!sim_visible(&index)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  snprintf(name, (size_t)length, "%s", sim_card((uint32_t)device)->name);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  sim_uuid(sim_card((uint32_t)device), uuid);
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

SIM_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = sim_card((uint32_t)device)->memory_bytes;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  *major = (int)sim_card((uint32_t)device)->major;
  *minor = (int)sim_card((uint32_t)device)->minor;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  const struct sim_device *card = sim_card((uint32_t)device);
  /* Numbers of CUdevice_attribute in the driver's ABI. */
  switch (attribute) {
    case 1: *value = 1024; break;                        /* threads per block */
    case 10: *value = 32; break;                         /* warp size */
    case 13: *value = (int)card->clock_mhz * 1000; break; /* kHz */
    case 16: *value = (int)card->sms; break;             /* multiprocessors */
    case 33: *value = 0; break;                          /* PCI bus, device, domain */
    case 34: *value = device; break;
    case 39: *value = (int)card->threads_per_sm; break;
    case 40: *value = 2; break; /* copy engines */
    case 50: *value = 0; break;
    case 75: *value = (int)card->major; break;
    case 76: *value = (int)card->minor; break;
    case 83:
    case 95:
    case 102:
    case 115: *value = 1; break; /* managed, cooperative, virtual memory, pools */
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  snprintf(text, (size_t)length, "0000:%02x:00.0", (unsigned)device);
  return CUDA_SUCCESS;
}

static const struct {
  CUresult code;
  const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};

static CUresult describe(CUresult code, const char **text, bool name) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) {
      *text = name ? errors[i].name : errors[i].text;
      return CUDA_SUCCESS;
    }
  *text = NULL;
  return CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuGetErrorString(CUresult code, const char **text) { return describe(code, text, false); }
SIM_EXPORT CUresult cuGetErrorName(CUresult code, const char **text) { return describe(code, text, true); }

/* The limiter and the load generator wait on this clock when it is virtual. */
SIM_EXPORT int tfSimVirtual(void) { return !sim_open(NULL) && sim->virtual_time; }
SIM_EXPORT uint64_t tfSimNow(void) { return sim_now(); }
SIM_EXPORT void tfSimWaitUntil(uint64_t when_ns) { sim_wait_until(when_ns); }

/* The truth about this process and about all, for tests: bytes used and nanoseconds busy. */
SIM_EXPORT int tfSimTruth(int device, uint64_t *own_bytes, uint64_t *all_bytes, uint64_t *own_busy_ns,
                          uint64_t *all_busy_ns) {
  if (sim_open(NULL) || !sim_visible(&device)) return -1;
  sim_lock();
  sim_advance(sim_now());
  const struct sim_process_device *own = &sim->processes[sim_self()].device[sim_physical((uint32_t)device)];
  *own_bytes = own->used_bytes;
  *own_busy_ns = own->busy_ns;
  *all_bytes = sim_card((uint32_t)device)->used_bytes;
  *all_busy_ns = sim_card((uint32_t)device)->busy_ns;
  sim_unlock();
  return 0;
}
