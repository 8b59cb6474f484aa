/* Compares what the worker was charged with what the management library measured, ten times a second, in one thread
 * of one process of the worker. The ratio trims later charges; it stays at one while the difference is no larger than
 * what the measurement can resolve. */
#define _GNU_SOURCE
#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "limiter.h"

#define PERIOD_NS 100000000ull
#define HISTORY 64u
#define IDLE_NS 500000000ull   /* a stamp may come so late */
#define FORGET 0.95          /* per period: a memory of two seconds */
#define KEPT 0.25           /* of that memory, where it proves to be of another phase */
#define RESOLUTION 0.006     /* whole percents, rounded */
#define SMOOTHING 0.25
#define LEAST_TRIM 0.1
#define MOST_TRIM 4.0
#define ROWS 1024u

/* What the worker was charged, and what became of it, at a moment; and what the measurement settled right after. */
struct tick {
  uint64_t at, charged, paced;
  int64_t settled;
};

struct follower {
  int row;
  char uuid[sizeof((struct tf_row *)0)->uuid]; /* of the row's device: a worker may move to another */
  nvmlDevice_t handle;
  bool failed, own_seen, based; /* based: what stood at the last stamp is known */
  unsigned long long last_us;
  unsigned compared; /* measurements that could be compared, up to a few */
  unsigned own_rows; /* processes of this worker in the latest measurement */
  double measured, charged, resolution, trim;
  double owed; /* device time that was had and not paid for; below zero, the other way round */
  struct tick ticks[HISTORY], last;
  uint64_t count, busy_at_last, seen_ns;
};

static _Atomic bool started;
static sem_t running;

void tf_sampler_after_fork(void) { atomic_store(&started, false); }

static double part_of(double part, uint64_t from, uint64_t to) { return part * (double)(int64_t)(to - from); }

/* What stood at a moment in the past, between the two ticks around it, and what was settled since. */
static struct tick counted_at(const struct follower *follower, uint64_t when) {
  uint64_t first = follower->count > HISTORY ? follower->count - HISTORY : 0, i = follower->count;
  struct tick found = follower->ticks[first % HISTORY];
  found.settled = 0;
  while (i-- > first) {
    const struct tick *from = &follower->ticks[i % HISTORY], *to = &follower->ticks[(i + 1) % HISTORY];
    found.settled += from->settled;
    if (from->at > when) continue;
    found.charged = from->charged;
    found.paced = from->paced;
    if (i + 1 == follower->count || to->at <= from->at) break;
    double part = (double)(when - from->at) / (double)(to->at - from->at);
    found.charged += (uint64_t)(int64_t)part_of(part, from->charged, to->charged);
    found.paced += (uint64_t)(int64_t)part_of(part, from->paced, to->paced);
    found.settled -= (int64_t)(part * (double)from->settled);
    break;
  }
  return found;
}

/* Time stamps are microseconds of the driver's own clock or of the wall clock, by product. */
static uint64_t stamp_to_ns(unsigned long long stamp_us, uint64_t now) {
  struct timespec moment;
  clock_gettime(CLOCK_REALTIME, &moment);
  uint64_t wall = (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec, stamp = stamp_us * 1000;
  uint64_t apart_now = stamp > now ? stamp - now : now - stamp;
  uint64_t apart_wall = stamp > wall ? stamp - wall : wall - stamp;
  return apart_now <= apart_wall ? stamp : now - (wall > stamp ? wall - stamp : 0);
}

/* Whether the ticks reach back that far: without both ends of a span it cannot be compared. */
static bool covers(const struct follower *follower, uint64_t when) {
  uint64_t first = follower->count > HISTORY ? follower->count - HISTORY : 0;
  return follower->ticks[first % HISTORY].at <= when;
}

static bool is_ours(unsigned pid, uint64_t space) {
  for (uint32_t i = 0; i < TF_PROCESSES; i++)
    if (atomic_load(&tf_ledger->processes[i].pid) == pid && tf_ledger->processes[i].pid_namespace == space) return true;
  return false;
}

static double noise_of(const struct follower *follower, const struct tf_device_state *state) {
  return follower->resolution + 2e3 * atomic_load(&state->longest_us);
}

static void publish(struct follower *follower, struct tf_device_state *state) {
  double difference = follower->measured - follower->charged;
  /* Alone on the device the charges are exact, and only what cannot be noise may move them. Beside others a lone
   * process follows the measurement; of several, each one's percentage is rounded for itself. */
  double noise = noise_of(follower, state);
  if (atomic_load(&state->contended) && follower->own_rows < 2) noise = 0;
  double target = 1;
  if (follower->charged > 0 && (difference > noise || -difference > noise))
    target = follower->measured / follower->charged;
  if (target < LEAST_TRIM) target = LEAST_TRIM;
  if (target > MOST_TRIM) target = MOST_TRIM;
  /* What stands out from the noise at the start is believed at once. */
  double smoothing = noise > 0 && follower->compared < 1 / SMOOTHING ? 1.0 / ++follower->compared : SMOOTHING;
  follower->trim += smoothing * (target - follower->trim);
  atomic_store(&state->trim_ppm, (uint32_t)(follower->trim * TF_WHOLE_DEVICE_PPM));
}

/* Whatever was charged, what was measured is what was had: the difference is charged or given back now. It comes of a
 * phase that changed faster than costs and trim are learned, so most of what those were learned from is forgotten. */
static void settle(struct follower *follower, const struct tf_device_state *state, int64_t settled_since) {
  uint64_t stuck_ns;
  double owed = follower->owed - (double)settled_since, noise = noise_of(follower, state);
  /* What is under way was charged and cannot have been measured. */
  if (owed <= noise && -owed <= noise + (double)tf_in_flight_ns(follower->row, tf_now(), &stuck_ns)) return;
  tf_settle(follower->row, (int64_t)owed);
  follower->ticks[(follower->count - 1) % HISTORY].settled += (int64_t)owed;
  follower->measured *= KEPT;
  follower->charged *= KEPT;
  follower->resolution *= KEPT;
}

static void account(struct follower *follower, struct tf_device_state *state, uint64_t until, double busy_ns,
                    double span_ns) {
  struct tick now = counted_at(follower, until);
  follower->measured = follower->measured * FORGET + busy_ns;
  follower->charged = follower->charged * FORGET + part_of(1, follower->last.charged, now.charged);
  unsigned rows = follower->own_rows ? follower->own_rows : 1;
  double rounded = RESOLUTION * span_ns * rows;
  follower->resolution = follower->resolution * FORGET + rounded;
  follower->owed += busy_ns - part_of(1, follower->last.paced, now.paced);
  /* What rounding may have done to this measurement is forgotten, so that it does not add up. */
  follower->owed -= follower->owed > rounded ? rounded : follower->owed < -rounded ? -rounded : follower->owed;
  follower->last = now;
  if (busy_ns > 0) publish(follower, state);
  settle(follower, state, now.settled);
  uint32_t longest = atomic_load(&state->longest_us);
  atomic_store(&state->longest_us, longest - longest / 4);
}

static void rebase(struct follower *follower, uint64_t when) {
  follower->based = covers(follower, when);
  follower->last = counted_at(follower, when);
  /* A launch that is under way had the device until then, and will be charged for that too. */
  uint64_t now = tf_now(), stuck_ns, flying = tf_in_flight_ns(follower->row, now, &stuck_ns);
  follower->owed = flying && now - stuck_ns < when ? (double)(when - (now - stuck_ns)) : 0;
}

static void note_charges(struct follower *follower, const struct tf_device_state *state, uint64_t now) {
  uint64_t before = follower->ticks[(follower->count + HISTORY - 1) % HISTORY].at;
  if (follower->count && now - before > 5 * PERIOD_NS) {
    /* The thread was kept from running; what lies between is not known. */
    follower->count = 0;
    follower->based = false;
  }
  follower->ticks[follower->count++ % HISTORY] =
      (struct tick){now, atomic_load(&state->charged_ns), atomic_load(&state->paced_ns), 0};
}

/* The owner measures from outside, where process ids are true. */
static void read_owner(struct follower *follower, struct tf_device_state *state, const struct tf_row *limit) {
  unsigned long long at_us = limit->measured_at_ns / 1000;
  if (follower->based && at_us > follower->last_us)
    account(follower, state, limit->measured_at_ns, (double)(limit->measured_busy_ns - follower->busy_at_last),
            (double)(at_us - follower->last_us) * 1e3);
  else if (!follower->based) rebase(follower, limit->measured_at_ns);
  follower->busy_at_last = limit->measured_busy_ns;
  follower->last_us = at_us;
}

/* No process was busy since the last stamp. Without this step, a launch after a pause would be charged in the pause
 * and measured after it. */
static void step_idle(struct follower *follower, struct tf_device_state *state, uint64_t now) {
  if (!follower->last_us || now - follower->seen_ns < IDLE_NS + PERIOD_NS) return;
  uint64_t span = now - follower->seen_ns - IDLE_NS;
  follower->seen_ns += span;
  follower->last_us += span / 1000;
  uint64_t until = stamp_to_ns(follower->last_us, now);
  if (follower->based) account(follower, state, until, 0, (double)span);
  else rebase(follower, until);
}

static void read_library(struct follower *follower, struct tf_device_state *state, uint64_t now) {
  static nvmlProcessUtilizationSample_t samples[ROWS];
  unsigned count = ROWS, own = 0, own_rows = 0, others = 0;
  unsigned long long newest = 0;
  if (follower->failed) return;
  nvmlReturn_t result = REAL(nvmlDeviceGetProcessUtilization)(follower->handle, samples, &count, follower->last_us);
  if (result == NVML_ERROR_NOT_FOUND) step_idle(follower, state, now);
  if (result) return;
  uint64_t space = tf_pid_namespace();
  for (unsigned i = 0; i < count && i < ROWS; i++) {
    if (samples[i].timeStamp > newest) newest = samples[i].timeStamp;
    if (is_ours(samples[i].pid, space)) {
      own += samples[i].smUtil;
      own_rows += samples[i].smUtil > 0;
    } else {
      others += samples[i].smUtil;
    }
  }
  if (newest <= follower->last_us) return;
  /* Of several processes each percentage is its own time; together they cannot have had more than all of it. */
  if (own > 100) own = 100;
  atomic_store(&state->contended, others > 0 || own_rows > 1);
  follower->own_rows = own_rows;
  follower->own_seen |= own > 0;
  double span = (double)(newest - follower->last_us) * 1e3;
  uint64_t until = stamp_to_ns(newest, now);
  /* Where process ids mean something else, as in some containers, nothing of ours is ever seen: then nothing is
   * compared either. */
  if (follower->based && follower->own_seen && span < 1e9) account(follower, state, until, span * own / 100, span);
  else rebase(follower, until);
  follower->last_us = newest;
  follower->seen_ns = now;
}

static void measure(struct follower *follower, int row, uint64_t now) {
  struct tf_device_state *state = &tf_ledger->states[row];
  const struct tf_row *limit = &tf_view()->rows[row];
  note_charges(follower, state, now);
  if (tf_unlimited(row) || tf_uncharged_measured(row)) follower->based = false;
  if (limit->measured_at_ns) read_owner(follower, state, limit);
  else read_library(follower, state, now);
}

static void follow(struct follower *followers) {
  const struct tf_view *view = tf_view();
  uint64_t now = tf_now();
  for (uint32_t row = 0; view && row < view->device_count; row++) {
    struct follower *follower = &followers[row];
    if (strcmp(follower->uuid, view->rows[row].uuid) != 0) {
      *follower = (struct follower){.row = (int)row, .trim = 1};
      memcpy(follower->uuid, view->rows[row].uuid, sizeof follower->uuid);
      follower->failed = REAL(nvmlDeviceGetHandleByUUID)(view->rows[row].uuid, &follower->handle) != NVML_SUCCESS;
    }
    measure(follower, (int)row, now);
  }
}

static void *run(void *unused) {
  (void)unused;
  struct follower *followers = calloc(TF_DEVICES, sizeof *followers);
  bool elected = false;
  tf_wait_until(tf_now()); /* on the simulator's clock from now on */
  sem_post(&running);
  tf_load_management();
  REAL(nvmlInit_v2)();
  tf_wait_until(tf_now() + PERIOD_NS);
  while (followers && atomic_load(&started)) {
    if (!elected) {
      int state = pthread_mutex_trylock(&tf_ledger->sampler);
      if (state == EOWNERDEAD) pthread_mutex_consistent(&tf_ledger->sampler);
      elected = !state || state == EOWNERDEAD;
    }
    if (elected) follow(followers);
    tf_wait_until(tf_now() + PERIOD_NS);
  }
  free(followers);
  return NULL;
}

void tf_sampler_start(void) {
  bool no = false;
  if (LIKELY(atomic_load_explicit(&started, memory_order_relaxed))) return;
  if (!atomic_compare_exchange_strong(&started, &no, true)) return;
  sem_init(&running, 0, 0);
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  /* The application's signals are its own threads' business. */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  bool created = !pthread_create(&thread, &attributes, run, NULL);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  /* Simulated time must not run away from a thread that has not seen it yet. */
  while (created && sem_wait(&running)) continue;
}
