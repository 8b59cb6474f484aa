/* Graphs and capture: the memory that a graph will take, and which streams are being captured. */
#include "limiter.h"
#include "tf_sizes.h"
#include "tf_table.h"

static struct tf_table graphs = TF_TABLE_INIT;
static struct tf_table executables = TF_TABLE_INIT;
static _Atomic int captures;

void tf_graphs_after_fork(void) {
  tf_table_reset(&graphs);
  tf_table_reset(&executables);
  atomic_store(&captures, 0);
}

bool tf_any_capture(void) { return atomic_load_explicit(&captures, memory_order_relaxed) > 0; }

bool tf_is_capturing(CUstream stream, bool per_thread) {
  if (LIKELY(!tf_any_capture())) return false;
  call_cuStreamIsCapturing *ask = per_thread ? REAL(cuStreamIsCapturing_ptsz) : REAL(cuStreamIsCapturing);
  int status = 0;
  /* A stream that cannot be asked now is treated as captured: nothing is added to it and nothing waits. */
  return ask(stream, &status) || status;
}

static CUresult begin(CUresult result) {
  if (!result) atomic_fetch_add(&captures, 1);
  return result;
}
static CUresult end(CUresult result) {
  /* An invalidated capture has ended too. */
  if (result != CUDA_ERROR_ILLEGAL_STATE && atomic_load(&captures) > 0) atomic_fetch_sub(&captures, 1);
  return result;
}
TF_EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
  return begin(REAL(cuStreamBeginCapture_v2)(stream, mode));
}
TF_EXPORT CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, int mode) {
  return begin(REAL(cuStreamBeginCapture_v2_ptsz)(stream, mode));
}
TF_EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode *dependencies,
                                               const CUgraphEdgeData *edges, size_t count, int mode) {
  return begin(REAL(cuStreamBeginCaptureToGraph)(stream, graph, dependencies, edges, count, mode));
}
TF_EXPORT CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream stream, CUgraph graph, const CUgraphNode *dependencies,
                                                    const CUgraphEdgeData *edges, size_t count, int mode) {
  return begin(REAL(cuStreamBeginCaptureToGraph_ptsz)(stream, graph, dependencies, edges, count, mode));
}
TF_EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  return end(REAL(cuStreamEndCapture)(stream, graph));
}
TF_EXPORT CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph *graph) {
  return end(REAL(cuStreamEndCapture_ptsz)(stream, graph));
}

static bool enlarge(struct tf_entry *entry, void *bytes) {
  entry->bytes += *(uint64_t *)bytes;
  return false;
}

void tf_graph_add_bytes(CUgraph graph, uint64_t bytes) {
  struct tf_entry entry = {.key = (uint64_t)(uintptr_t)graph, .bytes = bytes};
  if (!tf_table_change(&graphs, entry.key, enlarge, &bytes)) tf_table_put(&graphs, &entry);
}

TF_EXPORT CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                          size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *parameters) {
  CUresult result = REAL(cuGraphAddMemAllocNode)(node, graph, dependencies, count, parameters);
  if (!result) tf_graph_add_bytes(graph, tf_rounded(parameters->bytesize));
  return result;
}

static CUresult added(CUresult result, CUgraph graph, const CUgraphNodeParams *parameters) {
  if (!result && parameters->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
    tf_graph_add_bytes(graph, tf_rounded(parameters->alloc.bytesize));
  return result;
}
TF_EXPORT CUresult cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                  CUgraphNodeParams *parameters) {
  return added(REAL(cuGraphAddNode)(node, graph, dependencies, count, parameters), graph, parameters);
}
TF_EXPORT CUresult cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                     const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *parameters) {
  return added(REAL(cuGraphAddNode_v2)(node, graph, dependencies, edges, count, parameters), graph, parameters);
}

TF_EXPORT CUresult cuGraphDestroy(CUgraph graph) {
  struct tf_entry entry;
  bool known = tf_table_take(&graphs, (uint64_t)(uintptr_t)graph, &entry);
  CUresult result = REAL(cuGraphDestroy)(graph);
  if (known && result) tf_table_put(&graphs, &entry);
  return result;
}

static CUresult reserve(CUgraph graph, int *row, uint64_t *bytes) {
  struct tf_entry entry;
  *bytes = tf_table_get(&graphs, (uint64_t)(uintptr_t)graph, &entry) ? entry.bytes : 0;
  *row = *bytes ? tf_current_row() : TF_NO_ROW;
  return tf_reserve(*row, TF_GRAPH, *bytes);
}

static CUresult settle(CUresult result, CUgraphExec *executable, int row, uint64_t bytes) {
  if (result) {
    tf_release(row, TF_GRAPH, bytes);
    return result;
  }
  uint64_t key = (uint64_t)(uintptr_t)*executable;
  tf_cost_forget(key); /* the address may have belonged to another graph */
  struct tf_entry entry = {.key = key, .bytes = bytes, .device = (uint32_t)row};
  if (row != TF_NO_ROW) tf_table_put(&executables, &entry);
  return result;
}

TF_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *executable, CUgraph graph, CUgraphNode *error_node, char *log,
                                         size_t log_bytes) {
  int row;
  uint64_t bytes;
  CUresult result = reserve(graph, &row, &bytes);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_GRAPH, bytes,
               REAL(cuGraphInstantiate_v2)(executable, graph, error_node, log, log_bytes));
  return settle(result, executable, row, bytes);
}

TF_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
  int row;
  uint64_t bytes;
  CUresult result = reserve(graph, &row, &bytes);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_GRAPH, bytes, REAL(cuGraphInstantiateWithFlags)(executable, graph, flags));
  return settle(result, executable, row, bytes);
}

static CUresult with_parameters(call_cuGraphInstantiateWithParams *real, CUgraphExec *executable, CUgraph graph,
                                void *parameters) {
  int row;
  uint64_t bytes;
  CUresult result = reserve(graph, &row, &bytes);
  if (result) return result;
  TF_PATIENTLY(result, row, TF_GRAPH, bytes, real(executable, graph, parameters));
  return settle(result, executable, row, bytes);
}
TF_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *executable, CUgraph graph, void *parameters) {
  return with_parameters(REAL(cuGraphInstantiateWithParams), executable, graph, parameters);
}
TF_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *executable, CUgraph graph, void *parameters) {
  return with_parameters(REAL(cuGraphInstantiateWithParams_ptsz), executable, graph, parameters);
}

TF_EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable) {
  struct tf_entry entry;
  bool known = tf_table_take(&executables, (uint64_t)(uintptr_t)executable, &entry);
  CUresult result = REAL(cuGraphExecDestroy)(executable);
  if (known && result) tf_table_put(&executables, &entry);
  else if (known) tf_release((int)entry.device, TF_GRAPH, entry.bytes);
  return result;
}
