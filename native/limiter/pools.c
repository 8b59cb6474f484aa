/* Stream-ordered allocation. A pool keeps freed memory up to its release threshold, and what it keeps is still taken
 * from the device, so the charge follows the pool and not the pointer. */
#include <stdlib.h>

#include "limiter.h"
#include "tf_sizes.h"

struct pool {
  CUmemoryPool handle;
  int row;
  uint64_t used, reserved;
  _Atomic uint64_t threshold;
  struct pool *next;
};

static struct pool *pools;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over the list and all fields; never over a driver call */

void tf_pools_after_fork(void) {
  pthread_mutex_init(&lock, NULL);
  pools = NULL; /* the parent's records are left alone: the child cannot use the driver */
}

static struct pool *find(CUmemoryPool handle) {
  struct pool *pool = pools;
  while (pool && pool->handle != handle) pool = pool->next;
  return pool;
}

/* Lock held. A destroyed pool's record serves again once nothing of it is left. */
static struct pool *find_or_add(CUmemoryPool handle, int row) {
  struct pool *pool = find(handle);
  if (pool) return pool;
  for (pool = pools; pool && (pool->handle || pool->used || pool->reserved);) pool = pool->next;
  bool had = pool;
  if (!had && !(pool = calloc(1, sizeof *pool))) return NULL;
  pool->handle = handle;
  pool->row = row;
  pool->threshold = 0;
  if (had) return pool;
  pool->next = pools;
  return pools = pool;
}

/* Gives back what exceeds both use and `keep`. */
static void shrink(struct pool *pool, uint64_t freed, uint64_t keep) {
  pthread_mutex_lock(&lock);
  pool->used -= freed < pool->used ? freed : pool->used;
  uint64_t wanted = pool->used > keep ? pool->used : keep;
  uint64_t surplus = pool->reserved > wanted ? pool->reserved - wanted : 0;
  pool->reserved -= surplus;
  pthread_mutex_unlock(&lock);
  tf_release(pool->row, TF_POOL, surplus);
}

static void undo(struct pool *pool, uint64_t used, uint64_t growth) {
  pthread_mutex_lock(&lock);
  pool->used -= used;
  pool->reserved -= growth;
  pthread_mutex_unlock(&lock);
}

void tf_pool_freed(uint64_t pool, uint64_t bytes) {
  struct pool *known = (struct pool *)(uintptr_t)pool;
  shrink(known, bytes, known->threshold);
}

static CUresult call_driver(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream, bool per_thread,
                            bool from_pool) {
  if (from_pool) {
    call_cuMemAllocFromPoolAsync *real =
        per_thread ? REAL(cuMemAllocFromPoolAsync_ptsz) : REAL(cuMemAllocFromPoolAsync);
    return real(address, bytes, pool, stream);
  }
  call_cuMemAllocAsync *real = per_thread ? REAL(cuMemAllocAsync_ptsz) : REAL(cuMemAllocAsync);
  return real(address, bytes, stream);
}

/* The graph that a capturing stream builds; its memory counts when it is instantiated. */
static CUresult captured(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream, bool per_thread,
                         bool from_pool) {
  CUresult result = call_driver(address, bytes, pool, stream, per_thread, from_pool);
  call_cuStreamGetCaptureInfo_v2 *info =
      per_thread ? REAL(cuStreamGetCaptureInfo_v2_ptsz) : REAL(cuStreamGetCaptureInfo_v2);
  CUgraph graph = NULL;
  int status;
  if (!result && !info(stream, &status, NULL, &graph, NULL, NULL) && graph)
    tf_graph_add_bytes(graph, tf_rounded(bytes));
  return result;
}

/* Beside the pool: what is in host memory is not the pool's to keep. */
static CUresult spill(CUdeviceptr *address, uint64_t bytes, int row) {
  enum tf_class class = TF_PLAIN;
  CUcontext context = NULL;
  CUresult result = tf_reserve(row, class, bytes);
  if (result) return result;
  result = tf_spill(address, bytes, row, &class);
  REAL(cuCtxGetCurrent)(&context);
  if (result) tf_release(row, class, bytes);
  else tf_memory_remember(*address, bytes, class, row, (uint64_t)(uintptr_t)context);
  return result;
}

CUresult tf_pool_allocate(CUdeviceptr *address, size_t bytes, CUmemoryPool handle, CUstream stream, bool per_thread,
                          bool from_pool) {
  if (tf_is_capturing(stream, per_thread)) return captured(address, bytes, handle, stream, per_thread, from_pool);
  int row = tf_current_row();
  CUmemoryPool named = handle;
  CUdevice device = 0;
  if (row == TF_NO_ROW && !tf_refused()) return call_driver(address, bytes, handle, stream, per_thread, from_pool);
  if (!from_pool && (REAL(cuCtxGetDevice)(&device) || REAL(cuDeviceGetMemPool)(&named, device)))
    return CUDA_ERROR_INVALID_CONTEXT;
  uint64_t rounded = tf_rounded(bytes);
  for (bool again = true;; again = false) {
    pthread_mutex_lock(&lock);
    struct pool *pool = find_or_add(named, row);
    if (!pool) {
      pthread_mutex_unlock(&lock);
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint64_t growth = pool->used + rounded > pool->reserved ? pool->used + rounded - pool->reserved : 0;
    pool->used += rounded;
    pool->reserved += growth;
    pthread_mutex_unlock(&lock);
    CUresult result = tf_reserve(pool->row, TF_POOL, growth);
    if (result) {
      undo(pool, rounded, growth);
      /* Making room may have shrunk this very pool, and with it what it had to give. */
      if (again && pool->threshold) continue;
      return result;
    }
    TF_PATIENTLY(result, pool->row, TF_POOL, growth,
                 call_driver(address, bytes, handle, stream, per_thread, from_pool));
    if (result) {
      /* The driver's pool did not grow, so there is nothing to keep. */
      undo(pool, rounded, growth);
      tf_release(pool->row, TF_POOL, growth);
    }
    if (tf_spills(pool->row, result)) return spill(address, rounded, pool->row);
    if (!result) tf_memory_remember(*address, rounded, TF_POOL, pool->row, (uint64_t)(uintptr_t)pool);
    return result;
  }
}

bool tf_trim_pools(int row) {
  bool any = false;
  for (;;) {
    pthread_mutex_lock(&lock);
    struct pool *pool = pools;
    while (pool && (pool->row != row || pool->reserved <= pool->used)) pool = pool->next;
    pthread_mutex_unlock(&lock);
    if (!pool || REAL(cuMemPoolTrimTo)(pool->handle, 0)) return any;
    shrink(pool, 0, 0);
    any = true;
  }
}

TF_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *properties) {
  CUresult result = REAL(cuMemPoolCreate)(handle, properties);
  bool on_device = !result && properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  int row = on_device ? tf_row_of_device(properties->location.id) : TF_NO_ROW;
  if (row == TF_NO_ROW) return result;
  pthread_mutex_lock(&lock);
  find_or_add(*handle, row);
  pthread_mutex_unlock(&lock);
  return result;
}

TF_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep) {
  CUresult result = REAL(cuMemPoolTrimTo)(handle, keep);
  pthread_mutex_lock(&lock);
  struct pool *pool = find(handle);
  pthread_mutex_unlock(&lock);
  if (!result && pool) shrink(pool, 0, keep);
  return result;
}

TF_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool handle, int attribute, void *value) {
  CUresult result = REAL(cuMemPoolSetAttribute)(handle, attribute, value);
  if (result || attribute != CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) return result;
  int row = tf_current_row();
  if (row == TF_NO_ROW) return result;
  pthread_mutex_lock(&lock);
  struct pool *pool = find_or_add(handle, row);
  if (pool) pool->threshold = *(uint64_t *)value;
  pthread_mutex_unlock(&lock);
  return result;
}

TF_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  pthread_mutex_lock(&lock);
  struct pool *pool = find(handle);
  /* The name is free for a new pool from now on; the record stays for allocations that outlive it. */
  if (pool) pool->handle = NULL;
  pthread_mutex_unlock(&lock);
  CUresult result = REAL(cuMemPoolDestroy)(handle);
  if (!pool) return result;
  if (result) {
    pthread_mutex_lock(&lock);
    pool->handle = handle;
    pthread_mutex_unlock(&lock);
    return result;
  }
  pool->threshold = 0;
  shrink(pool, 0, 0);
  return result;
}
