/* tf-hook-cost: what a call costs bare and behind the preloaded limiter, alternately in one process.
 *
 *   tf-hook-cost time    median and 99th percentile in nanoseconds, a JSON line per kind of call
 *   tf-hook-cost count   each kind once bare and once hooked, COUNT calls, for an instruction counter that starts and
 *                        stops at `measured`
 *
 * Runs on the null driver only: it asks that driver for the bare functions. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "real_calls.h"

#define COUNT 1000
#define CHUNK 50
#define CHUNKS 4000
#define BYTES 1048576

struct calls {
  call_cuLaunchKernel *launch;
  call_cuMemGetInfo_v2 *info;
  call_cuMemAlloc_v2 *allocate;
  call_cuMemFree_v2 *release;
};

typedef void repeat(const struct calls *calls, int count);

static void launch(const struct calls *calls, int count) {
  for (int i = 0; i < count; i++) calls->launch((CUfunction)8, 108, 1, 1, 128, 1, 1, 0, (CUstream)16, NULL, NULL);
}
static void memory_info(const struct calls *calls, int count) {
  size_t left, total;
  for (int i = 0; i < count; i++) calls->info(&left, &total);
}
static void allocate_and_free(const struct calls *calls, int count) {
  CUdeviceptr address;
  for (int i = 0; i < count; i++) {
    calls->allocate(&address, BYTES);
    calls->release(address);
  }
}

static const struct {
  const char *name;
  repeat *run;
} kinds[] = {{"launch", launch}, {"memory_info", memory_info}, {"allocate_and_free", allocate_and_free}};
#define KINDS (sizeof kinds / sizeof *kinds)

__attribute__((noinline)) void measured(repeat *run, const struct calls *calls, int count) {
  run(calls, count);
  __asm__ volatile("" ::: "memory"); /* no sibling call: the counter stops when this function returns */
}

static uint64_t now_ns(void) {
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
}

static int compare(const void *one, const void *other) {
  double a = *(const double *)one, b = *(const double *)other;
  return (a > b) - (a < b);
}

static double chunk_ns(repeat *run, const struct calls *calls) {
  uint64_t start = now_ns();
  run(calls, CHUNK);
  return (double)(now_ns() - start) / CHUNK;
}

static void time_kind(size_t kind, const struct calls *bare, const struct calls *hooked) {
  static double bare_ns[CHUNKS], hooked_ns[CHUNKS];
  for (int i = 0; i < CHUNKS; i++) {
    bare_ns[i] = chunk_ns(kinds[kind].run, bare);
    hooked_ns[i] = chunk_ns(kinds[kind].run, hooked);
  }
  qsort(bare_ns, CHUNKS, sizeof *bare_ns, compare);
  qsort(hooked_ns, CHUNKS, sizeof *hooked_ns, compare);
  printf("{\"call\": \"%s\", \"bare_ns\": %.2f, \"hooked_ns\": %.2f, \"hooked_p99_ns\": %.2f}\n", kinds[kind].name,
         bare_ns[CHUNKS / 2], hooked_ns[CHUNKS / 2], hooked_ns[CHUNKS * 99 / 100]);
}

static struct calls find(void *(*address_of)(void *, const char *), void *library) {
  return (struct calls){
      (call_cuLaunchKernel *)address_of(library, "cuLaunchKernel"),
      (call_cuMemGetInfo_v2 *)address_of(library, "cuMemGetInfo_v2"),
      (call_cuMemAlloc_v2 *)address_of(library, "cuMemAlloc_v2"),
      (call_cuMemFree_v2 *)address_of(library, "cuMemFree_v2"),
  };
}

static void *(*null_address)(const char *);
static void *bare_address(void *library, const char *name) {
  (void)library;
  return null_address(name);
}
static void *usual_address(void *library, const char *name) { return dlsym(library, name); }

int main(int count, char **arguments) {
  int counting = count == 2 && !strcmp(arguments[1], "count");
  if (!counting && (count != 2 || strcmp(arguments[1], "time") != 0)) {
    fprintf(stderr, "tf-hook-cost: the argument is `time` or `count`\n");
    return 64;
  }
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  *(void **)&null_address = library ? dlsym(library, "tfNullAddress") : NULL;
  if (!null_address) {
    fprintf(stderr, "tf-hook-cost: libcuda.so.1 is not the null driver\n");
    return 1;
  }
  struct calls bare = find(bare_address, library), hooked = find(usual_address, library);
  CUcontext context;
  ((call_cuInit *)dlsym(library, "cuInit"))(0);
  ((call_cuDevicePrimaryCtxRetain *)dlsym(library, "cuDevicePrimaryCtxRetain"))(&context, 0);
  for (size_t i = 0; i < KINDS; i++) kinds[i].run(&hooked, COUNT);
  for (size_t i = 0; i < KINDS; i++) {
    if (!counting) {
      time_kind(i, &bare, &hooked);
      continue;
    }
    measured(kinds[i].run, &bare, COUNT);
    measured(kinds[i].run, &hooked, COUNT);
  }
  return 0;
}
