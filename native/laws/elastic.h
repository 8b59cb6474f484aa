/* The bucket of the elastic rate limiter, in both of its variants. */
#ifndef TF_ELASTIC_H
#define TF_ELASTIC_H

#include <math.h>

#include "law.h"

struct bucket {
  double target, rate, capacity, tokens; /* share of the device, tokens per second, tokens, tokens */
  double filled;                         /* tokens after the last update */
  double smooth, integral, last_error;
};

/* A launch costs between 0.1 and 10 tokens, by its threads. */
static inline bool bucket_take(struct bucket *bucket, uint64_t threads) {
  double cost = 0.1 + (1 - exp(-(double)threads / 400000)) * 9.9;
  if (bucket->target >= 1) return true;
  if (bucket->tokens < cost) return false;
  bucket->tokens -= cost;
  return true;
}

/* Tokens per second that launches took since the last update. */
static inline double bucket_drain(struct bucket *bucket, double span_s) {
  return (bucket->filled - bucket->tokens) / span_s;
}

#endif
