/* The token loop of HAMi-core: a launch costs its blocks; every 120 ms the bucket gets a share of the device that grows
 * while the measured utilization is below the limit and shrinks while it is above. Integer arithmetic as there. */
#include "law.h"

static int64_t limit, sms, threads_per_sm; /* limit in percent */
static int64_t tokens, most, share;
static bool measured; /* nothing is held back before the first tick */

static void begin(const struct law_device *device) {
  limit = device->share_pct;
  sms = device->sms;
  threads_per_sm = device->threads_per_sm;
  most = threads_per_sm * sms * 32;
}

static bool take(uint64_t blocks, uint64_t threads) {
  (void)threads;
  if (!measured || limit >= 100) return true;
  if (tokens < 0) return false;
  tokens -= (int64_t)blocks; /* may go far below zero */
  return true;
}

static void tick(const struct law_sample *sample) {
  int64_t used = (int64_t)(sample->last_second * 100 + 0.5), apart = limit > used ? limit - used : used - limit;
  if (apart < 5) apart = 5;
  int64_t step = sms * sms * threads_per_sm * apart / 2560;
  if (apart > limit / 2) step = step * apart * 2 / (limit + 1);
  if (used <= limit) share = share + step > most ? most : share + step;
  else share = share > step ? share - step : 0;
  if (share == most && tokens < 0) share = most *= 2;
  tokens = tokens + share > most ? most : tokens + share;
  measured = true;
}

const struct law law = {.period_ns = 120000000, .begin = begin, .take = take, .tick = tick};
