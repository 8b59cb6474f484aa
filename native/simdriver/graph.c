/* Graphs: a list of kernels in the order they were added, and the memory of its allocation nodes. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"
#include "tf_sizes.h"

struct CUgraph_st {
  uint64_t count, capacity, bytes;
  struct sim_launch *kernels;
};

struct CUgraphExec_st {
  uint32_t device;
  uint64_t count, bytes;
  struct sim_launch *kernels;
};

struct CUgraph_st *sim_graph_new(void) { return calloc(1, sizeof(struct CUgraph_st)); }

CUresult sim_graph_kernel(struct CUgraph_st *graph, const struct sim_launch *launch) {
  if (graph->count == graph->capacity) {
    uint64_t capacity = graph->capacity ? graph->capacity * 2 : 16;
    struct sim_launch *larger = realloc(graph->kernels, capacity * sizeof *larger);
    if (!larger) return CUDA_ERROR_OUT_OF_MEMORY;
    graph->kernels = larger;
    graph->capacity = capacity;
  }
  graph->kernels[graph->count++] = *launch;
  return CUDA_SUCCESS;
}

CUresult sim_graph_memory(struct CUgraph_st *graph, uint64_t bytes, CUdeviceptr *address) {
  /* The address exists from now on; the memory is taken when the graph is instantiated. */
  void *memory = sim_backing(tf_rounded(bytes));
  if (!memory) return CUDA_ERROR_OUT_OF_MEMORY;
  graph->bytes += tf_rounded(bytes);
  *address = (CUdeviceptr)(uintptr_t)memory;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphCreate(CUgraph *graph, unsigned flags) {
  CUresult result = sim_check();
  if (result) return result;
  if (flags || !graph) return CUDA_ERROR_INVALID_VALUE;
  *graph = sim_graph_new();
  return *graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_EXPORT CUresult cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                         size_t count, const CUDA_KERNEL_NODE_PARAMS *parameters) {
  (void)dependencies, (void)count;
  struct sim_launch launch;
  uint64_t blocks = (uint64_t)parameters->gridDimX * parameters->gridDimY * parameters->gridDimZ;
  CUresult result = sim_prepare(&launch, parameters->func, blocks, parameters->kernelParams);
  if (!result) result = sim_graph_kernel(graph, &launch);
  if (!result) *node = (CUgraphNode)(uintptr_t)graph->count;
  return result;
}

SIM_EXPORT CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                           size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *parameters) {
  (void)dependencies, (void)count;
  CUresult result = sim_check();
  if (!result) result = sim_graph_memory(graph, parameters->bytesize, &parameters->dptr);
  if (!result) *node = (CUgraphNode)(uintptr_t)(graph->count + 1);
  return result;
}

SIM_EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                            size_t count, const CUDA_KERNEL_NODE_PARAMS *parameters) {
  return cuGraphAddKernelNode(node, graph, dependencies, count, parameters);
}

SIM_EXPORT CUresult cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                   CUgraphNodeParams *parameters) {
  if (parameters->type == CU_GRAPH_NODE_TYPE_KERNEL)
    return cuGraphAddKernelNode(node, graph, dependencies, count, &parameters->kernel);
  if (parameters->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
    return cuGraphAddMemAllocNode(node, graph, dependencies, count, &parameters->alloc);
  return CUDA_ERROR_NOT_SUPPORTED;
}
SIM_EXPORT CUresult cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                      const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *parameters) {
  (void)edges;
  return cuGraphAddNode(node, graph, dependencies, count, parameters);
}

static CUresult instantiate(CUgraphExec *executable, CUgraph graph) {
  CUresult result = sim_check();
  if (result) return result;
  CUgraphExec made = calloc(1, sizeof *made);
  if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
  made->kernels = malloc(graph->count * sizeof *made->kernels + 1);
  made->device = sim_current()->device;
  if (!made->kernels || (graph->bytes && sim_charge(made->device, graph->bytes))) {
    free(made->kernels);
    free(made);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (graph->count) memcpy(made->kernels, graph->kernels, graph->count * sizeof *made->kernels);
  made->count = graph->count;
  made->bytes = graph->bytes;
  *executable = made;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *executable, CUgraph graph, CUgraphNode *error_node, char *log,
                                          size_t log_bytes) {
  (void)error_node, (void)log, (void)log_bytes;
  return instantiate(executable, graph);
}
SIM_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
  (void)flags;
  return instantiate(executable, graph);
}
SIM_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *executable, CUgraph graph, void *parameters) {
  (void)parameters;
  return instantiate(executable, graph);
}
SIM_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *executable, CUgraph graph, void *parameters) {
  (void)parameters;
  return instantiate(executable, graph);
}

static CUresult launch(CUgraphExec executable, CUstream stream, bool per_thread) {
  CUresult result = sim_check();
  if (result) return result;
  if (!executable) return CUDA_ERROR_INVALID_HANDLE;
  if (sim_capture_of(stream)) return CUDA_ERROR_NOT_SUPPORTED;
  uint32_t slot = sim_resolve_stream(stream, per_thread);
  for (uint64_t i = 0; i < executable->count && !result; i++) result = sim_run(&executable->kernels[i], slot);
  return result;
}
SIM_EXPORT CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) { return launch(executable, stream, false); }
SIM_EXPORT CUresult cuGraphLaunch_ptsz(CUgraphExec executable, CUstream stream) {
  return launch(executable, stream, true);
}

SIM_EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable) {
  CUresult result = sim_initialised();
  if (result) return result;
  if (executable->bytes) sim_uncharge(executable->device, executable->bytes);
  free(executable->kernels);
  free(executable);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphDestroy(CUgraph graph) {
  CUresult result = sim_initialised();
  if (result) return result;
  free(graph->kernels);
  free(graph);
  return CUDA_SUCCESS;
}
