/* A published control law for GPU time, written anew from its description, to compare ours with.
 *
 * Each law is a preload library of its own, from one law file and preload.c. It runs on the simulated driver in virtual
 * time only, and paces cuLaunchKernel. It is for benchmarks: nothing of it is installed. */
#ifndef TF_LAW_H
#define TF_LAW_H

#include <stdbool.h>
#include <stdint.h>

struct law_device {
  uint32_t share_pct; /* what the tenant may use of the device's time */
  int64_t sms, threads_per_sm;
};

/* What a tick learns from the management library: shares from 0 to 1. The tenant is alone on the machine, so its own
 * share and the device's are the same. */
struct law_sample {
  double last_second; /* over the last second */
  double latest;      /* since the sample before */
  double since_s;     /* time between the stamps of this sample and the one before; 0: there is no newer one */
};

struct law {
  uint64_t period_ns;
  void (*begin)(const struct law_device *device);
  /* Takes what a launch costs; false: not now, ask again later. Never called together with `tick`. */
  bool (*take)(uint64_t blocks, uint64_t threads);
  void (*tick)(const struct law_sample *sample);
};

extern const struct law law;

static inline double law_clamp(double value, double least, double most) {
  return value < least ? least : value > most ? most : value;
}

#endif
