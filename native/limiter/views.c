/* What the tenant sees: its own limit as the device's memory, its own processes as the device's processes. */
#include "limiter.h"

#include <string.h>

#define HANDLES 64u
#define PROCESS_ROWS 1024u

TF_EXPORT CUresult cuInit(unsigned flags) {
  tf_load_driver();
  tf_attach();
  CUresult result = REAL(cuInit)(flags);
  return !result && tf_attach() == TF_BROKEN && tf_refused() ? CUDA_ERROR_NOT_PERMITTED : result;
}

static uint64_t cap_of(int row) { return row == TF_NO_ROW ? 0 : tf_view()->rows[row].vram_bytes; }

/* Both from one read of the ledger, so that they always add up. */
static void memory_of(int row, uint64_t cap, uint64_t *free_bytes) {
  uint64_t used = tf_used(row);
  *free_bytes = used < cap ? cap - used : 0;
}

TF_EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
  CUdevice device;
  if (!tf_view()) return REAL(cuMemGetInfo_v2)(free_bytes, total_bytes);
  CUresult result = REAL(cuCtxGetDevice)(&device);
  int row = result ? TF_NO_ROW : tf_row_of_device(device);
  uint64_t cap = cap_of(row), left;
  if (!cap || !free_bytes || !total_bytes) return REAL(cuMemGetInfo_v2)(free_bytes, total_bytes);
  memory_of(row, cap, &left);
  *total_bytes = cap;
  *free_bytes = left;
  return CUDA_SUCCESS;
}

TF_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  CUresult result = REAL(cuDeviceTotalMem_v2)(bytes, device);
  uint64_t cap = result ? 0 : cap_of(tf_row_of_device(device));
  if (cap && cap < *bytes) *bytes = cap;
  return result;
}

static int row_of_handle(nvmlDevice_t device) {
  static struct {
    nvmlDevice_t device;
    int row;
  } known[HANDLES];
  static _Atomic unsigned count;
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  for (unsigned i = 0; i < atomic_load(&count); i++)
    if (known[i].device == device) return known[i].row;
  char uuid[96];
  if (!tf_view() || REAL(nvmlDeviceGetUUID)(device, uuid, sizeof uuid)) return TF_NO_ROW;
  int row = tf_row_of_uuid(uuid);
  pthread_mutex_lock(&lock);
  unsigned at = atomic_load(&count);
  if (at < HANDLES) {
    known[at].device = device;
    known[at].row = row;
    atomic_store(&count, at + 1);
  }
  pthread_mutex_unlock(&lock);
  return row;
}

TF_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
  nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo)(device, memory);
  int row = result ? TF_NO_ROW : row_of_handle(device);
  uint64_t cap = cap_of(row), left;
  if (!cap) return result;
  memory_of(row, cap, &left);
  *memory = (nvmlMemory_t){.total = cap, .free = left, .used = cap - left};
  return result;
}

TF_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
  nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo_v2)(device, memory);
  int row = result ? TF_NO_ROW : row_of_handle(device);
  uint64_t cap = cap_of(row), left;
  if (!cap) return result;
  memory_of(row, cap, &left);
  memory->total = cap;
  memory->free = left;
  memory->used = cap - left;
  memory->reserved = 0;
  return result;
}

static bool is_ours(unsigned pid, uint64_t space) {
  for (uint32_t i = 0; i < TF_PROCESSES; i++)
    if (atomic_load(&tf_ledger->processes[i].pid) == pid && tf_ledger->processes[i].pid_namespace == space) return true;
  return false;
}

/* The rows differ in size by version and begin with the process id. */
static nvmlReturn_t own_processes(call_nvmlDeviceGetComputeRunningProcesses *real, nvmlDevice_t device, unsigned *count,
                                  char *rows, size_t row_bytes) {
  static __thread char all[PROCESS_ROWS * sizeof(nvmlProcessInfo_v2_t)];
  unsigned found = PROCESS_ROWS, kept = 0;
  if (row_of_handle(device) == TF_NO_ROW || !count) return real(device, count, rows);
  nvmlReturn_t result = real(device, &found, all);
  if (result) return result;
  uint64_t space = tf_pid_namespace();
  for (unsigned i = 0; i < found; i++) {
    const char *row = all + i * row_bytes;
    unsigned pid;
    memcpy(&pid, row, sizeof pid);
    if (!is_ours(pid, space)) continue;
    if (rows && kept < *count) memcpy(rows + kept * row_bytes, row, row_bytes);
    kept++;
  }
  bool fits = rows ? kept <= *count : !kept;
  *count = kept;
  return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

TF_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned *count, void *rows) {
  return own_processes(REAL(nvmlDeviceGetComputeRunningProcesses), device, count, rows, sizeof(nvmlProcessInfo_v1_t));
}
TF_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count, void *rows) {
  return own_processes(REAL(nvmlDeviceGetComputeRunningProcesses_v2), device, count, rows,
                       sizeof(nvmlProcessInfo_v2_t));
}
TF_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, void *rows) {
  return own_processes(REAL(nvmlDeviceGetComputeRunningProcesses_v3), device, count, rows,
                       sizeof(nvmlProcessInfo_v2_t));
}
