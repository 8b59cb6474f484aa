/* Streams, events and capture.
 *
 * The contents of memory change when work is enqueued, its time passes on the timeline. Dependencies always point to
 * work enqueued earlier, so the order of enqueues is a valid order of execution. */
#include <stdlib.h>

#include "sim.h"

CUresult sim_enqueue(uint32_t stream, struct sim_command command) {
  for (;;) {
    sim_lock();
    uint64_t now = sim_now();
    if (sim_push(stream, &command, now)) break;
    /* Full: at the earliest there is room when the first of the queue ends. */
    const struct sim_stream *queue = &sim->streams[stream];
    uint64_t first = queue->queue[queue->head % SIM_QUEUE].duration_ns;
    uint64_t bound = sim_stream_bound(queue, queue->done_ns + first, now);
    sim_unlock();
    sim_wait_until(bound);
  }
  sim_unlock();
  return CUDA_SUCCESS;
}

void sim_stream_wait(uint32_t stream) {
  for (;;) {
    sim_lock();
    uint64_t now = sim_now();
    sim_advance(now);
    const struct sim_stream *queue = &sim->streams[stream];
    bool done = !queue->in_use || queue->head == queue->tail;
    uint64_t bound = done ? 0 : sim_stream_bound(queue, queue->sent_ns, now);
    sim_unlock();
    if (done) return;
    sim_wait_until(bound);
  }
}

struct CUgraph_st *sim_capture_of(CUstream stream) {
  return (uintptr_t)stream > CU_STREAM_PER_THREAD_VALUE ? stream->capture : NULL;
}

SIM_EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
  (void)flags, (void)priority;
  CUresult result = sim_check();
  if (result) return result;
  CUstream made = calloc(1, sizeof *made);
  if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
  made->device = sim_current()->device;
  sim_lock();
  made->slot = sim_stream_new(sim_physical(made->device));
  sim_unlock();
  if (made->slot == SIM_NONE) {
    free(made);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *stream = made;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}

SIM_EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
  CUresult result = sim_check();
  if (result) return result;
  if ((uintptr_t)stream <= CU_STREAM_PER_THREAD_VALUE) return CUDA_ERROR_INVALID_HANDLE;
  sim_stream_wait(stream->slot);
  sim_lock();
  sim_stream_drop(stream->slot, sim_now());
  sim_unlock();
  free(stream);
  return CUDA_SUCCESS;
}

static CUresult synchronize(CUstream stream, bool per_thread) {
  CUresult result = sim_check();
  if (result) return result;
  if (sim_capture_of(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  sim_stream_wait(sim_resolve_stream(stream, per_thread));
  return sim_initialised();
}

SIM_EXPORT CUresult cuStreamSynchronize(CUstream stream) { return synchronize(stream, false); }
SIM_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream) { return synchronize(stream, true); }

/* In virtual time asking takes a microsecond, or a thread that polls would stop the clock. */
static CUresult not_ready(void) {
  if (sim->virtual_time) sim_wait_until(sim_now() + 1000);
  return CUDA_ERROR_NOT_READY;
}

static CUresult query(CUstream stream, bool per_thread) {
  CUresult result = sim_check();
  if (result) return result;
  uint32_t slot = sim_resolve_stream(stream, per_thread);
  sim_lock();
  sim_advance(sim_now());
  bool done = sim->streams[slot].head == sim->streams[slot].tail;
  sim_unlock();
  return done ? CUDA_SUCCESS : not_ready();
}

SIM_EXPORT CUresult cuStreamQuery(CUstream stream) { return query(stream, false); }
SIM_EXPORT CUresult cuStreamQuery_ptsz(CUstream stream) { return query(stream, true); }

static uint32_t index_of(CUevent event) { return (uint32_t)((uintptr_t)event - 1); }
static bool bad_event(CUevent event) {
  return !event || index_of(event) >= SIM_EVENTS || !sim->events[index_of(event)].in_use;
}

SIM_EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags) {
  (void)flags;
  CUresult result = sim_check();
  if (result) return result;
  sim_lock();
  uint32_t index = sim_event_new();
  sim_unlock();
  if (index == SIM_NONE) return CUDA_ERROR_OUT_OF_MEMORY;
  *event = (CUevent)(uintptr_t)(index + 1);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuEventDestroy_v2(CUevent event) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (bad_event(event)) return CUDA_ERROR_INVALID_HANDLE;
  sim_lock();
  sim->events[index_of(event)].in_use = 0;
  sim_unlock();
  return CUDA_SUCCESS;
}

static CUresult record(CUevent event, CUstream stream, bool per_thread) {
  CUresult result = sim_check();
  if (result) return result;
  if (bad_event(event)) return CUDA_ERROR_INVALID_HANDLE;
  if (sim_capture_of(stream)) return CUDA_SUCCESS;
  uint32_t slot = sim_resolve_stream(stream, per_thread);
  sim_lock();
  struct sim_event *item = &sim->events[index_of(event)];
  item->stream = slot;
  item->sent_ns = sim->streams[slot].sent_ns;
  struct sim_command command = {.kind = SIM_RECORD, .event = index_of(event), .generation = ++item->recorded};
  sim_unlock();
  return sim_enqueue(slot, command);
}

SIM_EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) { return record(event, stream, false); }
SIM_EXPORT CUresult cuEventRecord_ptsz(CUevent event, CUstream stream) { return record(event, stream, true); }

SIM_EXPORT CUresult cuEventQuery(CUevent event) {
  CUresult result = sim_check();
  if (result) return result;
  if (bad_event(event)) return CUDA_ERROR_INVALID_HANDLE;
  sim_lock();
  sim_advance(sim_now());
  bool done = sim->events[index_of(event)].done >= sim->events[index_of(event)].recorded;
  sim_unlock();
  return done ? CUDA_SUCCESS : not_ready();
}

SIM_EXPORT CUresult cuEventSynchronize(CUevent event) {
  CUresult result = sim_check();
  if (result) return result;
  if (bad_event(event)) return CUDA_ERROR_INVALID_HANDLE;
  for (;;) {
    sim_lock();
    uint64_t now = sim_now();
    sim_advance(now);
    const struct sim_event *item = &sim->events[index_of(event)];
    bool done = item->done >= item->recorded;
    uint64_t bound = done ? 0 : sim_stream_bound(&sim->streams[item->stream], item->sent_ns, now);
    sim_unlock();
    if (done) return sim_initialised();
    sim_wait_until(bound);
  }
}

SIM_EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (bad_event(start) || bad_event(end)) return CUDA_ERROR_INVALID_HANDLE;
  sim_lock();
  sim_advance(sim_now());
  const struct sim_event *from = &sim->events[index_of(start)], *to = &sim->events[index_of(end)];
  if (!from->recorded || !to->recorded) result = CUDA_ERROR_INVALID_HANDLE;
  else if (from->done < from->recorded || to->done < to->recorded) result = CUDA_ERROR_NOT_READY;
  else *milliseconds = (float)((double)(int64_t)(to->time_ns - from->time_ns) / 1e6);
  sim_unlock();
  return result;
}

SIM_EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime(milliseconds, start, end);
}

static CUresult wait_event(CUstream stream, CUevent event, bool per_thread) {
  CUresult result = sim_check();
  if (result) return result;
  if (bad_event(event)) return CUDA_ERROR_INVALID_HANDLE;
  uint32_t generation = sim->events[index_of(event)].recorded;
  if (!generation || sim_capture_of(stream)) return CUDA_SUCCESS;
  struct sim_command command = {.kind = SIM_WAIT, .event = index_of(event), .generation = generation};
  return sim_enqueue(sim_resolve_stream(stream, per_thread), command);
}

SIM_EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  (void)flags;
  return wait_event(stream, event, false);
}
SIM_EXPORT CUresult cuStreamWaitEvent_ptsz(CUstream stream, CUevent event, unsigned flags) {
  (void)flags;
  return wait_event(stream, event, true);
}

SIM_EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
  (void)mode;
  CUresult result = sim_check();
  if (result) return result;
  /* A default stream cannot be captured, as with the real driver. */
  if ((uintptr_t)stream <= CU_STREAM_PER_THREAD_VALUE) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = sim_graph_new();
  return stream->capture ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
SIM_EXPORT CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, int mode) {
  return cuStreamBeginCapture_v2(stream, mode);
}

SIM_EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode *dependencies,
                                                const CUgraphEdgeData *edges, size_t count, int mode) {
  (void)dependencies, (void)edges, (void)count, (void)mode;
  CUresult result = sim_check();
  if (result) return result;
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  if ((uintptr_t)stream <= CU_STREAM_PER_THREAD_VALUE) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = graph;
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream stream, CUgraph graph, const CUgraphNode *dependencies,
                                                     const CUgraphEdgeData *edges, size_t count, int mode) {
  return cuStreamBeginCaptureToGraph(stream, graph, dependencies, edges, count, mode);
}

SIM_EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  CUresult result = sim_check();
  if (result) return result;
  if (!sim_capture_of(stream)) return CUDA_ERROR_ILLEGAL_STATE;
  *graph = stream->capture;
  stream->capture = NULL;
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph *graph) {
  return cuStreamEndCapture(stream, graph);
}

SIM_EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status) {
  CUresult result = sim_check();
  if (result) return result;
  *status = sim_capture_of(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamIsCapturing_ptsz(CUstream stream, int *status) {
  return cuStreamIsCapturing(stream, status);
}

SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream stream, int *status, uint64_t *id, CUgraph *graph,
                                              const CUgraphNode **dependencies, size_t *count) {
  CUresult result = cuStreamIsCapturing(stream, status);
  if (result) return result;
  CUgraph captured = sim_capture_of(stream);
  if (id) *id = (uint64_t)(uintptr_t)captured;
  if (graph) *graph = captured;
  if (dependencies) *dependencies = NULL;
  if (count) *count = 0;
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2_ptsz(CUstream stream, int *status, uint64_t *id, CUgraph *graph,
                                                   const CUgraphNode **dependencies, size_t *count) {
  return cuStreamGetCaptureInfo_v2(stream, status, id, graph, dependencies, count);
}

SIM_EXPORT CUresult cuStreamGetCaptureInfo(CUstream stream, int *status, uint64_t *id) {
  return cuStreamGetCaptureInfo_v2(stream, status, id, NULL, NULL, NULL);
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_ptsz(CUstream stream, int *status, uint64_t *id) {
  return cuStreamGetCaptureInfo(stream, status, id);
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream stream, int *status, uint64_t *id, CUgraph *graph,
                                              const CUgraphNode **dependencies, const CUgraphEdgeData **edges,
                                              size_t *count) {
  if (edges) *edges = NULL;
  return cuStreamGetCaptureInfo_v2(stream, status, id, graph, dependencies, count);
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v3_ptsz(CUstream stream, int *status, uint64_t *id, CUgraph *graph,
                                                   const CUgraphNode **dependencies, const CUgraphEdgeData **edges,
                                                   size_t *count) {
  return cuStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, edges, count);
}

static CUresult host_function(CUstream stream, CUhostFn function, void *data, bool per_thread) {
  CUresult result = sim_check();
  if (result) return result;
  if (!function) return CUDA_ERROR_INVALID_VALUE;
  if (sim_capture_of(stream)) return CUDA_ERROR_NOT_SUPPORTED;
  /* Runs here, once what is ahead of it has finished. */
  sim_stream_wait(sim_resolve_stream(stream, per_thread));
  function(data);
  return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
  return host_function(stream, function, data, false);
}
SIM_EXPORT CUresult cuLaunchHostFunc_ptsz(CUstream stream, CUhostFn function, void *data) {
  return host_function(stream, function, data, true);
}
