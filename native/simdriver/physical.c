/* Virtual memory management: physical handles apart from addresses, and file descriptors of them for other processes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

#define NUMBER 0x5000000000000000ull /* handles are no addresses */
#define EXPORTABLE (1ull << 32) /* beside the file in an entry's owner */

static _Atomic uint64_t next = 1;

#define GRANULARITY (2ull << 20)

SIM_EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties, int option) {
  (void)properties, (void)option;
  *bytes = GRANULARITY;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                                        unsigned long long flags) {
  (void)alignment, (void)hint, (void)flags;
  CUresult result = sim_initialised();
  if (result) return result;
  if (!bytes || bytes % GRANULARITY) return CUDA_ERROR_INVALID_VALUE;
  void *memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = (CUdeviceptr)(uintptr_t)memory;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  CUresult result = sim_initialised();
  if (!result) munmap((void *)(uintptr_t)address, bytes);
  return result;
}

SIM_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                                const CUmemAllocationProp *properties, unsigned long long flags) {
  (void)flags;
  CUresult result = sim_initialised();
  if (result) return result;
  bool on_device = properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  if (!bytes || bytes % GRANULARITY) return CUDA_ERROR_INVALID_VALUE;
  CUdevice index = properties->location.id;
  if (on_device && !sim_visible(&index)) return CUDA_ERROR_INVALID_DEVICE;
  uint32_t device = on_device ? (uint32_t)index : SIM_NONE;
  bool exportable = properties->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  if (on_device && (result = sim_charge(device, bytes))) return result;
  int file = memfd_create("device-memory", MFD_CLOEXEC);
  struct tf_entry entry = {.key = NUMBER + atomic_fetch_add(&next, 1),
                           .bytes = bytes,
                           .kind = PHYSICAL,
                           .device = device,
                           .owner = (uint32_t)file | (exportable ? EXPORTABLE : 0),
                           .handles = 1};
  if (file < 0 || ftruncate(file, (off_t)bytes) || !tf_table_put(&sim_memory, &entry)) {
    if (file >= 0) close(file);
    if (on_device) sim_uncharge(device, bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (!on_device) atomic_store(&sim_any_hosted, true);
  *handle = entry.key;
  return CUDA_SUCCESS;
}

struct reference {
  int handles, mappings;
  bool refused;
  struct tf_entry after;
};

static bool refer(struct tf_entry *entry, void *context) {
  struct reference *change = context;
  change->refused = entry->kind != PHYSICAL || (change->handles < 0 && !entry->handles);
  if (change->refused) return false;
  entry->handles = (uint32_t)((int)entry->handles + change->handles);
  entry->mappings = (uint32_t)((int)entry->mappings + change->mappings);
  change->after = *entry;
  return !entry->handles && !entry->mappings;
}

static CUresult change_references(uint64_t handle, int handles, int mappings, struct tf_entry *after) {
  struct reference change = {.handles = handles, .mappings = mappings};
  if (!tf_table_change(&sim_memory, handle, refer, &change) || change.refused) return CUDA_ERROR_INVALID_VALUE;
  if (!change.after.handles && !change.after.mappings) {
    close((int)change.after.owner);
    if (change.after.shared) sim_unshare(change.after.shared);
    else if (change.after.device != SIM_NONE) sim_uncharge(change.after.device, change.after.bytes);
  }
  if (after) *after = change.after;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  CUresult result = sim_initialised();
  return result ? result : change_references(handle, -1, 0, NULL);
}

SIM_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
  CUresult result = sim_initialised();
  struct tf_entry mapping;
  if (result) return result;
  if (!tf_table_get(&sim_memory, (uint64_t)(uintptr_t)address, &mapping) || mapping.kind != MAPPED)
    return CUDA_ERROR_INVALID_VALUE;
  *handle = mapping.owner;
  return change_references(mapping.owner, 1, 0, NULL);
}

SIM_EXPORT CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                             unsigned long long flags) {
  struct tf_entry physical, mapping = {.key = address, .bytes = bytes, .kind = MAPPED, .owner = handle};
  CUresult result = sim_initialised();
  if (result) return result;
  if (flags || !bytes || bytes % GRANULARITY) return CUDA_ERROR_INVALID_VALUE;
  if ((result = change_references(handle, 0, 1, &physical))) return result;
  int file = (int)physical.owner;
  void *wanted = (void *)(uintptr_t)address;
  if (offset + bytes > physical.bytes || tf_table_get(&sim_memory, address, NULL) ||
      mmap(wanted, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file, (off_t)offset) == MAP_FAILED ||
      !tf_table_put(&sim_memory, &mapping)) {
    change_references(handle, 0, -1, NULL);
    return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count) {
  CUresult result = sim_initialised();
  if (result) return result;
  int protection = count && access->flags == 3 ? PROT_READ | PROT_WRITE : count && access->flags == 1 ? PROT_READ : 0;
  return mprotect((void *)(uintptr_t)address, bytes, protection) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

struct range {
  uint64_t from, to;
};

static bool inside(const struct tf_entry *entry, void *context) {
  const struct range *range = context;
  return entry->kind == MAPPED && entry->key >= range->from && entry->key < range->to;
}

SIM_EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  CUresult result = sim_initialised();
  if (result) return result;
  struct range range = {address, address + bytes};
  struct tf_entry mapping;
  bool any = false;
  while (tf_table_take_match(&sim_memory, inside, &range, &mapping)) {
    any = true;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap((void *)(uintptr_t)mapping.key, mapping.bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED)
      result = CUDA_ERROR_OUT_OF_MEMORY;
    change_references(mapping.owner, 0, -1, NULL);
  }
  return any ? result : CUDA_ERROR_INVALID_VALUE;
}

static uint64_t inode_of(int file) {
  struct stat status;
  return fstat(file, &status) ? 0 : status.st_ino;
}

static bool set_shared(struct tf_entry *entry, void *context) {
  if (!entry->shared) entry->shared = sim_share(*(uint64_t *)context, sim_physical(entry->device), entry->bytes);
  return false;
}

/* Each export is an open file of its own, as the driver's are. A descriptor alone keeps no memory: while nobody has it
 * by a handle or a mapping it is gone, where the real one would still be there. */
SIM_EXPORT CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, int type,
                                                 unsigned long long flags) {
  CUresult result = sim_initialised();
  struct tf_entry entry;
  char path[40];
  if (result) return result;
  if (!shareable || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
      !tf_table_get(&sim_memory, handle, &entry) || entry.kind != PHYSICAL || !entry.handles ||
      !(entry.owner & EXPORTABLE) || entry.device == SIM_NONE)
    return CUDA_ERROR_INVALID_VALUE;
  uint64_t inode = inode_of((int)entry.owner);
  snprintf(path, sizeof path, "/proc/self/fd/%d", (int)entry.owner);
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  if (!tf_table_change(&sim_memory, handle, set_shared, &inode) || !tf_table_get(&sim_memory, handle, &entry) ||
      !entry.shared) {
    close(file);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *(int *)shareable = file;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable, int type) {
  CUresult result = sim_initialised();
  if (result) return result;
  int given = (int)(intptr_t)shareable;
  struct tf_entry entry = {.key = NUMBER + atomic_fetch_add(&next, 1), .kind = PHYSICAL, .handles = 1};
  if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
  int file = fcntl(given, F_DUPFD_CLOEXEC, 0);
  if (file >= 0) entry.shared = sim_shared_again(inode_of(file), &entry.device, &entry.bytes);
  entry.owner = (uint32_t)file | EXPORTABLE;
  if (entry.shared && tf_table_put(&sim_memory, &entry)) {
    *handle = entry.key;
    return CUDA_SUCCESS;
  }
  if (entry.shared) sim_unshare(entry.shared);
  if (file >= 0) close(file);
  return CUDA_ERROR_INVALID_VALUE;
}
