/* What a launch costs in device time, learned from events around some launches.
 *
 * A sample is a pair of events around one launch. It stands for all launches of the same kind since the last sample,
 * so what they were charged too little or too much is made good when it is read. Two things bound it: on a single
 * stream, the device time of all launches together cannot exceed the time that passed between the ends of samples; and
 * while other workers, processes or streams use the device, a launch also waits for them between its events, so then
 * the least of the last samples counts instead of their mean. What overlaps is still charged as if it ran alone; the sampler trims that. */
#include <string.h>

#include "limiter.h"

#define COSTS 4096u
#define PROBES 16u
#define SAMPLES 32u
#define FIRST_SAMPLES 4u
#define LOW_WINDOW 32u
#define PHASE_SAMPLES 3u
#define PHASE_RATIO 20u
#define SAMPLE_EVERY_NS 1000000ull /* device time between samples: two events per millisecond are not noticed */
#define CARRY_NS 10000000ull       /* of the time between two ends, what later samples may still use */
#define GUESS_NS 50000ull          /* before anything is known */

struct tf_sample {
  CUevent start, end;
  uint64_t context;
  struct tf_cost *cost;
  uint64_t launches, charged_ns, begun_ns;
  uint64_t expected_ns; /* what they should take by the estimate when the sample began */
  bool closed, failed;
};

struct ring {
  pthread_mutex_t lock;
  struct tf_sample items[SAMPLES];
  uint64_t head, tail;
  CUevent mark; /* the latest end read so far */
  uint64_t mark_context;
  uint64_t passed_ns; /* device time up to the mark that no launch was charged for */
  _Atomic uint64_t lane;  /* the stream of the latest launch */
  _Atomic uint32_t mixed; /* samples for which several streams are taken to be in use */
  _Atomic uint64_t in_flight_ns;
};

static struct tf_cost costs[COSTS];
static struct ring rings[TF_DEVICES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void prepare(void) {
  for (uint32_t i = 0; i < TF_DEVICES; i++) pthread_mutex_init(&rings[i].lock, NULL);
}

void tf_cost_after_fork(void) {
  memset(rings, 0, sizeof rings);
  prepare();
}

struct tf_cost *tf_cost_of(uint64_t key, uint64_t blocks) {
  uint64_t mixed = (key ^ blocks * 0xff51afd7ed558ccdull) * 0x9E3779B97F4A7C15ull | 1;
  uint32_t slot = (uint32_t)(mixed >> 40) % COSTS;
  for (uint32_t i = 0; i < PROBES; i++) {
    struct tf_cost *cost = &costs[(slot + i) % COSTS];
    uint64_t found = atomic_load_explicit(&cost->key, memory_order_acquire);
    if (LIKELY(found == mixed)) return cost;
    if (!found && (atomic_compare_exchange_strong(&cost->key, &found, mixed) || found == mixed)) {
      uint64_t unset = 0;
      atomic_compare_exchange_strong(&cost->estimate_ns, &unset, GUESS_NS);
      return cost;
    }
  }
  return &costs[slot]; /* a crowded place: shares an estimate with another kernel */
}

void tf_cost_forget(uint64_t key) {
  struct tf_cost *cost = tf_cost_of(key, 0);
  atomic_store(&cost->samples, 0);
  atomic_store(&cost->estimate_ns, GUESS_NS);
  cost->low_ns = cost->previous_low_ns = 0;
  cost->window = cost->surprises = 0;
}

static bool launched_ns(const struct tf_cost *cost, uint64_t device_ns) {
  uint64_t launches = atomic_load_explicit(&cost->launches, memory_order_relaxed);
  return launches * atomic_load_explicit(&cost->estimate_ns, memory_order_relaxed) >= device_ns;
}

static bool is_new(const struct tf_cost *cost) {
  return cost->surprises || atomic_load_explicit(&cost->samples, memory_order_relaxed) < FIRST_SAMPLES;
}

/* The distance varies, or a program that goes round its streams would be sampled on one of them only. */
bool tf_sample_due(const struct tf_cost *cost) {
  uint32_t samples = atomic_load_explicit(&cost->samples, memory_order_relaxed);
  return launched_ns(cost, SAMPLE_EVERY_NS + samples % 8 * (SAMPLE_EVERY_NS / 8)) || is_new(cost);
}

bool tf_sample_overdue(const struct tf_cost *cost) { return launched_ns(cost, 4 * SAMPLE_EVERY_NS) || is_new(cost); }

static bool ready_events(struct tf_sample *sample) {
  CUcontext context = NULL;
  if (REAL(cuCtxGetCurrent)(&context) || !context) return false;
  if (sample->context == (uint64_t)(uintptr_t)context) return true;
  if (sample->context) {
    REAL(cuEventDestroy_v2)(sample->start);
    REAL(cuEventDestroy_v2)(sample->end);
    sample->context = 0;
  }
  if (REAL(cuEventCreate)(&sample->start, 0)) return false;
  if (REAL(cuEventCreate)(&sample->end, 0)) {
    REAL(cuEventDestroy_v2)(sample->start);
    return false;
  }
  sample->context = (uint64_t)(uintptr_t)context;
  return true;
}

static CUresult record(CUevent event, const struct tf_launch *launch) {
  return launch->per_thread ? REAL(cuEventRecord_ptsz)(event, launch->stream)
                            : REAL(cuEventRecord)(event, launch->stream);
}

void tf_note_stream(const struct tf_launch *launch) {
  static __thread char own;
  struct ring *ring = &rings[launch->row];
  uint64_t lane =
      launch->per_thread && !launch->stream ? (uint64_t)(uintptr_t)&own : (uint64_t)(uintptr_t)launch->stream;
  uint64_t before = atomic_load_explicit(&ring->lane, memory_order_relaxed);
  if (LIKELY(before == lane)) return;
  atomic_store_explicit(&ring->lane, lane, memory_order_relaxed);
  atomic_store_explicit(&ring->mixed, LOW_WINDOW, memory_order_relaxed);
}

struct tf_sample *tf_sample_begin(struct tf_launch *launch) {
  pthread_once(&once, prepare);
  struct ring *ring = &rings[launch->row];
  struct tf_sample *sample = NULL;
  if (tf_any_capture() || pthread_mutex_trylock(&ring->lock)) return NULL;
  if (ring->tail - ring->head < SAMPLES) {
    sample = &ring->items[ring->tail % SAMPLES];
    if (!ready_events(sample) || record(sample->start, launch)) sample = NULL;
  }
  if (sample) {
    uint32_t mixed = atomic_load(&ring->mixed);
    if (mixed) atomic_compare_exchange_strong(&ring->mixed, &mixed, mixed - 1);
    ring->tail++;
    sample->cost = launch->cost;
    sample->launches = atomic_exchange(&launch->cost->launches, 0);
    sample->charged_ns = atomic_exchange(&launch->cost->charged_ns, 0);
    sample->expected_ns = atomic_load(&launch->cost->estimate_ns) * sample->launches;
    sample->begun_ns = tf_now();
    sample->closed = sample->failed = false;
    atomic_fetch_add(&launch->cost->waiting, 1);
    atomic_fetch_add(&ring->in_flight_ns, sample->expected_ns);
    atomic_fetch_add(&tf_ledger->states[launch->row].launches, sample->launches);
  }
  pthread_mutex_unlock(&ring->lock);
  return sample;
}

void tf_sample_end(struct tf_launch *launch, struct tf_sample *sample, CUresult result) {
  struct ring *ring = &rings[launch->row];
  bool failed = result || record(sample->end, launch);
  pthread_mutex_lock(&ring->lock);
  sample->failed = failed;
  sample->closed = true;
  pthread_mutex_unlock(&ring->lock);
}

/* On several streams of one process the least counts, unless samples in a row are so far above it that waiting for the
 * other streams hardly explains it: that is a new phase, and the least of those counts. */
static bool restart_low(struct tf_cost *cost, uint64_t measured, uint64_t low) {
  if (measured <= PHASE_RATIO * low) {
    cost->surprises = 0;
    return false;
  }
  if (!cost->surprises || measured < cost->surprise_ns) cost->surprise_ns = measured;
  if (++cost->surprises < PHASE_SAMPLES) return false;
  cost->low_ns = cost->surprise_ns;
  cost->previous_low_ns = cost->window = cost->surprises = 0;
  return true;
}

static void learn(struct tf_cost *cost, uint64_t measured, bool contended, bool others) {
  uint64_t estimate = atomic_load(&cost->estimate_ns), next = measured;
  if (!cost->low_ns || measured < cost->low_ns) cost->low_ns = measured;
  if (++cost->window >= LOW_WINDOW) {
    cost->previous_low_ns = cost->low_ns;
    cost->low_ns = cost->window = 0;
  }
  uint64_t low = cost->low_ns && (!cost->previous_low_ns || cost->low_ns < cost->previous_low_ns)
                     ? cost->low_ns
                     : cost->previous_low_ns;
  if (atomic_load(&cost->samples) && contended) {
    next = !others && restart_low(cost, measured, low) ? cost->low_ns : low;
  } else if (atomic_load(&cost->samples)) {
    bool surprise = measured > estimate + estimate / 2 || estimate > measured + measured / 2;
    cost->surprises = surprise ? cost->surprises + 1 : 0;
    /* One odd launch is an accident, two are a new phase. */
    if (cost->surprises < 2) next = estimate + ((int64_t)measured - (int64_t)estimate) / 4;
  }
  if (cost->surprises >= 4) cost->surprises = 0;
  atomic_store(&cost->estimate_ns, next ? next : 1);
  if (atomic_load(&cost->samples) < UINT32_MAX) atomic_fetch_add(&cost->samples, 1);
}

bool tf_others_run(int row) { return atomic_load(&tf_ledger->states[row].contended) || tf_view()->rows[row].contended; }

/* Lock held. Device time since the latest end before this one. */
static uint64_t since_mark(struct ring *ring, struct tf_sample *sample, uint64_t unknown) {
  float since_ms = 0;
  if (ring->mark_context != sample->context) {
    if (ring->mark_context) REAL(cuEventDestroy_v2)(ring->mark);
    ring->mark = sample->end;
    ring->mark_context = sample->context;
    if (REAL(cuEventCreate)(&sample->end, 0)) {
      REAL(cuEventDestroy_v2)(sample->start);
      sample->context = 0;
    }
    return unknown;
  }
  if (REAL(cuEventElapsedTime)(&since_ms, ring->mark, sample->end)) return unknown;
  if (since_ms <= 0) return 0;
  CUevent before = ring->mark;
  ring->mark = sample->end;
  sample->end = before;
  return (uint64_t)((double)since_ms * 1e6);
}

/* Lock held. Takes the oldest sample's measure into account. */
static void read_sample(struct ring *ring, int row, struct tf_sample *sample) {
  float taken_ms = 0;
  if (sample->failed || REAL(cuEventElapsedTime)(&taken_ms, sample->start, sample->end) || taken_ms < 0) return;
  uint64_t measured = (uint64_t)((double)taken_ms * 1e6), launches = sample->launches;
  tf_uncharged_over(row, sample->begun_ns);
  ring->passed_ns += since_mark(ring, sample, measured * launches);
  /* A launch may wait for another between its events: of another worker, another process of this one, or another
   * stream. */
  bool others = tf_others_run(row), shared = others || atomic_load(&ring->mixed);
  learn(sample->cost, measured, shared, others);
  uint64_t settled = shared ? atomic_load(&sample->cost->estimate_ns) : measured;
  uint64_t together = settled * launches;
  /* With several streams the sampler's trim stands for what overlaps. This bound besides would only act while the
   * device is busy, so charges and trim would chase each other. */
  if (!atomic_load(&ring->mixed) && together > ring->passed_ns) together = ring->passed_ns;
  ring->passed_ns -= together < ring->passed_ns ? together : ring->passed_ns;
  /* Streams end out of order, so what one sample leaves of the time counts for the next, but not idle time. */
  if (ring->passed_ns > CARRY_NS) ring->passed_ns = CARRY_NS;
  tf_correct(row, (int64_t)together - (int64_t)sample->charged_ns, sample->begun_ns);
  tf_note_length(&tf_ledger->states[row], settled);
}

bool tf_harvest(int row) {
  pthread_once(&once, prepare);
  struct ring *ring = &rings[row];
  if (tf_any_capture() || pthread_mutex_trylock(&ring->lock)) return true;
  while (ring->head < ring->tail) {
    struct tf_sample *sample = &ring->items[ring->head % SAMPLES];
    if (!sample->closed || (!sample->failed && REAL(cuEventQuery)(sample->end) == CUDA_ERROR_NOT_READY)) break;
    read_sample(ring, row, sample);
    atomic_fetch_sub(&sample->cost->waiting, 1);
    atomic_fetch_sub(&ring->in_flight_ns, sample->expected_ns);
    ring->head++;
  }
  bool any = ring->head < ring->tail;
  pthread_mutex_unlock(&ring->lock);
  return any;
}

/* A launch may wait for what its own stream waits for. As long as others end that began after it, launches take no longer
 * than they did. */
uint64_t tf_in_flight_ns(int row, uint64_t now_ns, uint64_t *stuck_ns) {
  struct ring *ring = &rings[row];
  uint64_t begun = now_ns;
  if (!pthread_mutex_trylock(&ring->lock)) {
    for (uint64_t at = ring->tail; at-- > ring->head;) {
      const struct tf_sample *sample = &ring->items[at % SAMPLES];
      if (sample->closed && !sample->failed && REAL(cuEventQuery)(sample->end) != CUDA_ERROR_NOT_READY) break;
      begun = sample->begun_ns;
    }
    pthread_mutex_unlock(&ring->lock);
  }
  *stuck_ns = now_ns > begun ? now_ns - begun : 0;
  return atomic_load(&ring->in_flight_ns);
}
