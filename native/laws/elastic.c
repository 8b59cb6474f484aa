/* The elastic rate limiter as in vgpu.rs: what was drained is scaled by target over measured utilization, and a PID
 * controller corrects the rest. Ten times a second; a tick without a newer sample does nothing. */
#include "elastic.h"

#define LEAST_RATE 10.0
#define MOST_RATE 100000.0
#define LEAST_SPAN_S 0.05

static struct bucket bucket;

static void begin(const struct law_device *device) {
  bucket =
      (struct bucket){.target = device->share_pct / 100.0, .rate = 100, .capacity = 200, .tokens = 200, .filled = 200};
}

static bool take(uint64_t blocks, uint64_t threads) {
  (void)blocks;
  return bucket_take(&bucket, threads);
}

static void tick(const struct law_sample *sample) {
  if (sample->since_s <= 0) return;
  double span = sample->since_s > LEAST_SPAN_S ? sample->since_s : LEAST_SPAN_S;
  bucket.smooth += 0.3 * (sample->latest - bucket.smooth);
  double base = bucket.rate;
  if (bucket.smooth > 0.01)
    base = law_clamp(bucket_drain(&bucket, span) * bucket.target / bucket.smooth, LEAST_RATE, MOST_RATE);
  double error = bucket.target - bucket.smooth;
  bucket.integral = law_clamp(bucket.integral * 0.95 + error * span, -1, 1);
  double slope = (error - bucket.last_error) / span;
  double correction = law_clamp(0.5 * error + 0.1 * bucket.integral + 0.05 * slope, -0.5, 0.5);
  bucket.last_error = error;
  bucket.rate = law_clamp(base * (1 + correction), LEAST_RATE, MOST_RATE);
  bucket.capacity = law_clamp(2 * bucket.rate, 100, 200000);
  bucket.tokens = law_clamp(bucket.tokens + bucket.rate * span, 0, bucket.capacity);
  bucket.filled = bucket.tokens;
}

const struct law law = {.period_ns = 100000000, .begin = begin, .take = take, .tick = tick};
