/* What the laws share: the way into the program, the clock, the samples and the thread that ticks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "law.h"
#include "tf_cuda.h"
#include "tf_nvml.h"

#define EXPORT __attribute__((visibility("default")))
#define POLL_NS 10000000ull /* how often a held launch asks again, in all three laws */
#define ROWS 64u
#define SM_COUNT 16         /* CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT */
#define THREADS_PER_SM 39   /* CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR */

typedef CUresult launch_kernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                               CUstream, void **, void **);

static launch_kernel *real_launch;
static uint64_t (*now_ns)(void);
static void (*wait_until)(uint64_t);
static nvmlReturn_t (*utilization)(nvmlDevice_t, nvmlProcessUtilizationSample_t *, unsigned *, unsigned long long);
static nvmlDevice_t handle;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static sem_t on_the_clock;

static void *real_dlsym(void *library, const char *name) {
  static void *(*find)(void *, const char *);
  /* The C library's own; its version differs by age and machine. */
  static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};
  for (unsigned i = 0; !find && i < sizeof versions / sizeof *versions; i++)
    find = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", versions[i]);
  return find ? find(library, name) : NULL;
}

static void *needed(void *library, const char *name) {
  void *found = library ? real_dlsym(library, name) : NULL;
  if (!found) {
    fprintf(stderr, "control law: %s is not there: laws run on the simulated driver\n", name);
    exit(1);
  }
  return found;
}

/* The share since a moment, and the stamp of the newest sample; 0 where nothing ran. */
static double measured_share(unsigned long long since_us, unsigned long long *newest_us) {
  nvmlProcessUtilizationSample_t samples[ROWS];
  unsigned count = ROWS;
  double share = 0;
  if (utilization(handle, samples, &count, since_us)) count = 0;
  for (unsigned i = 0; i < count; i++) {
    share += samples[i].smUtil / 100.0;
    if (newest_us && samples[i].timeStamp > *newest_us) *newest_us = samples[i].timeStamp;
  }
  return share;
}

static void *run(void *unused) {
  (void)unused;
  uint64_t next = now_ns() + law.period_ns;
  unsigned long long last_us = now_ns() / 1000;
  wait_until(now_ns());
  sem_post(&on_the_clock);
  for (;; next += law.period_ns) {
    wait_until(next);
    unsigned long long now_us = now_ns() / 1000, newest_us = last_us;
    struct law_sample sample = {.last_second = measured_share(now_us - 1000000, NULL)};
    sample.latest = measured_share(last_us, &newest_us);
    /* A process that does nothing has no sample at all. It must count as an idle one, or no law would wake it. */
    if (newest_us == last_us && now_us - last_us > 500000) newest_us = now_us;
    sample.since_s = (double)(newest_us - last_us) / 1e6;
    last_us = newest_us;
    pthread_mutex_lock(&lock);
    law.tick(&sample);
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

static void begin(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW), *management = dlopen("libnvidia-ml.so.1", RTLD_NOW);
  const char *share = getenv("TF_LAW_SHARE_PCT");
  struct law_device device = {.share_pct = share ? (uint32_t)strtoul(share, NULL, 10) : 100};
  CUresult (*attribute)(int *, int, CUdevice) = needed(driver, "cuDeviceGetAttribute");
  int sms, threads;
  pthread_t thread;
  *(void **)&real_launch = needed(driver, "cuLaunchKernel");
  *(void **)&now_ns = needed(driver, "tfSimNow");
  *(void **)&wait_until = needed(driver, "tfSimWaitUntil");
  *(void **)&utilization = needed(management, "nvmlDeviceGetProcessUtilization");
  ((nvmlReturn_t (*)(void))needed(management, "nvmlInit_v2"))();
  ((nvmlReturn_t (*)(unsigned, nvmlDevice_t *))needed(management, "nvmlDeviceGetHandleByIndex_v2"))(0, &handle);
  attribute(&sms, SM_COUNT, 0);
  attribute(&threads, THREADS_PER_SM, 0);
  device.sms = sms;
  device.threads_per_sm = threads;
  law.begin(&device);
  sem_init(&on_the_clock, 0, 0);
  if (pthread_create(&thread, NULL, run, NULL)) abort();
  pthread_detach(thread);
  sem_wait(&on_the_clock);
}

static bool taken(uint64_t blocks, uint64_t threads) {
  pthread_mutex_lock(&lock);
  bool now = law.take(blocks, threads);
  pthread_mutex_unlock(&lock);
  return now;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
                               void **parameters, void **extra) {
  uint64_t blocks = (uint64_t)grid_x * grid_y * grid_z, threads = blocks * block_x * block_y * block_z;
  pthread_once(&once, begin);
  while (!taken(blocks, threads)) wait_until(now_ns() + POLL_NS);
  return real_launch(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, parameters,
                     extra);
}

EXPORT void *dlsym(void *restrict library, const char *restrict name) {
  return strcmp(name, "cuLaunchKernel") ? real_dlsym(library, name) : (void *)cuLaunchKernel;
}
