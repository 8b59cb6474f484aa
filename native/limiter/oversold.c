/* Memory is promised to workers beyond what the card has, so one within its cap can find the card full. What follows is
 * a policy of the limits: refuse at once, wait for room with a deadline, go to host memory, or wait while the owner is
 * asked to take the memory of an idle neighbour.
 *
 * Frees of the worker's own processes end a wait at once. Those of others cannot be seen from here, so the driver is
 * asked again after growing pauses. No lock is held over a wait, and nothing waits while a stream is captured. */
#include "limiter.h"

#define FIRST_PAUSE_NS 1000000ull
#define LONGEST_PAUSE_NS 50000000ull

/* What has an address of its own can be in host memory. Arrays have the device's layout; contexts and the memory of
 * graphs are made by the driver; managed memory the driver moves by itself. */
static bool can_spill(enum tf_class class) { return class == TF_PLAIN || class == TF_POOL || class == TF_PHYSICAL; }

static void deny(int row) { atomic_fetch_add(&tf_ledger->states[row].full_denied, 1); }

static void begin(struct tf_full *full, int row, uint64_t bytes, uint64_t now) {
  full->started_ns = now;
  full->step_ns = FIRST_PAUSE_NS;
  tf_want(row, (int64_t)bytes);
  atomic_fetch_add(&tf_ledger->states[row].full_waits, 1);
}

bool tf_full_again(struct tf_full *full, int row, enum tf_class class, uint64_t bytes, CUresult result) {
  if (result != CUDA_ERROR_OUT_OF_MEMORY || row == TF_NO_ROW || !tf_self()) return false;
  if (!full->trimmed) {
    full->trimmed = true;
    /* What our own pools keep is the cheapest room. A context cannot be had for asking them while it is made. */
    if (class != TF_CONTEXT && tf_trim_pools(row)) return true;
  }
  const struct tf_view *view = tf_view();
  uint64_t now = tf_now(), start = full->started_ns ? full->started_ns : now;
  uint64_t end = start + view->full_wait_ms * 1000000ull;
  bool evicts = view->full_policy == TF_FULL_EVICT;
  if (!(evicts || view->full_policy == TF_FULL_WAIT) || now >= end || tf_any_capture()) {
    if (view->full_policy != TF_FULL_SPILL || !can_spill(class)) deny(row);
    return false;
  }
  if (!full->started_ns) {
    tf_recover_dead(); /* or the owner would make room for those who wait no more */
    begin(full, row, bytes, now);
  }
  if (evicts && !full->asked) {
    full->asked = true;
    atomic_fetch_add(&tf_ledger->states[row].evict_requests, 1);
  }
  tf_wait_until(now + full->step_ns < end ? now + full->step_ns : end);
  full->step_ns = full->step_ns * 2 < LONGEST_PAUSE_NS ? full->step_ns * 2 : LONGEST_PAUSE_NS;
  return true;
}

void tf_full_over(struct tf_full *full, int row, uint64_t bytes) {
  tf_want(row, -(int64_t)bytes);
  atomic_fetch_add(&tf_ledger->states[row].full_waited_ns, tf_now() - full->started_ns);
}

bool tf_spills(int row, CUresult result) {
  return result == CUDA_ERROR_OUT_OF_MEMORY && row != TF_NO_ROW && tf_self() && tf_view()->full_policy == TF_FULL_SPILL;
}

CUresult tf_spill(CUdeviceptr *address, uint64_t bytes, int row, enum tf_class *class) {
  CUdevice device;
  if (!tf_spill_reserve(row, *class, bytes)) {
    deny(row);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (REAL(cuMemAllocManaged)(address, bytes, CU_MEM_ATTACH_GLOBAL)) {
    tf_spill_undo(row, *class, bytes);
    deny(row);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *class = TF_SPILLED;
  /* It stays there and is read over the link: moved in by the driver, it would push others' memory out in turn. */
  REAL(cuMemAdvise)(*address, bytes, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, CU_DEVICE_CPU);
  if (!REAL(cuCtxGetDevice)(&device)) REAL(cuMemAdvise)(*address, bytes, CU_MEM_ADVISE_SET_ACCESSED_BY, device);
  return CUDA_SUCCESS;
}

CUresult tf_spill_physical(CUmemGenericAllocationHandle *handle, uint64_t bytes, const CUmemAllocationProp *properties,
                           unsigned long long flags, int row, enum tf_class *class) {
  CUmemAllocationProp hosted = *properties;
  hosted.location = (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = 0};
  if (tf_spill_reserve(row, *class, bytes)) {
    /* Drivers before CUDA 12.2 refuse it, and some kinds of shared handles are not to be had for host memory. */
    if (!REAL(cuMemCreate)(handle, bytes, &hosted, flags)) {
      *class = TF_SPILLED;
      return CUDA_SUCCESS;
    }
    tf_spill_undo(row, *class, bytes);
  }
  deny(row);
  return CUDA_ERROR_OUT_OF_MEMORY;
}
