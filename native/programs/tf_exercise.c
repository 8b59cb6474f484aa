/* tf-exercise: many threads use what they can of the driver at once, for the sanitizers and for long runs.
 *
 *   tf-exercise MODE [key=value ...]
 *     mix       each thread does `rounds` steps, each chosen by chance: memory of all classes, contents, launches of
 *               all kinds, events, capture and graphs, look-ups, memory info
 *     fork      the same, while children are started that use the driver without and with an exec
 *     share     two processes with as many threads: one gives what it allocates, by handle and by descriptor, and the
 *               other opens it; now the one lets go first and now the other
 *     suspend   locks, checkpoints, restores and unlocks the process `pid`, `rounds` times
 *   keys: threads=4 rounds=100 seed=1 bytes=1048576 (largest allocation) pid=0 through= (the limiter's library)
 *
 * Out of memory is an answer like any other; every other error ends the program with code 1. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"
#include "tf_nvml.h"

static uint64_t threads = 4, rounds = 100, seed = 1, largest = 1 << 20, target;
static char through[4096];
static _Atomic uint64_t done, refused;
static CUcontext context;
static CUfunction spin, fill;
static nvmlReturn_t (*memory_of)(nvmlDevice_t, nvmlMemory_t *);
static nvmlDevice_t managed;

#define OK(call, ...) expect(p_##call(__VA_ARGS__), #call)
#define TRY(call, ...) tried(p_##call(__VA_ARGS__), #call)

static void expect(CUresult result, const char *call) {
  if (!result) return;
  fprintf(stderr, "tf-exercise: %s: %d\n", call, result);
  exit(1);
}

/* Whether it was granted. */
static bool tried(CUresult result, const char *call) {
  if (result == CUDA_ERROR_OUT_OF_MEMORY) atomic_fetch_add(&refused, 1);
  else expect(result, call);
  return !result;
}

struct worker {
  pthread_t thread;
  uint64_t state;
  CUstream stream;
  CUevent event;
  CUmemoryPool pool;
};

/* xorshift64 (Marsaglia, "Xorshift RNGs", 2003). */
static uint64_t chance(struct worker *self, uint64_t below) {
  self->state ^= self->state << 13;
  self->state ^= self->state >> 7;
  self->state ^= self->state << 17;
  return self->state % below;
}

static size_t size_of(struct worker *self) { return (size_t)(chance(self, largest) + 4); }

static void check_contents(struct worker *self, CUdeviceptr address, size_t bytes) {
  uint32_t value = (uint32_t)chance(self, 1u << 31), found = 0;
  uint64_t cells = bytes / 4;
  void *parameters[] = {&address, &value, &cells};
  OK(cuLaunchKernel, fill, 1u, 1u, 1u, 128u, 1u, 1u, 0u, self->stream, parameters, NULL);
  OK(cuStreamSynchronize, self->stream);
  OK(cuMemcpyDtoH_v2, &found, address + (cells - 1) * 4, (size_t)4);
  if (found == value) return;
  fprintf(stderr, "tf-exercise: %u was written, %u read\n", value, found);
  exit(1);
}

static void use_plain(struct worker *self) {
  CUdeviceptr address;
  size_t bytes = size_of(self), pitch;
  uint64_t kind = chance(self, 3);
  bool had = kind == 0   ? TRY(cuMemAlloc_v2, &address, bytes)
             : kind == 1 ? TRY(cuMemAllocManaged, &address, bytes, 1u)
                         : TRY(cuMemAllocPitch_v2, &address, &pitch, bytes, (size_t)1, 4u);
  if (!had) return;
  check_contents(self, address, bytes);
  OK(cuMemFree_v2, address);
}

static void use_pool(struct worker *self) {
  CUdeviceptr address;
  size_t bytes = size_of(self);
  bool had = chance(self, 2) ? TRY(cuMemAllocAsync, &address, bytes, self->stream)
                             : TRY(cuMemAllocFromPoolAsync, &address, bytes, self->pool, self->stream);
  if (!had) return;
  check_contents(self, address, bytes);
  OK(cuMemFreeAsync, address, self->stream);
  if (!chance(self, 8)) OK(cuMemPoolTrimTo, self->pool, (size_t)0);
}

static void use_physical(struct worker *self) {
  CUmemGenericAllocationHandle handle, again;
  CUdeviceptr address;
  CUmemAllocationProp wanted = {.type = 1, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
  size_t step, bytes = size_of(self);
  OK(cuMemGetAllocationGranularity, &step, &wanted, 0);
  bytes = (bytes + step - 1) / step * step;
  if (!TRY(cuMemCreate, &handle, bytes, &wanted, 0ull)) return;
  OK(cuMemAddressReserve, &address, bytes, (size_t)0, 0ull, 0ull);
  OK(cuMemMap, address, bytes, (size_t)0, handle, 0ull);
  CUmemAccessDesc access = {.location = wanted.location, .flags = 3};
  OK(cuMemSetAccess, address, bytes, &access, (size_t)1);
  OK(cuMemRetainAllocationHandle, &again, (void *)(uintptr_t)address);
  OK(cuMemRelease, handle);
  check_contents(self, address, bytes);
  OK(cuMemUnmap, address, bytes);
  OK(cuMemRelease, again);
  OK(cuMemAddressFree, address, bytes);
}

static void use_array(struct worker *self) {
  CUarray array;
  CUmipmappedArray mipmap;
  CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 64, .Height = 1 + chance(self, 64), .Format = 0x20, .NumChannels = 1};
  if (TRY(cuArray3DCreate_v2, &array, &shape)) OK(cuArrayDestroy, array);
  if (TRY(cuMipmappedArrayCreate, &mipmap, &shape, 3u)) OK(cuMipmappedArrayDestroy, mipmap);
}

static void use_launches(struct worker *self) {
  uint64_t length_us = chance(self, 300);
  unsigned grid = 1 + (unsigned)chance(self, 200);
  void *parameters[] = {&length_us};
  CUlaunchConfig config = {.gridDimX = grid,
                           .gridDimY = 1,
                           .gridDimZ = 1,
                           .blockDimX = 32,
                           .blockDimY = 1,
                           .blockDimZ = 1,
                           .hStream = self->stream};
  float milliseconds;
  CUevent first;
  OK(cuEventCreate, &first, 0u);
  OK(cuEventRecord, first, self->stream);
  OK(cuLaunchKernel, spin, grid, 1u, 1u, 32u, 1u, 1u, 0u, self->stream, parameters, NULL);
  OK(cuLaunchKernelEx, &config, spin, parameters, NULL);
  OK(cuLaunchCooperativeKernel, spin, grid, 1u, 1u, 32u, 1u, 1u, 0u, self->stream, parameters);
  OK(cuLaunchKernel_ptsz, spin, grid, 1u, 1u, 32u, 1u, 1u, 0u, NULL, parameters, NULL);
  OK(cuEventRecord, self->event, self->stream);
  OK(cuStreamWaitEvent, self->stream, self->event, 0u);
  if (chance(self, 2)) OK(cuStreamSynchronize, self->stream);
  OK(cuEventSynchronize, self->event);
  OK(cuEventElapsedTime, &milliseconds, first, self->event);
  OK(cuEventDestroy_v2, first);
}

static void use_graph(struct worker *self) {
  CUgraph graph;
  CUgraphExec ready;
  CUgraphNode node;
  uint64_t length_us = 20;
  void *parameters[] = {&length_us};
  OK(cuStreamBeginCapture_v2, self->stream, 2);
  for (uint64_t i = chance(self, 5); i < 5; i++)
    OK(cuLaunchKernel, spin, 8u, 1u, 1u, 32u, 1u, 1u, 0u, self->stream, parameters, NULL);
  OK(cuStreamEndCapture, self->stream, &graph);
  CUDA_MEM_ALLOC_NODE_PARAMS memory = {.poolProps = {.allocType = 1, .location = {.type = 1}}, .bytesize = 4096};
  if (chance(self, 2)) OK(cuGraphAddMemAllocNode, &node, graph, NULL, (size_t)0, &memory);
  if (TRY(cuGraphInstantiateWithFlags, &ready, graph, 0ull)) {
    OK(cuGraphLaunch, ready, self->stream);
    OK(cuStreamSynchronize, self->stream);
    OK(cuGraphExecDestroy, ready);
  }
  OK(cuGraphDestroy, graph);
}

static void use_views(struct worker *self) {
  size_t left, total;
  void *found;
  int status;
  OK(cuMemGetInfo_v2, &left, &total);
  OK(cuGetProcAddress_v2, "cuMemAlloc", &found, 12040, (uint64_t)(chance(self, 2) ? 2 : 0), &status);
  nvmlMemory_t memory;
  if (left > total || !found || memory_of(managed, &memory) || memory.used > memory.total) {
    fprintf(stderr, "tf-exercise: the views of memory contradict themselves\n");
    exit(1);
  }
  CUstream extra;
  OK(cuStreamCreate, &extra, 1u);
  OK(cuStreamDestroy_v2, extra);
}

static void *work(void *argument) {
  static void (*const steps[])(struct worker *) = {use_plain,    use_pool,  use_physical, use_array,
                                                   use_launches, use_graph, use_views};
  struct worker *self = argument;
  CUmemPoolProps wanted = {.allocType = 1, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
  OK(cuCtxSetCurrent, context);
  OK(cuStreamCreate, &self->stream, 1u);
  OK(cuEventCreate, &self->event, 0u);
  OK(cuMemPoolCreate, &self->pool, &wanted);
  for (uint64_t i = 0; i < rounds; i++) {
    steps[chance(self, sizeof steps / sizeof *steps)](self);
    atomic_fetch_add(&done, 1);
  }
  OK(cuMemPoolDestroy, self->pool);
  OK(cuEventDestroy_v2, self->event);
  OK(cuStreamDestroy_v2, self->stream);
  return NULL;
}

static void open_management(void) {
  void *library = open_library("libnvidia-ml.so.1");
  nvmlReturn_t (*init)(void), (*by_index)(unsigned, nvmlDevice_t *);
  *(void **)&init = look_up(library, "nvmlInit_v2");
  *(void **)&by_index = look_up(library, "nvmlDeviceGetHandleByIndex_v2");
  *(void **)&memory_of = look_up(library, "nvmlDeviceGetMemoryInfo");
  expect(init(), "nvmlInit_v2");
  expect(by_index(0, &managed), "nvmlDeviceGetHandleByIndex_v2");
}

static void begin(CUmodule *module) {
  OK(cuInit, 0u);
  open_management();
  OK(cuDevicePrimaryCtxRetain, &context, 0);
  OK(cuCtxSetCurrent, context);
  OK(cuModuleLoadData, module, "");
  OK(cuModuleGetFunction, &spin, *module, "spin_us");
  OK(cuModuleGetFunction, &fill, *module, "fill");
}

static void await_child(pid_t child) {
  int status = 1;
  if (child < 0 || waitpid(child, &status, 0) != child || status) {
    fprintf(stderr, "tf-exercise: a child ended with %d\n", status);
    exit(1);
  }
}

/* One child that only asks the driver, which it cannot use, and one that begins anew. */
static void start_children(char **arguments) {
  pid_t child = fork();
  if (!child) {
    CUdeviceptr address;
    _exit(p_cuMemAlloc_v2(&address, (size_t)4096) == CUDA_ERROR_NOT_INITIALIZED ? 0 : 1);
  }
  await_child(child);
  child = fork();
  if (!child) {
    arguments[1] = "mix";
    execv("/proc/self/exe", arguments);
    _exit(1);
  }
  await_child(child);
}

static void mix(bool forks, char **arguments) {
  struct worker *workers = calloc(threads, sizeof *workers);
  CUmodule module;
  if (!workers) exit(1);
  begin(&module);
  for (uint64_t i = 0; i < threads; i++) {
    workers[i].state = (seed + i) * 0x9E3779B97F4A7C15ull | 1;
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) exit(1);
  }
  if (forks) start_children(arguments);
  for (uint64_t i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
  free(workers);
  OK(cuModuleUnload, module);
  OK(cuDevicePrimaryCtxRelease_v2, 0);
}

/* --- Sharing between two processes, each thread with one of the other --- */

struct pair {
  pthread_t thread;
  int channel;
};

static void say_to(int channel, char word) {
  if (write(channel, &word, 1) != 1) expect(CUDA_ERROR_UNKNOWN, "write");
}

static void hear(int channel, char word) {
  char heard;
  if (read(channel, &heard, 1) != 1 || heard != word) expect(CUDA_ERROR_UNKNOWN, "read");
}

/* A descriptor beside a byte (unix(7), SCM_RIGHTS); -1: receive one. */
static int pass(int channel, int file) {
  union {
    char bytes[CMSG_SPACE(sizeof file)];
    struct cmsghdr aligned;
  } control = {{0}};
  char byte = 0;
  struct iovec data = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  if (file < 0) {
    if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) != 1) expect(CUDA_ERROR_UNKNOWN, "recvmsg");
    memcpy(&file, CMSG_DATA(head), sizeof file);
    return file;
  }
  *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof file), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(head), &file, sizeof file);
  if (sendmsg(channel, &message, 0) != 1) expect(CUDA_ERROR_UNKNOWN, "sendmsg");
  close(file);
  return -1;
}

static CUdeviceptr place(CUmemGenericAllocationHandle handle, size_t bytes) {
  CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}, .flags = 3};
  CUdeviceptr address;
  OK(cuMemAddressReserve, &address, bytes, (size_t)0, 0ull, 0ull);
  OK(cuMemMap, address, bytes, (size_t)0, handle, 0ull);
  OK(cuMemSetAccess, address, bytes, &access, (size_t)1);
  OK(cuMemRelease, handle);
  return address;
}

static void unplace(CUdeviceptr address, size_t bytes) {
  OK(cuMemUnmap, address, bytes);
  OK(cuMemAddressFree, address, bytes);
}

#define PHYSICAL_BYTES ((size_t)2 << 20)

static void *give(void *argument) {
  int channel = ((struct pair *)argument)->channel, file;
  CUmemAllocationProp wanted = {.type = 1,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
  OK(cuCtxSetCurrent, context);
  for (uint64_t i = 0; i < rounds; i++) {
    CUdeviceptr plain, placed;
    CUipcMemHandle told;
    CUmemGenericAllocationHandle handle;
    OK(cuMemAlloc_v2, &plain, (size_t)largest);
    OK(cuMemsetD32_v2, plain, (unsigned)i, (size_t)1);
    OK(cuIpcGetMemHandle, &told, plain);
    if (write(channel, &told, sizeof told) != sizeof told) expect(CUDA_ERROR_UNKNOWN, "write");
    OK(cuMemCreate, &handle, PHYSICAL_BYTES, &wanted, 0ull);
    OK(cuMemExportToShareableHandle, &file, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0ull);
    placed = place(handle, PHYSICAL_BYTES);
    pass(channel, file);
    hear(channel, 'o');
    if (i % 2) say_to(channel, 'g');
    if (i % 2) hear(channel, 'c');
    OK(cuMemFree_v2, plain);
    unplace(placed, PHYSICAL_BYTES);
    if (i % 2 == 0) say_to(channel, 'g');
    if (i % 2 == 0) hear(channel, 'c');
    atomic_fetch_add(&done, 1);
  }
  return NULL;
}

static void *take(void *argument) {
  int channel = ((struct pair *)argument)->channel;
  OK(cuCtxSetCurrent, context);
  for (uint64_t i = 0; i < rounds; i++) {
    CUdeviceptr plain, placed;
    CUipcMemHandle told;
    CUmemGenericAllocationHandle handle;
    unsigned found = 0;
    if (read(channel, &told, sizeof told) != sizeof told) expect(CUDA_ERROR_UNKNOWN, "read");
    OK(cuIpcOpenMemHandle_v2, &plain, told, (unsigned)CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    int file = pass(channel, -1);
    OK(cuMemImportFromShareableHandle, &handle, (void *)(intptr_t)file, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    close(file);
    placed = place(handle, PHYSICAL_BYTES);
    OK(cuMemcpyDtoH_v2, &found, plain, sizeof found);
    expect(found == (unsigned)i ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN, "the contents of an opened handle");
    say_to(channel, 'o');
    hear(channel, 'g');
    OK(cuIpcCloseMemHandle, plain);
    unplace(placed, PHYSICAL_BYTES);
    say_to(channel, 'c');
  }
  return NULL;
}

static void share(void) {
  int ends[2];
  struct pair *pairs = calloc(threads, 2 * sizeof *pairs);
  CUmodule module;
  if (!pairs) exit(1);
  for (uint64_t i = 0; i < threads; i++) {
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) exit(1);
    pairs[i].channel = ends[0];
    pairs[threads + i].channel = ends[1];
  }
  pid_t child = fork(); /* neither has used the driver yet */
  if (!child) prctl(PR_SET_PDEATHSIG, SIGKILL);
  struct pair *mine = child ? pairs : pairs + threads, *others = child ? pairs + threads : pairs;
  for (uint64_t i = 0; i < threads; i++) close(others[i].channel);
  begin(&module);
  for (uint64_t i = 0; i < threads; i++)
    if (pthread_create(&mine[i].thread, NULL, child ? give : take, &mine[i])) exit(1);
  for (uint64_t i = 0; i < threads; i++) pthread_join(mine[i].thread, NULL);
  OK(cuModuleUnload, module);
  OK(cuDevicePrimaryCtxRelease_v2, 0);
  free(pairs);
  if (!child) exit(0);
  await_child(child);
}

/* A target that is not there yet, or full cards on the way back, are asked again. */
static void insist(CUresult (*call)(), const char *name) {
  for (int attempt = 0; attempt < 1000; attempt++) {
    CUresult result = call((int)target, NULL);
    if (!result) return;
    if (result != CUDA_ERROR_OUT_OF_MEMORY && result != CUDA_ERROR_NOT_READY && result != CUDA_ERROR_INVALID_VALUE)
      expect(result, name);
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
  }
  expect(CUDA_ERROR_UNKNOWN, name);
}

static void suspend(void) {
  OK(cuInit, 0u);
  for (uint64_t i = 0; i < rounds; i++) {
    insist(p_cuCheckpointProcessLock, "cuCheckpointProcessLock");
    insist(p_cuCheckpointProcessCheckpoint, "cuCheckpointProcessCheckpoint");
    insist(p_cuCheckpointProcessRestore, "cuCheckpointProcessRestore");
    insist(p_cuCheckpointProcessUnlock, "cuCheckpointProcessUnlock");
    atomic_fetch_add(&done, 1);
  }
}

static void read_argument(const char *argument) {
  const struct {
    const char *name;
    uint64_t *value;
  } numbers[] = {
      {"threads=", &threads}, {"rounds=", &rounds}, {"seed=", &seed}, {"bytes=", &largest}, {"pid=", &target}};
  if (!strncmp(argument, "through=", 8)) {
    snprintf(through, sizeof through, "%s", argument + 8);
    return;
  }
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!strncmp(argument, numbers[i].name, strlen(numbers[i].name))) {
      *numbers[i].value = strtoull(argument + strlen(numbers[i].name), NULL, 10);
      return;
    }
  fprintf(stderr, "tf-exercise: %s: unknown; see the head of the source\n", argument);
  exit(64);
}

int main(int count, char **arguments) {
  for (int i = 2; i < count; i++) read_argument(arguments[i]);
  const char *mode = count > 1 ? arguments[1] : "";
  load_driver(through);
  if (!strcmp(mode, "suspend")) suspend();
  else if (!strcmp(mode, "share")) share();
  else if (!strcmp(mode, "mix") || !strcmp(mode, "fork")) mix(!strcmp(mode, "fork"), arguments);
  else {
    fprintf(stderr, "tf-exercise: the mode is mix, fork, share or suspend\n");
    return 64;
  }
  printf("{\"done\": %lu, \"refused\": %lu}\n", atomic_load(&done), atomic_load(&refused));
  return 0;
}
