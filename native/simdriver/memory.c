/* Device memory: one ledger per device, contents committed by the kernel when first touched. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "tf_sizes.h"

struct tf_table sim_memory = TF_TABLE_INIT;
static struct CUmemPool_st {
  uint32_t device;
  bool destroyed; /* goes with its last allocation */
  _Atomic uint64_t threshold;
  uint64_t used, reserved, used_high, reserved_high;
  pthread_mutex_t lock;
} default_pools[SIM_DEVICES];
static CUmemoryPool current_pools[SIM_DEVICES];
static pthread_mutex_t pools_guard = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t allocations;
_Atomic bool sim_any_hosted;

/* TF_SIM_FAIL_ALLOCATION=n makes every n-th allocation fail, as a driver may at any time. */
static bool injected_failure(void) {
  static uint64_t every = UINT64_MAX;
  if (every == UINT64_MAX) {
    const char *text = getenv("TF_SIM_FAIL_ALLOCATION");
    every = text ? strtoull(text, NULL, 10) : 0;
  }
  return every && (atomic_fetch_add(&allocations, 1) + 1) % every == 0;
}

CUresult sim_charge(uint32_t device, uint64_t bytes) {
  CUresult result = CUDA_SUCCESS;
  sim_lock();
  struct sim_device *card = sim_card(device);
  if (bytes > card->memory_bytes - card->used_bytes) sim_reclaim_dead();
  if (bytes > card->memory_bytes - card->used_bytes || injected_failure()) result = CUDA_ERROR_OUT_OF_MEMORY;
  else {
    card->used_bytes += bytes;
    sim->processes[sim_self()].device[sim_physical(device)].used_bytes += bytes;
  }
  sim_unlock();
  return result;
}

void sim_uncharge(uint32_t device, uint64_t bytes) {
  sim_lock();
  sim_card(device)->used_bytes -= bytes;
  sim->processes[sim_self()].device[sim_physical(device)].used_bytes -= bytes;
  sim_unlock();
}

void *sim_backing(uint64_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

static CUresult allocate(CUdeviceptr *address, uint64_t bytes, uint32_t kind) {
  CUresult result = sim_check();
  if (result) return result;
  if (!address || !bytes) return CUDA_ERROR_INVALID_VALUE;
  bytes = tf_rounded(bytes);
  uint32_t device = sim_current()->device;
  result = sim_charge(device, bytes);
  if (result && kind == MANAGED) kind = HOSTED;
  else if (result) return result;
  void *memory = sim_backing(bytes);
  struct tf_entry entry = {.key = (uint64_t)(uintptr_t)memory,
                           .bytes = bytes,
                           .kind = kind,
                           .device = device,
                           .owner = (uint64_t)(uintptr_t)sim_current()};
  if (!memory || !tf_table_put(&sim_memory, &entry)) {
    if (kind != HOSTED) sim_uncharge(device, bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (kind == HOSTED) atomic_store(&sim_any_hosted, true);
  *address = entry.key;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) { return allocate(address, bytes, PLAIN); }

SIM_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned flags) {
  return flags == 1 || flags == 2 ? allocate(address, bytes, MANAGED) : CUDA_ERROR_INVALID_VALUE;
}

struct move {
  uint32_t from, to;
  bool advised; /* HOSTED by advice stays there */
  bool done;
  struct tf_entry after;
};

static bool change_place(struct tf_entry *entry, void *context) {
  struct move *move = context;
  move->done = entry->kind == move->from && !(move->to == MANAGED && entry->mappings);
  if (move->done) entry->kind = move->to;
  if (move->advised && (move->done || entry->kind == HOSTED)) entry->mappings = 1;
  move->after = *entry;
  return false;
}

/* All of an allocation is in one place: the pages of a real device move one by one. */
SIM_EXPORT CUresult cuMemAdvise(CUdeviceptr address, size_t bytes, int advice, CUdevice device) {
  CUresult result = sim_check();
  if (result) return result;
  struct tf_entry entry;
  if (!bytes || !tf_table_get(&sim_memory, address, &entry) || (entry.kind != MANAGED && entry.kind != HOSTED))
    return CUDA_ERROR_INVALID_VALUE;
  if (advice != CU_MEM_ADVISE_SET_PREFERRED_LOCATION || device != CU_DEVICE_CPU) return CUDA_SUCCESS;
  struct move move = {.from = MANAGED, .to = HOSTED, .advised = true};
  tf_table_change(&sim_memory, address, change_place, &move);
  if (move.done) sim_uncharge(move.after.device, move.after.bytes);
  atomic_store(&sim_any_hosted, true);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAdvise_v2(CUdeviceptr address, size_t bytes, int advice, CUmemLocation location) {
  bool on_device = location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  return cuMemAdvise(address, bytes, advice, on_device ? location.id : CU_DEVICE_CPU);
}

static bool holds(const struct tf_entry *entry, void *context) {
  uint64_t address = *(uint64_t *)context;
  return entry->kind != PHYSICAL && address >= entry->key && address - entry->key < entry->bytes;
}

/* Where host memory is touched, its bytes pass the link. Managed memory moves in first, if there is room by now. */
uint64_t sim_touch_ns(uint64_t address, uint64_t bytes) {
  struct tf_entry entry, physical;
  if (!atomic_load(&sim_any_hosted) || !tf_table_find(&sim_memory, holds, &address, &entry)) return 0;
  double per_ns = (double)sim_card(sim_current()->device)->bytes_per_second / 1e9;
  if (entry.kind == MAPPED && tf_table_get(&sim_memory, entry.owner, &physical) && physical.device == SIM_NONE)
    return (uint64_t)((double)bytes / per_ns);
  if (entry.kind != HOSTED) return 0;
  if (entry.mappings || sim_charge(entry.device, entry.bytes)) return (uint64_t)((double)bytes / per_ns);
  struct move move = {.from = HOSTED, .to = MANAGED};
  if (!tf_table_change(&sim_memory, entry.key, change_place, &move) || !move.done)
    sim_uncharge(entry.device, entry.bytes);
  return (uint64_t)((double)entry.bytes / per_ns);
}

SIM_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height,
                                       unsigned element) {
  if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = allocate(address, tf_product(tf_rounded(width), height), PLAIN);
  if (!result) *pitch = tf_rounded(width);
  return result;
}

static void return_to_pool(CUmemoryPool pool, uint64_t bytes, uint64_t keep) {
  pthread_mutex_lock(&pool->lock);
  pool->used -= bytes;
  uint64_t wanted = pool->used > keep ? pool->used : keep;
  uint64_t surplus = pool->reserved > wanted ? pool->reserved - wanted : 0;
  pool->reserved -= surplus;
  bool last = pool->destroyed && !pool->used;
  uint32_t device = pool->device;
  pthread_mutex_unlock(&pool->lock);
  if (last) {
    pthread_mutex_destroy(&pool->lock);
    free(pool);
  }
  if (surplus) sim_uncharge(device, surplus);
}

static bool is_freed_by_address(const struct tf_entry *entry) {
  return entry->kind == PLAIN || entry->kind == STREAM_ORDERED || entry->kind == MANAGED || entry->kind == HOSTED;
}

static CUresult free_any(CUdeviceptr address) {
  CUresult result = sim_check();
  if (result || !address) return result;
  struct tf_entry entry;
  if (!tf_table_get(&sim_memory, address, &entry) || !is_freed_by_address(&entry) ||
      !tf_table_take(&sim_memory, address, &entry))
    return CUDA_ERROR_INVALID_VALUE;
  munmap((void *)(uintptr_t)address, entry.bytes);
  if (entry.shared) sim_memory_unshare(&entry);
  CUmemoryPool pool = (CUmemoryPool)(uintptr_t)entry.owner;
  if (entry.kind == STREAM_ORDERED) return_to_pool(pool, entry.bytes, pool->threshold);
  else if (entry.kind != HOSTED && !entry.shared) sim_uncharge(entry.device, entry.bytes);
  return CUDA_SUCCESS;
}

static bool of_context(const struct tf_entry *entry, void *context) {
  bool owned = entry->kind == PLAIN || entry->kind == ARRAY || entry->kind == MANAGED || entry->kind == HOSTED ||
               entry->kind == OPENED;
  return owned && entry->owner == (uint64_t)(uintptr_t)context;
}

void sim_memory_forget(CUcontext context) {
  struct tf_entry entry;
  while (tf_table_take_match(&sim_memory, of_context, context, &entry)) {
    munmap((void *)(uintptr_t)entry.key, entry.bytes);
    if (entry.shared) sim_memory_unshare(&entry);
    else if (entry.kind != HOSTED) sim_uncharge(entry.device, entry.bytes);
  }
}

SIM_EXPORT CUresult cuMemFree_v2(CUdeviceptr address) { return free_any(address); }

static CUmemoryPool pool_of(uint32_t device) {
  struct CUmemPool_st *pool = &default_pools[device];
  pthread_mutex_lock(&pools_guard);
  if (!current_pools[device]) {
    pool->device = device;
    pthread_mutex_init(&pool->lock, NULL);
    current_pools[device] = pool;
  }
  pool = current_pools[device];
  pthread_mutex_unlock(&pools_guard);
  return pool;
}

static CUresult from_pool(CUdeviceptr *address, uint64_t bytes, CUmemoryPool pool, CUstream stream) {
  CUresult result = sim_check();
  if (result) return result;
  if (!address || !bytes) return CUDA_ERROR_INVALID_VALUE;
  bytes = tf_rounded(bytes);
  if (sim_capture_of(stream)) return sim_graph_memory(sim_capture_of(stream), bytes, address);
  if (!pool) pool = pool_of(sim_current()->device);
  pthread_mutex_lock(&pool->lock);
  uint64_t growth = pool->used + bytes > pool->reserved ? pool->used + bytes - pool->reserved : 0;
  result = growth ? sim_charge(pool->device, growth) : CUDA_SUCCESS;
  if (!result) {
    pool->reserved += growth;
    pool->used += bytes;
    if (pool->used > pool->used_high) pool->used_high = pool->used;
    if (pool->reserved > pool->reserved_high) pool->reserved_high = pool->reserved;
  }
  pthread_mutex_unlock(&pool->lock);
  if (result) return result;
  void *memory = sim_backing(bytes);
  struct tf_entry entry = {.key = (uint64_t)(uintptr_t)memory,
                           .bytes = bytes,
                           .kind = STREAM_ORDERED,
                           .device = pool->device,
                           .owner = (uint64_t)(uintptr_t)pool};
  if (!memory || !tf_table_put(&sim_memory, &entry)) {
    return_to_pool(pool, bytes, pool->threshold);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *address = entry.key;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream) {
  return from_pool(address, bytes, NULL, stream);
}
SIM_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream stream) {
  return from_pool(address, bytes, NULL, stream);
}
SIM_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream) {
  return pool ? from_pool(address, bytes, pool, stream) : CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *address, size_t bytes, CUmemoryPool pool,
                                                 CUstream stream) {
  return cuMemAllocFromPoolAsync(address, bytes, pool, stream);
}
SIM_EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
  return sim_capture_of(stream) ? CUDA_SUCCESS : free_any(address);
}
SIM_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream stream) {
  return cuMemFreeAsync(address, stream);
}

SIM_EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  pool_of((uint32_t)device);
  *pool = &default_pools[device];
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) {
  CUresult result = cuDeviceGetDefaultMemPool(pool, device);
  if (!result && sim_visible(&device)) *pool = pool_of((uint32_t)device);
  return result;
}

SIM_EXPORT CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
  CUmemoryPool ignored;
  CUresult result = cuDeviceGetDefaultMemPool(&ignored, device);
  if (result || !sim_visible(&device)) return result;
  if (!pool) return CUDA_ERROR_INVALID_VALUE;
  pthread_mutex_lock(&pools_guard);
  current_pools[device] = pool;
  pthread_mutex_unlock(&pools_guard);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties) {
  CUresult result = sim_initialised();
  if (result) return result;
  CUdevice device = properties->location.id;
  if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE || !sim_visible(&device))
    return CUDA_ERROR_INVALID_VALUE;
  CUmemoryPool made = calloc(1, sizeof *made);
  if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
  made->device = (uint32_t)device;
  pthread_mutex_init(&made->lock, NULL);
  *pool = made;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!pool || pool == &default_pools[pool->device]) return CUDA_ERROR_INVALID_VALUE;
  /* The device allocates from its default pool again. */
  pthread_mutex_lock(&pools_guard);
  if (current_pools[pool->device] == pool) current_pools[pool->device] = &default_pools[pool->device];
  pthread_mutex_unlock(&pools_guard);
  pthread_mutex_lock(&pool->lock);
  pool->destroyed = true;
  pthread_mutex_unlock(&pool->lock);
  return_to_pool(pool, 0, 0);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
  CUresult result = sim_initialised();
  if (!result) return_to_pool(pool, 0, keep);
  return result;
}

SIM_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value) {
  CUresult result = sim_initialised();
  if (!result && attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) pool->threshold = *(uint64_t *)value;
  return result;
}

SIM_EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value) {
  CUresult result = sim_initialised();
  if (result) return result;
  pthread_mutex_lock(&pool->lock);
  const uint64_t values[] = {pool->threshold, pool->reserved, pool->reserved_high, pool->used, pool->used_high};
  pthread_mutex_unlock(&pool->lock);
  if (attribute < CU_MEMPOOL_ATTR_RELEASE_THRESHOLD || attribute > CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    return CUDA_ERROR_NOT_SUPPORTED;
  *(uint64_t *)value = values[attribute - CU_MEMPOOL_ATTR_RELEASE_THRESHOLD];
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
  CUresult result = sim_check();
  if (result) return result;
  sim_lock();
  const struct sim_device *card = sim_card(sim_current()->device);
  *free_bytes = card->memory_bytes - card->used_bytes;
  *total_bytes = card->memory_bytes;
  sim_unlock();
  return CUDA_SUCCESS;
}

/* --- Arrays --- */

static CUresult make_array(void **array, uint64_t bytes) {
  CUdeviceptr address;
  CUresult result = allocate(&address, bytes, ARRAY);
  if (!result) *array = (void *)(uintptr_t)address;
  return result;
}

static CUresult drop_array(void *array) {
  CUresult result = sim_check();
  struct tf_entry entry;
  if (result) return result;
  uint64_t key = (uint64_t)(uintptr_t)array;
  if (!tf_table_get(&sim_memory, key, &entry) || entry.kind != ARRAY || !tf_table_take(&sim_memory, key, &entry))
    return CUDA_ERROR_INVALID_HANDLE;
  munmap(array, entry.bytes);
  sim_uncharge(entry.device, entry.bytes);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *shape) {
  CUDA_ARRAY3D_DESCRIPTOR full = {
      .Width = shape->Width, .Height = shape->Height, .Format = shape->Format, .NumChannels = shape->NumChannels};
  return make_array((void **)array, tf_array_bytes(&full, 0));
}
SIM_EXPORT CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *shape) {
  return make_array((void **)array, tf_array_bytes(shape, 0));
}
SIM_EXPORT CUresult cuArrayDestroy(CUarray array) { return drop_array(array); }
SIM_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *array, const CUDA_ARRAY3D_DESCRIPTOR *shape,
                                           unsigned levels) {
  return make_array((void **)array, tf_mipmap_bytes(shape, levels));
}
SIM_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray array) { return drop_array(array); }

/* --- Checkpoints --- */

struct sweep {
  sim_visit *visit;
  void *context;
};

static bool sweep_one(const struct tf_entry *entry, void *context) {
  const struct sweep *sweep = context;
  bool addressed = entry->kind == PLAIN || entry->kind == STREAM_ORDERED || entry->kind == ARRAY;
  bool handled = entry->kind == PHYSICAL && entry->device != SIM_NONE;
  return (addressed || handled) &&
         !sweep->visit(entry->key, entry->bytes, handled ? (int)entry->owner : -1, sweep->context);
}

bool sim_memory_sweep(sim_visit *visit, void *context) {
  struct sweep sweep = {visit, context};
  struct tf_entry ignored;
  return !tf_table_find(&sim_memory, sweep_one, &sweep, &ignored);
}
