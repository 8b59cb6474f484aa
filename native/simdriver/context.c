/* Contexts, the current one of each thread, default streams, sticky errors. */
#include <stdlib.h>

#include "sim.h"

#define STACK 16u

static __thread CUcontext stack[STACK];
static __thread uint32_t depth;
static __thread uint32_t thread_streams[SIM_DEVICES]; /* slot + 1 */
static struct CUctx_st primary[SIM_DEVICES];
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static _Atomic CUresult sticky;
static _Atomic bool initialised;

SIM_EXPORT CUresult cuInit(unsigned flags) {
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  if (sim_forked && initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (sim_open(NULL) || !sim_visible_count()) return CUDA_ERROR_NO_DEVICE;
  sim_lock();
  uint32_t slot = sim_self();
  sim_unlock();
  if (slot == SIM_NONE) return CUDA_ERROR_OUT_OF_MEMORY;
  initialised = true;
  sim_suspend_start();
  sim_clock_enter();
  return CUDA_SUCCESS;
}

CUresult sim_initialised(void) {
  if (!initialised || sim_forked) return CUDA_ERROR_NOT_INITIALIZED;
  if (sticky) return sticky;
  sim_clock_enter();
  return CUDA_SUCCESS;
}

void sim_stick(CUresult error) { sticky = error; }

CUcontext sim_current(void) { return depth ? stack[depth - 1] : NULL; }

CUresult sim_check(void) {
  CUresult result = sim_initialised();
  if (result) return result;
  CUcontext context = sim_current();
  if (!context || !context->alive) return CUDA_ERROR_INVALID_CONTEXT;
  return sim_card(context->device)->lost ? CUDA_ERROR_ILLEGAL_STATE : CUDA_SUCCESS;
}

static uint32_t new_stream(uint32_t device) {
  sim_lock();
  uint32_t slot = sim_stream_new(sim_physical(device));
  sim_unlock();
  return slot;
}

uint32_t sim_resolve_stream(CUstream stream, bool per_thread) {
  uint64_t value = (uint64_t)(uintptr_t)stream;
  CUcontext context = sim_current();
  if (value > CU_STREAM_PER_THREAD_VALUE) return stream->slot;
  if (value == CU_STREAM_PER_THREAD_VALUE || (!value && per_thread)) {
    uint32_t *known = &thread_streams[context->device];
    if (!*known) *known = new_stream(context->device) + 1;
    return *known - 1;
  }
  return context->default_stream;
}

static CUresult open_context(CUcontext context, uint32_t device) {
  CUresult result = sim_charge(device, sim_card(device)->context_bytes);
  if (result) return result;
  context->device = device;
  context->default_stream = new_stream(device);
  if (context->default_stream == SIM_NONE) {
    sim_uncharge(device, sim_card(device)->context_bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  sim_lock();
  sim->processes[sim_self()].device[sim_physical(device)].contexts++;
  sim_unlock();
  context->alive = 1;
  return CUDA_SUCCESS;
}

static void close_context(CUcontext context) {
  sim_stream_wait(context->default_stream);
  sim_memory_forget(context);
  sim_lock();
  sim_stream_drop(context->default_stream, sim_now());
  sim->processes[sim_self()].device[sim_physical(context->device)].contexts--;
  sim_unlock();
  context->alive = 0;
  sim_uncharge(context->device, sim_card(context->device)->context_bytes);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!context) return CUDA_ERROR_INVALID_VALUE;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  pthread_mutex_lock(&guard);
  if (!primary[device].references) result = open_context(&primary[device], (uint32_t)device);
  if (!result) {
    primary[device].references++;
    *context = &primary[device];
  }
  pthread_mutex_unlock(&guard);
  return result;
}

static CUresult release_primary(CUdevice device, bool all) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  pthread_mutex_lock(&guard);
  CUcontext context = &primary[device];
  if (!context->references) result = all ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
  else if (all || context->references == 1) {
    close_context(context);
    context->references = 0;
  } else {
    context->references--;
  }
  pthread_mutex_unlock(&guard);
  return result;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return release_primary(device, false); }
SIM_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return release_primary(device, false); }
SIM_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice device) { return release_primary(device, true); }
SIM_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) { return release_primary(device, true); }

SIM_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  *flags = 0;
  *active = primary[device].references != 0;
  return CUDA_SUCCESS;
}

static CUresult push(CUcontext context) {
  if (depth == STACK) return CUDA_ERROR_OUT_OF_MEMORY;
  stack[depth++] = context;
  return CUDA_SUCCESS;
}

static CUresult create(CUcontext *context, CUdevice device) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!sim_visible(&device)) return CUDA_ERROR_INVALID_DEVICE;
  CUcontext made = calloc(1, sizeof *made);
  if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
  result = open_context(made, (uint32_t)device);
  if (!result) result = push(made);
  if (result) free(made);
  else *context = made;
  return result;
}

SIM_EXPORT CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device) {
  (void)flags;
  return create(context, device);
}

SIM_EXPORT CUresult cuCtxCreate_v3(CUcontext *context, void *affinity, int affinities, unsigned flags,
                                   CUdevice device) {
  (void)affinity, (void)affinities, (void)flags;
  return create(context, device);
}

SIM_EXPORT CUresult cuCtxCreate_v4(CUcontext *context, void *parameters, unsigned flags, CUdevice device) {
  (void)parameters, (void)flags;
  return create(context, device);
}

SIM_EXPORT CUresult cuCtxDestroy_v2(CUcontext context) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!context || !context->alive) return CUDA_ERROR_INVALID_CONTEXT;
  close_context(context);
  if (sim_current() == context) depth--;
  /* The small record stays: a thread may still name the context and must get an error, not a crash. */
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (depth) depth--;
  return context ? push(context) : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
  CUresult result = sim_initialised();
  if (!result) *context = sim_current();
  return result;
}

SIM_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
  CUresult result = sim_initialised();
  if (result) return result;
  return context ? push(context) : CUDA_ERROR_INVALID_CONTEXT;
}

SIM_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
  depth--;
  if (context) *context = stack[depth];
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
  CUresult result = sim_check();
  if (!result) *device = sim_ordinal(sim_current()->device);
  return result;
}

SIM_EXPORT CUresult cuCtxSynchronize(void) {
  CUresult result = sim_check();
  if (result) return result;
  uint32_t device = sim_physical(sim_current()->device);
  for (uint32_t i = 0; i < SIM_STREAMS; i++) {
    sim_lock();
    const struct sim_stream *stream = &sim->streams[i];
    bool ours = stream->in_use && stream->device == device && stream->process == sim_self();
    sim_unlock();
    if (ours) sim_stream_wait(i);
  }
  return sticky;
}
