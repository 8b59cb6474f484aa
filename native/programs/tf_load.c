/* tf-load: a load on the driver, real or simulated, with a JSON line per interval.
 *
 *   tf-load [key=value ...]
 *     kernel_us=1000   length of a kernel
 *     then_us=0        length after `phase_s` seconds; 0 keeps the first
 *     phase_s=0
 *     grid=108         blocks
 *     mix_every=0      every so many launches one of another kernel; 0: never
 *     mix_us=0         its length
 *     mix_grid=1       its blocks
 *     seconds=10       how long
 *     kind=plain       plain, ex, cooperative, graph, per_thread
 *     nodes=10         kernels per graph
 *     sync=0           1: wait after every launch
 *     streams=1
 *     duty=100         percent of every 100 ms in which launches are made
 *     interval_ms=1000
 *     watch=0          1: a thread of its own prints the lines, on time even while a launch is held back
 *     device=0
 *     churn=0          bytes allocated and freed around every launch
 *     hold=0           bytes allocated once
 *     through=         the limiter's library, opened here instead of preloaded
 *     deadline_s=0     wall time after which the program is ended by SIGALRM, whatever it waits for; 0: never */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"

static int (*sim_virtual)(void);
static uint64_t (*sim_now)(void);
static void (*sim_wait)(uint64_t);
static int (*sim_truth)(int, uint64_t *, uint64_t *, uint64_t *, uint64_t *);

#define STREAMS 16

static struct {
  uint64_t kernel_us, then_us, phase_s, grid, seconds, nodes, sync, streams, duty, interval_ms, device, churn, hold,
      deadline_s, mix_every, mix_us, mix_grid, watch;
} given = {.kernel_us = 1000,
           .grid = 108,
           .mix_grid = 1,
           .seconds = 10,
           .nodes = 10,
           .streams = 1,
           .duty = 100,
           .interval_ms = 1000};
static char kind[16] = "plain", through[4096];

static void check(CUresult result, const char *call) {
  if (!result) return;
  printf("{\"error\": %d, \"call\": \"%s\"}\n", result, call);
  exit(result == CUDA_ERROR_OUT_OF_MEMORY ? 2 : 1);
}
#define DO(call, ...) check(p_##call(__VA_ARGS__), #call)

static void load(void) {
  void *library = load_driver(through);
  *(void **)&sim_virtual = dlsym(library, "tfSimVirtual");
  *(void **)&sim_now = dlsym(library, "tfSimNow");
  *(void **)&sim_wait = dlsym(library, "tfSimWaitUntil");
  *(void **)&sim_truth = dlsym(library, "tfSimTruth");
}

static uint64_t now_ns(void) {
  if (sim_virtual && sim_virtual()) return sim_now();
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
}

static void wait_until(uint64_t when) {
  if (sim_virtual && sim_virtual()) {
    sim_wait(when);
    return;
  }
  struct timespec until = {(time_t)(when / 1000000000ull), (long)(when % 1000000000ull)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void read_arguments(int count, char **arguments) {
  const struct {
    const char *name;
    uint64_t *value;
  } numbers[] = {{"kernel_us", &given.kernel_us}, {"then_us", &given.then_us},
                 {"phase_s", &given.phase_s},     {"grid", &given.grid},
                 {"seconds", &given.seconds},     {"nodes", &given.nodes},
                 {"sync", &given.sync},           {"streams", &given.streams},
                 {"duty", &given.duty},           {"interval_ms", &given.interval_ms},
                 {"device", &given.device},       {"churn", &given.churn},
                 {"hold", &given.hold},           {"mix_every", &given.mix_every},
                 {"mix_us", &given.mix_us},       {"mix_grid", &given.mix_grid},
                 {"watch", &given.watch},         {"deadline_s", &given.deadline_s}};
  for (int i = 1; i < count; i++) {
    char *value = strchr(arguments[i], '=');
    bool known = value != NULL;
    if (known) *value++ = 0;
    if (known && !strcmp(arguments[i], "kind")) snprintf(kind, sizeof kind, "%s", value);
    else if (known && !strcmp(arguments[i], "through")) snprintf(through, sizeof through, "%s", value);
    else if (known) {
      known = false;
      for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++)
        if (!strcmp(arguments[i], numbers[n].name)) *numbers[n].value = strtoull(value, NULL, 10), known = true;
    }
    if (known && given.streams >= 1 && given.streams <= STREAMS) continue;
    fprintf(stderr, "tf-load: %s: the arguments are key=value; see the head of the source\n", arguments[i]);
    exit(64);
  }
}

/* A kernel that lasts as long as it is told, by the device's clock of nanoseconds (PTX ISA, %globaltimer). */
static const char image[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n"
    ".visible .entry spin_us(.param .u64 length_us)\n{\n"
    ".reg .pred %p<2>;\n.reg .b64 %rd<5>;\n"
    "ld.param.u64 %rd1, [length_us];\nmul.lo.u64 %rd1, %rd1, 1000;\n"
    "mov.u64 %rd2, %globaltimer;\n"
    "again:\nmov.u64 %rd3, %globaltimer;\nsub.u64 %rd4, %rd3, %rd2;\n"
    "setp.lt.u64 %p1, %rd4, %rd1;\n@%p1 bra again;\nret;\n}\n";

static CUfunction function, mixed;
static CUstream streams[STREAMS];
static CUgraphExec graph;
static uint64_t length_us;
static void *parameters[] = {&length_us};

static void make_graph(void) {
  CUgraph built;
  DO(cuStreamBeginCapture_v2, streams[0], 2);
  for (uint64_t i = 0; i < given.nodes; i++)
    DO(cuLaunchKernel, function, (unsigned)given.grid, 1u, 1u, 128u, 1u, 1u, 0u, streams[0], parameters, NULL);
  DO(cuStreamEndCapture, streams[0], &built);
  DO(cuGraphInstantiateWithFlags, &graph, built, 0ull);
  DO(cuGraphDestroy, built);
}

static void launch(CUstream stream, CUfunction function, unsigned grid) {
  CUlaunchConfig config = {.gridDimX = grid,
                           .gridDimY = 1,
                           .gridDimZ = 1,
                           .blockDimX = 128,
                           .blockDimY = 1,
                           .blockDimZ = 1,
                           .hStream = stream};
  if (!strcmp(kind, "ex")) DO(cuLaunchKernelEx, &config, function, parameters, NULL);
  else if (!strcmp(kind, "cooperative"))
    DO(cuLaunchCooperativeKernel, function, grid, 1u, 1u, 128u, 1u, 1u, 0u, stream, parameters);
  else if (!strcmp(kind, "graph")) DO(cuGraphLaunch, graph, stream);
  else if (!strcmp(kind, "per_thread"))
    DO(cuLaunchKernel_ptsz, function, grid, 1u, 1u, 128u, 1u, 1u, 0u, NULL, parameters, NULL);
  else DO(cuLaunchKernel, function, grid, 1u, 1u, 128u, 1u, 1u, 0u, stream, parameters, NULL);
}

static void report(double at_s, double span_s, uint64_t launches) {
  static uint64_t last_own, last_all;
  uint64_t own_bytes = 0, all_bytes = 0, own = 0, all = 0;
  if (sim_truth) sim_truth((int)given.device, &own_bytes, &all_bytes, &own, &all);
  if (span_s > 0)
    printf("{\"t\": %.3f, \"launches\": %lu, \"busy_pct\": %.2f, \"device_pct\": %.2f, \"bytes\": %lu}\n", at_s,
           launches, (double)(own - last_own) / span_s / 1e7, (double)(all - last_all) / span_s / 1e7, own_bytes);
  fflush(stdout);
  last_own = own;
  last_all = all;
}

static _Atomic uint64_t launches;
static uint64_t start;

static sem_t watching;

static void *watch(void *unused) {
  (void)unused;
  wait_until(start); /* from now on virtual time does not run ahead of this thread */
  sem_post(&watching);
  uint64_t told = start;
  for (uint64_t next = start; next < start + given.seconds * 1000000000;) {
    next += given.interval_ms * 1000000;
    do wait_until(next);
    while (now_ns() < next);
    uint64_t now = now_ns();
    report((double)(now - start) / 1e9, (double)(now - told) / 1e9, atomic_load(&launches));
    told = now;
  }
  exit(0);
}

static void launch_next(void) {
  CUstream stream = streams[launches % given.streams];
  if (given.mix_every && launches % given.mix_every == given.mix_every - 1) {
    uint64_t usual = length_us;
    length_us = given.mix_us;
    launch(stream, mixed, (unsigned)given.mix_grid);
    length_us = usual;
  } else {
    launch(stream, function, (unsigned)given.grid);
  }
}

static void loop(void) {
  start = now_ns();
  uint64_t next = start + given.interval_ms * 1000000, told = start;
  pthread_t watcher;
  report(0, 0, 0);
  if (given.watch) {
    sem_init(&watching, 0, 0);
    if (pthread_create(&watcher, NULL, watch, NULL)) exit(1);
    sem_wait(&watching);
  }
  for (;;) {
    uint64_t now = now_ns();
    if (given.duty < 100 && (now - start) % 100000000 >= given.duty * 1000000) {
      now = now - (now - start) % 100000000 + 100000000;
      wait_until(now < next ? now : next);
      now = now_ns();
    }
    if (!given.watch && now >= next) {
      report((double)(now - start) / 1e9, (double)(now - told) / 1e9, launches);
      told = now;
      while (next <= now) next += given.interval_ms * 1000000;
      if (now - start >= given.seconds * 1000000000) return;
    }
    if (given.then_us && now - start >= given.phase_s * 1000000000) length_us = given.then_us;
    CUdeviceptr address = 0;
    if (given.churn) DO(cuMemAlloc_v2, &address, given.churn);
    launch_next();
    if (given.churn) DO(cuMemFree_v2, address);
    if (given.sync) DO(cuCtxSynchronize);
    launches++;
  }
}

int main(int count, char **arguments) {
  read_arguments(count, arguments);
  alarm((unsigned)given.deadline_s);
  load();
  CUcontext context;
  CUmodule module;
  CUdevice device;
  CUdeviceptr held;
  DO(cuInit, 0u);
  DO(cuDeviceGet, &device, (int)given.device);
  DO(cuDevicePrimaryCtxRetain, &context, device);
  DO(cuCtxSetCurrent, context);
  DO(cuModuleLoadData, &module, image);
  DO(cuModuleGetFunction, &function, module, "spin_us");
  DO(cuModuleGetFunction, &mixed, module, "spin_us");
  for (uint64_t i = 0; i < given.streams; i++) DO(cuStreamCreate, &streams[i], 1u);
  if (given.hold) DO(cuMemAlloc_v2, &held, given.hold);
  length_us = given.kernel_us;
  if (!strcmp(kind, "graph")) make_graph();
  loop();
  DO(cuModuleUnload, module);
  return 0;
}
