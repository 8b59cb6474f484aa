/* The elastic rate limiter as in tensor-fusion's Go hypervisor: twice a second, fed with the utilization of the whole
 * device, the rate itself scaled by target over utilization, with a dead band and a limit on each step.
 *
 * Where the description leaves room: the utilization is the mean since the tick before, not the latest short sample,
 * which would miss most of what a refill lets through at once; the reserve is what every refill at least fills the
 * bucket to; and the rate is scaled up only when launches took most of it, since otherwise it did not hold them. */
#include "elastic.h"

#define PERIOD_NS 500000000ull
#define LEAST_RATE 10.0
#define MOST_RATE 200000.0
#define DEAD_BAND 0.03
#define RESERVE 0.35
#define LEAST_DRAIN 25.0
#define DRAIN_RATIO 0.8
#define UP 1.35
#define DOWN 0.75
#define IDLE 0.01

static struct bucket bucket;

static void begin(const struct law_device *device) {
  bucket =
      (struct bucket){.target = device->share_pct / 100.0, .rate = 100, .capacity = 200, .tokens = 200, .filled = 200};
}

static bool take(uint64_t blocks, uint64_t threads) {
  (void)blocks;
  return bucket_take(&bucket, threads);
}

static double next_rate(double span) {
  double error = bucket.target - bucket.smooth;
  if (error < DEAD_BAND && error > -DEAD_BAND) error = 0;
  bucket.integral = law_clamp(bucket.integral * 0.85 + error * span, -1.5, 1.5);
  double slope = (error - bucket.last_error) / span;
  bucket.last_error = error;
  double factor = law_clamp(1 + 0.9 * error + 0.35 * bucket.integral + 0.1 * slope, 0.5, 1.5);
  if (bucket.smooth < IDLE) return bucket.rate * UP;
  double drain = bucket_drain(&bucket, span), wanted = bucket.rate * factor;
  if (error != 0 && (error < 0 || (drain >= LEAST_DRAIN && drain >= DRAIN_RATIO * bucket.rate)))
    wanted *= bucket.target / bucket.smooth;
  return law_clamp(wanted, bucket.rate * DOWN, bucket.rate * UP);
}

static void tick(const struct law_sample *sample) {
  double span = PERIOD_NS / 1e9;
  bucket.smooth += 0.25 * (sample->latest - bucket.smooth);
  bucket.rate = law_clamp(next_rate(span), LEAST_RATE, MOST_RATE);
  bucket.capacity = law_clamp(0.5 * bucket.rate, 200, 200000);
  bucket.tokens = law_clamp(bucket.tokens + bucket.rate * span, RESERVE * bucket.capacity, bucket.capacity);
  bucket.filled = bucket.tokens;
}

const struct law law = {.period_ns = PERIOD_NS, .begin = begin, .take = take, .tick = tick};
