/* Allocation calls: reserve, call the driver, remember or give back. Frees are forgiving: what we do not know goes to
 * the driver, whose code is returned. An entry is taken out before the driver frees, because another thread may be
 * handed the same address the moment it has. */
#include "limiter.h"
#include "tf_sizes.h"
#include "tf_table.h"

static struct tf_table addresses = TF_TABLE_INIT;
static struct tf_table physical = TF_TABLE_INIT;
static struct tf_table mappings = TF_TABLE_INIT; /* address to handle; also alias handle to handle */
static struct tf_table arrays = TF_TABLE_INIT;
static struct tf_table contexts = TF_TABLE_INIT;
static pthread_mutex_t primary_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t primary_references[64];

void tf_memory_after_fork(void) {
  tf_table_reset(&addresses);
  tf_table_reset(&physical);
  tf_table_reset(&mappings);
  tf_table_reset(&arrays);
  tf_table_reset(&contexts);
  pthread_mutex_init(&primary_lock, NULL);
  for (int i = 0; i < 64; i++) primary_references[i] = 0;
}

struct tf_table *tf_addresses(void) { return &addresses; }
struct tf_table *tf_physical(void) { return &physical; }

static uint64_t current_context(void) {
  CUcontext context = NULL;
  REAL(cuCtxGetCurrent)(&context);
  return (uint64_t)(uintptr_t)context;
}

static CUresult settle(CUresult result, struct tf_table *table, uint64_t key, enum tf_class class, int row,
                       uint64_t bytes, uint64_t owner) {
  if (row == TF_NO_ROW) return result;
  if (result) {
    tf_release(row, class, bytes);
    return result;
  }
  struct tf_entry entry = {.key = key, .bytes = bytes, .owner = owner, .kind = class, .device = (uint32_t)row};
  /* Without memory for the entry the bytes stay charged: too little for the tenant, never too much. */
  tf_table_put(table, &entry);
  return result;
}

void tf_memory_remember(uint64_t address, uint64_t bytes, enum tf_class class, int row, uint64_t owner) {
  settle(CUDA_SUCCESS, &addresses, address, class, row, bytes, owner);
}

TF_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
  int row = tf_current_row();
  CUresult result = tf_reserve(row, TF_PLAIN, tf_rounded(bytes));
  if (result) return result;
  enum tf_class class = TF_PLAIN;
  TF_PATIENTLY(result, row, class, tf_rounded(bytes), REAL(cuMemAlloc_v2)(address, bytes));
  if (tf_spills(row, result)) result = tf_spill(address, tf_rounded(bytes), row, &class);
  return settle(result, &addresses, result ? 0 : *address, class, row, tf_rounded(bytes), current_context());
}

TF_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned flags) {
  int row = tf_current_row();
  CUresult result = tf_reserve(row, TF_MANAGED, tf_rounded(bytes));
  if (result) return result;
  TF_PATIENTLY(result, row, TF_MANAGED, tf_rounded(bytes), REAL(cuMemAllocManaged)(address, bytes, flags));
  return settle(result, &addresses, result ? 0 : *address, TF_MANAGED, row, tf_rounded(bytes), current_context());
}

TF_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height,
                                      unsigned element) {
  int row = tf_current_row();
  uint64_t bytes = tf_rounded(tf_product(tf_rounded(width), height));
  CUresult result = tf_reserve(row, TF_PLAIN, bytes);
  if (result) return result;
  enum tf_class class = TF_PLAIN;
  TF_PATIENTLY(result, row, class, bytes, REAL(cuMemAllocPitch_v2)(address, pitch, width, height, element));
  if (tf_spills(row, result) && !(result = tf_spill(address, bytes, row, &class))) *pitch = tf_rounded(width);
  uint64_t real = result ? bytes : tf_rounded(tf_product(*pitch, height));
  if (real > bytes && tf_reserve(row, TF_PLAIN, real - bytes)) {
    /* A wider pitch than expected does not fit after all. */
    REAL(cuMemFree_v2)(*address);
    tf_release(row, TF_PLAIN, bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (real < bytes) tf_release(row, TF_PLAIN, bytes - real);
  return settle(result, &addresses, result ? 0 : *address, class, row, real, current_context());
}

static void forget(const struct tf_entry *entry) {
  if (entry->shared) tf_shared_drop(entry->shared);
  else if (entry->kind == TF_POOL) tf_pool_freed(entry->owner, entry->bytes);
  else tf_release((int)entry->device, (enum tf_class)entry->kind, entry->bytes);
}

TF_EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
  struct tf_entry entry;
  bool known = tf_table_take(&addresses, address, &entry);
  CUresult result = REAL(cuMemFree_v2)(address);
  if (known && result) tf_table_put(&addresses, &entry);
  else if (known) forget(&entry);
  return result;
}

/* Spilled memory came from no pool, so a stream cannot free it: what the stream still does with it is awaited here. */
static CUresult free_spilled(CUdeviceptr address, CUstream stream, bool per_thread) {
  CUresult result = (per_thread ? REAL(cuStreamSynchronize_ptsz) : REAL(cuStreamSynchronize))(stream);
  return result ? result : REAL(cuMemFree_v2)(address);
}

static CUresult free_async(CUdeviceptr address, CUstream stream, bool per_thread) {
  call_cuMemFreeAsync *real = per_thread ? REAL(cuMemFreeAsync_ptsz) : REAL(cuMemFreeAsync);
  struct tf_entry entry;
  if (tf_is_capturing(stream, per_thread)) return real(address, stream);
  bool known = tf_table_take(&addresses, address, &entry);
  bool spilled = known && entry.kind == TF_SPILLED;
  CUresult result = spilled ? free_spilled(address, stream, per_thread) : real(address, stream);
  if (known && result) tf_table_put(&addresses, &entry);
  else if (known) forget(&entry);
  return result;
}
TF_EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) { return free_async(address, stream, false); }
TF_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream stream) {
  return free_async(address, stream, true);
}

TF_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream) {
  return tf_pool_allocate(address, bytes, NULL, stream, false, false);
}
TF_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream stream) {
  return tf_pool_allocate(address, bytes, NULL, stream, true, false);
}
TF_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream) {
  return tf_pool_allocate(address, bytes, pool, stream, false, true);
}
TF_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *address, size_t bytes, CUmemoryPool pool,
                                                CUstream stream) {
  return tf_pool_allocate(address, bytes, pool, stream, true, true);
}

/* --- Physical memory lives while a handle or a mapping does --- */

struct reference {
  int handles, mappings;
  struct tf_entry before;
};

static bool refer(struct tf_entry *entry, void *context) {
  struct reference *change = context;
  change->before = *entry;
  entry->handles = (uint32_t)((int)entry->handles + change->handles);
  entry->mappings = (uint32_t)((int)entry->mappings + change->mappings);
  return !entry->handles && !entry->mappings;
}

uint64_t tf_original(uint64_t handle) {
  struct tf_entry alias;
  return !tf_table_get(&physical, handle, NULL) && tf_table_get(&mappings, handle, &alias) ? alias.owner : handle;
}

/* With the last reference the bytes go back. */
static void drop(uint64_t handle, int handles, int mapped) {
  struct reference change = {.handles = -handles, .mappings = -mapped};
  if (!tf_table_change(&physical, handle, refer, &change)) return;
  if (change.before.handles + change.before.mappings == (uint32_t)(handles + mapped)) forget(&change.before);
}

bool tf_physical_again(uint64_t handle) {
  struct reference change = {.handles = 1};
  return tf_table_change(&physical, tf_original(handle), refer, &change);
}

TF_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                               const CUmemAllocationProp *properties, unsigned long long flags) {
  /* Host memory made by the same call (as communication libraries probe for) is none of ours. */
  bool on_device = properties && properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  int row = on_device ? tf_row_of_device(properties->location.id) : TF_NO_ROW;
  CUresult result = tf_reserve(row, TF_PHYSICAL, bytes);
  if (result && on_device) return result;
  enum tf_class class = TF_PHYSICAL;
  TF_PATIENTLY(result, row, class, bytes, REAL(cuMemCreate)(handle, bytes, properties, flags));
  if (tf_spills(row, result)) result = tf_spill_physical(handle, bytes, properties, flags, row, &class);
  if (row == TF_NO_ROW) return result;
  if (result) {
    tf_release(row, class, bytes);
    return result;
  }
  struct tf_entry entry = {.key = *handle, .bytes = bytes, .kind = class, .device = (uint32_t)row, .handles = 1};
  tf_table_put(&physical, &entry);
  return result;
}

TF_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  uint64_t known = tf_original(handle);
  /* The last reference is taken out first: the driver may hand the same value to another thread. */
  struct tf_entry before;
  bool ours = tf_table_get(&physical, known, &before);
  if (ours && before.handles == 1 && !before.mappings) ours = tf_table_take(&physical, known, &before);
  CUresult result = REAL(cuMemRelease)(handle);
  if (!ours) return result;
  if (before.handles == 1 && !before.mappings) {
    if (result) tf_table_put(&physical, &before);
    else forget(&before);
  } else if (!result) {
    drop(known, 1, 0);
  }
  return result;
}

TF_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
  CUresult result = REAL(cuMemRetainAllocationHandle)(handle, address);
  struct tf_entry mapping;
  if (result || !tf_table_get(&mappings, (uint64_t)(uintptr_t)address, &mapping)) return result;
  if (*handle != mapping.owner) {
    /* The driver may name the same memory differently. */
    struct tf_entry alias = {.key = *handle, .owner = mapping.owner};
    tf_table_put(&mappings, &alias);
  }
  struct reference change = {.handles = 1};
  tf_table_change(&physical, mapping.owner, refer, &change);
  return result;
}

TF_EXPORT CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                            unsigned long long flags) {
  CUresult result = REAL(cuMemMap)(address, bytes, offset, handle, flags);
  if (result) return result;
  struct tf_entry mapping = {.key = address, .bytes = bytes, .owner = tf_original(handle)};
  struct reference change = {.mappings = 1};
  if (tf_table_change(&physical, mapping.owner, refer, &change)) tf_table_put(&mappings, &mapping);
  return result;
}

struct range {
  uint64_t from, to;
};

static bool inside(const struct tf_entry *entry, void *context) {
  const struct range *range = context;
  return entry->bytes && entry->key >= range->from && entry->key < range->to;
}

TF_EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  CUresult result = REAL(cuMemUnmap)(address, bytes);
  struct range range = {address, address + bytes};
  struct tf_entry mapping;
  while (!result && tf_table_take_match(&mappings, inside, &range, &mapping)) drop(mapping.owner, 0, 1);
  return result;
}

/* --- Arrays --- */

static CUresult reserve_array(uint64_t bytes, int *row) {
  *row = tf_current_row();
  return tf_reserve(*row, TF_ARRAY, bytes);
}

TF_EXPORT CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *shape) {
  if (!shape) return REAL(cuArrayCreate_v2)(array, shape);
  CUDA_ARRAY3D_DESCRIPTOR full = {
      .Width = shape->Width, .Height = shape->Height, .Format = shape->Format, .NumChannels = shape->NumChannels};
  int row;
  uint64_t bytes = tf_array_bytes(&full, 0);
  CUresult result = reserve_array(bytes, &row);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_ARRAY, bytes, REAL(cuArrayCreate_v2)(array, shape));
  return settle(result, &arrays, result ? 0 : (uint64_t)(uintptr_t)*array, TF_ARRAY, row, bytes, current_context());
}

TF_EXPORT CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *shape) {
  int row;
  uint64_t bytes = shape ? tf_array_bytes(shape, 0) : 0;
  CUresult result = reserve_array(bytes, &row);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_ARRAY, bytes, REAL(cuArray3DCreate_v2)(array, shape));
  return settle(result, &arrays, result ? 0 : (uint64_t)(uintptr_t)*array, TF_ARRAY, row, bytes, current_context());
}

TF_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *array, const CUDA_ARRAY3D_DESCRIPTOR *shape,
                                          unsigned levels) {
  int row;
  uint64_t bytes = shape ? tf_mipmap_bytes(shape, levels) : 0;
  CUresult result = reserve_array(bytes, &row);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_ARRAY, bytes, REAL(cuMipmappedArrayCreate)(array, shape, levels));
  return settle(result, &arrays, result ? 0 : (uint64_t)(uintptr_t)*array, TF_ARRAY, row, bytes, current_context());
}

static CUresult drop_array(bool known, const struct tf_entry *entry, CUresult result) {
  if (known && result) tf_table_put(&arrays, entry);
  else if (known) forget(entry);
  return result;
}

TF_EXPORT CUresult cuArrayDestroy(CUarray array) {
  struct tf_entry entry;
  bool known = tf_table_take(&arrays, (uint64_t)(uintptr_t)array, &entry);
  return drop_array(known, &entry, REAL(cuArrayDestroy)(array));
}

TF_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray array) {
  struct tf_entry entry;
  bool known = tf_table_take(&arrays, (uint64_t)(uintptr_t)array, &entry);
  return drop_array(known, &entry, REAL(cuMipmappedArrayDestroy)(array));
}

/* --- Contexts: what the driver takes for one, and with one goes all that was allocated in it --- */

static bool of_context(const struct tf_entry *entry, void *context) {
  return entry->kind != TF_POOL && entry->owner == *(uint64_t *)context;
}

static void context_gone(uint64_t context) {
  struct tf_entry entry;
  while (context && tf_table_take_match(&addresses, of_context, &context, &entry)) forget(&entry);
  while (context && tf_table_take_match(&arrays, of_context, &context, &entry)) forget(&entry);
  if (context) tf_sharing_context_gone(context);
}

static uint64_t context_bytes(int row) { return row == TF_NO_ROW ? 0 : tf_view()->rows[row].context_bytes; }

TF_EXPORT CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device) {
  int row = tf_row_of_device(device);
  uint64_t bytes = context_bytes(row);
  CUresult result = tf_reserve(row, TF_CONTEXT, bytes);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_CONTEXT, bytes, REAL(cuCtxCreate_v2)(context, flags, device));
  return settle(result, &contexts, result ? 0 : (uint64_t)(uintptr_t)*context, TF_CONTEXT, row, bytes, 0);
}

TF_EXPORT CUresult cuCtxCreate_v3(CUcontext *context, void *affinity, int affinities, unsigned flags, CUdevice device) {
  int row = tf_row_of_device(device);
  uint64_t bytes = context_bytes(row);
  CUresult result = tf_reserve(row, TF_CONTEXT, bytes);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_CONTEXT, bytes, REAL(cuCtxCreate_v3)(context, affinity, affinities, flags, device));
  return settle(result, &contexts, result ? 0 : (uint64_t)(uintptr_t)*context, TF_CONTEXT, row, bytes, 0);
}

TF_EXPORT CUresult cuCtxCreate_v4(CUcontext *context, void *parameters, unsigned flags, CUdevice device) {
  int row = tf_row_of_device(device);
  uint64_t bytes = context_bytes(row);
  CUresult result = tf_reserve(row, TF_CONTEXT, bytes);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_CONTEXT, bytes, REAL(cuCtxCreate_v4)(context, parameters, flags, device));
  return settle(result, &contexts, result ? 0 : (uint64_t)(uintptr_t)*context, TF_CONTEXT, row, bytes, 0);
}

TF_EXPORT CUresult cuCtxDestroy_v2(CUcontext context) {
  struct tf_entry entry;
  uint64_t key = (uint64_t)(uintptr_t)context;
  bool known = tf_table_take(&contexts, key, &entry);
  CUresult result = REAL(cuCtxDestroy_v2)(context);
  if (known && result) tf_table_put(&contexts, &entry);
  else if (known) forget(&entry);
  if (!result) context_gone(key);
  return result;
}

static bool counts(CUdevice device) { return device >= 0 && device < 64; }

TF_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  int row = counts(device) ? tf_row_of_device(device) : TF_NO_ROW;
  uint64_t bytes = context_bytes(row);
  bool first = false;
  if (row != TF_NO_ROW) {
    pthread_mutex_lock(&primary_lock);
    first = primary_references[device]++ == 0;
    pthread_mutex_unlock(&primary_lock);
  }
  CUresult result = first ? tf_reserve(row, TF_CONTEXT, bytes) : CUDA_SUCCESS;
  bool reserved = first && !result;
  if (!result) TF_PATIENTLY(result, row, TF_CONTEXT, bytes, REAL(cuDevicePrimaryCtxRetain)(context, device));
  if (result && row != TF_NO_ROW) {
    pthread_mutex_lock(&primary_lock);
    primary_references[device]--;
    pthread_mutex_unlock(&primary_lock);
    if (reserved) tf_release(row, TF_CONTEXT, bytes);
  }
  return result;
}

static CUresult release_primary(call_cuDevicePrimaryCtxRelease *real, CUdevice device, bool all) {
  CUcontext primary = NULL;
  int row = counts(device) ? tf_row_of_device(device) : TF_NO_ROW;
  bool last = false;
  if (row != TF_NO_ROW) {
    /* Only a retain names the primary context; it is balanced right away. */
    pthread_mutex_lock(&primary_lock);
    last = primary_references[device] && (all || primary_references[device] == 1);
    pthread_mutex_unlock(&primary_lock);
    call_cuDevicePrimaryCtxRelease *balance =
        HAS(cuDevicePrimaryCtxRelease_v2) ? REAL(cuDevicePrimaryCtxRelease_v2) : REAL(cuDevicePrimaryCtxRelease);
    if (last && !REAL(cuDevicePrimaryCtxRetain)(&primary, device)) balance(device);
  }
  CUresult result = real(device);
  if (result || row == TF_NO_ROW) return result;
  pthread_mutex_lock(&primary_lock);
  if (primary_references[device]) primary_references[device] = all ? 0 : primary_references[device] - 1;
  pthread_mutex_unlock(&primary_lock);
  if (last) {
    tf_release(row, TF_CONTEXT, context_bytes(row));
    context_gone((uint64_t)(uintptr_t)primary);
  }
  return result;
}

TF_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  return release_primary(REAL(cuDevicePrimaryCtxRelease), device, false);
}
TF_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return release_primary(REAL(cuDevicePrimaryCtxRelease_v2), device, false);
}
TF_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice device) {
  return release_primary(REAL(cuDevicePrimaryCtxReset), device, true);
}
TF_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
  return release_primary(REAL(cuDevicePrimaryCtxReset_v2), device, true);
}
