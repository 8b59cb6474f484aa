/* tf-memory-mix: threads allocate and free memory of all classes by chance, and at each stop the sum that the program is
 * told (cuMemGetInfo: total less free) is held against what the simulated driver has counted for the process.
 *
 *   tf-memory-mix [threads=8] [operations=100000] [stop=1000] [seed=1] [least=4096] [largest=536870912] [held=24]
 *                 [managed=1] [through=LIMITER]
 *
 * `operations` are those of all threads together, each an allocation or a free; `stop`, how many lie between two
 * comparisons; sizes are spread evenly over their logarithms; `held` is the most that a thread holds. managed=0
 * leaves managed memory out, which the driver puts into host memory when the card is full. `through` as in
 * driver.h. Prints a JSON line; exit code 1 if a comparison or a call failed. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "driver.h"

#define MOST_HELD 256u
#define LEVELS 3u

enum class { PLAIN, MANAGED, PITCH, ASYNC, POOL, ARRAY, ARRAY3D, MIPMAP, PHYSICAL, GRAPH, CLASSES };

struct piece {
  enum class class;
  uint64_t value, more, bytes; /* an address or handle; what belongs to it */
  bool early; /* physical: its handle was released while it was mapped */
};

struct worker {
  pthread_t thread;
  uint64_t state, held;
  CUstream stream;
  CUmemoryPool pool;
  struct piece pieces[MOST_HELD];
};

static uint64_t threads = 8, operations = 100000, stop_after = 1000, seed = 1, least = 4096, largest = 512u << 20;
static uint64_t most = 24, managed = 1, stops, wrong;
static _Atomic uint64_t granted[CLASSES], refused;
static CUcontext context;
static pthread_barrier_t stop;
static char through[4096];
static int (*truth)(int, uint64_t *, uint64_t *, uint64_t *, uint64_t *);

static void expect(CUresult result, const char *call) {
  if (!result) return;
  fprintf(stderr, "tf-memory-mix: %s: %d\n", call, result);
  exit(1);
}
#define OK(call, ...) expect(p_##call(__VA_ARGS__), #call)

/* xorshift64 (Marsaglia, "Xorshift RNGs", 2003). */
static uint64_t chance(struct worker *self, uint64_t below) {
  self->state ^= self->state << 13;
  self->state ^= self->state >> 7;
  self->state ^= self->state << 17;
  return (self->state >> 11) % below;
}

static size_t size_of(struct worker *self) {
  double low = log((double)least), high = log((double)largest);
  return (size_t)exp(low + (high - low) * (double)chance(self, 1u << 20) / (1u << 20));
}

static CUresult new_array(struct piece *piece) {
  size_t rows = 64, depth = piece->class == ARRAY3D ? 8 : 0;
  size_t width = piece->bytes / 4 / rows / (depth ? depth : 1) + 1;
  CUDA_ARRAY_DESCRIPTOR flat = {.Width = width, .Height = rows, .Format = 0x20, .NumChannels = 1};
  CUDA_ARRAY3D_DESCRIPTOR deep = {.Width = width, .Height = rows, .Depth = depth, .Format = 0x20, .NumChannels = 1};
  if (piece->class == ARRAY) return p_cuArrayCreate_v2(&piece->value, &flat);
  if (piece->class == ARRAY3D) return p_cuArray3DCreate_v2(&piece->value, &deep);
  return p_cuMipmappedArrayCreate(&piece->value, &deep, LEVELS);
}

static CUresult new_physical(struct worker *self, struct piece *piece) {
  CUmemAllocationProp wanted = {.type = 1, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
  CUdeviceptr address;
  size_t step;
  OK(cuMemGetAllocationGranularity, &step, &wanted, 0);
  piece->bytes = (piece->bytes + step - 1) / step * step;
  CUresult result = p_cuMemCreate(&piece->value, (size_t)piece->bytes, &wanted, 0ull);
  if (result || !chance(self, 4)) return result; /* never mapped */
  OK(cuMemAddressReserve, &address, (size_t)piece->bytes, (size_t)0, 0ull, 0ull);
  OK(cuMemMap, address, (size_t)piece->bytes, (size_t)0, piece->value, 0ull);
  piece->more = address;
  piece->early = chance(self, 2);
  if (piece->early) OK(cuMemRelease, piece->value);
  return result;
}

static CUresult new_graph(struct piece *piece) {
  CUgraph graph;
  CUgraphNode node;
  CUDA_MEM_ALLOC_NODE_PARAMS memory = {.poolProps = {.allocType = 1, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}},
                                       .bytesize = piece->bytes};
  OK(cuGraphCreate, &graph, 0u);
  OK(cuGraphAddMemAllocNode, &node, graph, NULL, (size_t)0, &memory);
  piece->more = (uint64_t)(uintptr_t)graph;
  CUresult result = p_cuGraphInstantiateWithFlags(&piece->value, graph, 0ull);
  if (result) OK(cuGraphDestroy, graph);
  return result;
}

static CUresult make(struct worker *self, struct piece *piece) {
  size_t bytes = (size_t)piece->bytes, pitch;
  switch (piece->class) {
    case PLAIN: return p_cuMemAlloc_v2(&piece->value, bytes);
    case MANAGED: return p_cuMemAllocManaged(&piece->value, bytes, 1u);
    case PITCH: return p_cuMemAllocPitch_v2(&piece->value, &pitch, bytes / 16 + 1, (size_t)16, 4u);
    case ASYNC: return p_cuMemAllocAsync(&piece->value, bytes, self->stream);
    case POOL: return p_cuMemAllocFromPoolAsync(&piece->value, bytes, self->pool, self->stream);
    case PHYSICAL: return new_physical(self, piece);
    case GRAPH: return new_graph(piece);
    default: return new_array(piece);
  }
}

static void release_physical(const struct piece *piece) {
  if (piece->more) OK(cuMemUnmap, piece->more, (size_t)piece->bytes);
  if (piece->more) OK(cuMemAddressFree, piece->more, (size_t)piece->bytes);
  if (!piece->early) OK(cuMemRelease, piece->value);
}

static void release(struct worker *self, const struct piece *piece) {
  switch (piece->class) {
    case PLAIN:
    case MANAGED:
    case PITCH: OK(cuMemFree_v2, piece->value); break;
    case ASYNC:
    case POOL: /* freed in the order of a stream, or at once */
      if (chance(self, 2)) OK(cuMemFreeAsync, piece->value, self->stream);
      else OK(cuMemFree_v2, piece->value);
      break;
    case PHYSICAL: release_physical(piece); break;
    case MIPMAP: OK(cuMipmappedArrayDestroy, piece->value); break;
    case GRAPH:
      OK(cuGraphExecDestroy, piece->value);
      OK(cuGraphDestroy, piece->more);
      break;
    default: OK(cuArrayDestroy, piece->value);
  }
}

static void operate(struct worker *self) {
  if (self->held == most || (self->held && chance(self, 2))) {
    uint64_t at = chance(self, self->held);
    release(self, &self->pieces[at]);
    self->pieces[at] = self->pieces[--self->held];
    return;
  }
  struct piece piece = {.class = (enum class)chance(self, CLASSES), .bytes = size_of(self)};
  if (piece.class == MANAGED && !managed) piece.class = PLAIN;
  CUresult result = make(self, &piece);
  if (result && result != CUDA_ERROR_OUT_OF_MEMORY) expect(result, "an allocation");
  if (result) {
    atomic_fetch_add(&refused, 1);
    return;
  }
  atomic_fetch_add(&granted[piece.class], 1);
  self->pieces[self->held++] = piece;
}

/* While all threads stand still. */
static void compare(void) {
  uint64_t own, all, unused[2];
  size_t left, total;
  OK(cuMemGetInfo_v2, &left, &total);
  truth(0, &own, &all, &unused[0], &unused[1]);
  stops++;
  if (total - left == own) return;
  if (!wrong++) fprintf(stderr, "tf-memory-mix: stop %lu: told %zu, the driver has %lu\n", stops, total - left, own);
}

static void meet(void) {
  int turn = pthread_barrier_wait(&stop);
  if (turn == PTHREAD_BARRIER_SERIAL_THREAD) compare();
  pthread_barrier_wait(&stop);
}

static void *work(void *argument) {
  struct worker *self = argument;
  CUmemPoolProps wanted = {.allocType = 1, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
  uint64_t keeps = 64u << 20, between = stop_after / threads;
  OK(cuCtxSetCurrent, context);
  OK(cuStreamCreate, &self->stream, 1u);
  OK(cuMemPoolCreate, &self->pool, &wanted);
  OK(cuMemPoolSetAttribute, self->pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keeps);
  for (uint64_t i = 0; i < operations / threads; i++) {
    operate(self);
    if ((i + 1) % between == 0) meet();
  }
  while (self->held) release(self, &self->pieces[--self->held]);
  OK(cuMemPoolDestroy, self->pool);
  OK(cuStreamDestroy_v2, self->stream);
  meet();
  return NULL;
}

static void read_argument(const char *argument) {
  if (!strncmp(argument, "through=", 8)) {
    snprintf(through, sizeof through, "%s", argument + 8);
    return;
  }
  const struct {
    const char *name;
    uint64_t *value;
  } numbers[] = {{"threads=", &threads}, {"operations=", &operations}, {"stop=", &stop_after}, {"seed=", &seed},
                 {"least=", &least},     {"largest=", &largest},       {"held=", &most},       {"managed=", &managed}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!strncmp(argument, numbers[i].name, strlen(numbers[i].name))) {
      *numbers[i].value = strtoull(argument + strlen(numbers[i].name), NULL, 10);
      return;
    }
  fprintf(stderr, "tf-memory-mix: %s: unknown; see the head of the source\n", argument);
  exit(64);
}

int main(int count, char **arguments) {
  for (int i = 1; i < count; i++) read_argument(arguments[i]);
  if (!threads || stop_after < threads || most > MOST_HELD || least < 1 || least > largest) {
    fprintf(stderr, "tf-memory-mix: threads, stop, held, least or largest is out of range\n");
    return 64;
  }
  *(void **)&truth = look_up(load_driver(through), "tfSimTruth");
  if (!truth || pthread_barrier_init(&stop, NULL, (unsigned)threads)) return 1;
  struct worker *workers = calloc(threads, sizeof *workers);
  if (!workers) return 1;
  OK(cuInit, 0u);
  OK(cuDevicePrimaryCtxRetain, &context, 0);
  OK(cuCtxSetCurrent, context);
  for (uint64_t i = 0; i < threads; i++) {
    workers[i].state = (seed * 1000 + i) * 0x9E3779B97F4A7C15ull | 1;
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) exit(1);
  }
  for (uint64_t i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
  size_t left, total;
  OK(cuMemGetInfo_v2, &left, &total);
  printf("{\"stops\": %lu, \"wrong\": %lu, \"refused\": %lu, \"left\": %zu, \"granted\": [", stops, wrong,
         atomic_load(&refused), total - left);
  for (int i = 0; i < CLASSES; i++) printf("%s%lu", i ? ", " : "", atomic_load(&granted[i]));
  printf("]}\n");
  free(workers);
  return wrong != 0;
}
