/* Admission of launches.
 *
 * One word per worker and device holds the time at which all device time reserved so far will have been earned at the
 * worker's share. A reservation moves it by cost x trim / share and may be used from where it was before (the virtual
 * scheduling form of the generic cell rate algorithm, ITU-T I.371). One compare-and-swap is the whole of it, so a
 * process may die at any instruction. */
#include "limiter.h"

#define QUANTUM_NS 2000000ull      /* wall time that is reserved at once: one sleep per quantum */
#define CREDIT_NS 10000000ull      /* device time that may be saved up, for sleeps that end late */
#define DEBT_NS 60000000000ull     /* no launch waits longer than this for its turn */
#define WINDOW_NS 20000000ull      /* charged device time under way per process, so that a decision acts soon */
#define WINDOW_WAIT_NS 250000000ull /* then the launch goes out all the same: kernels may wait for each other */
#define UNKNOWN_WAIT_NS 100000000ull
#define PATIENCE_NS 1000000ull      /* by the next turn the first launch of the one before should have ended */
#define TURN_LAUNCHES \
  32u /* in one reservation, by the part of the time that is not the worker's; see `most_launches` */
#define WATCHED_LAUNCHES 8u /* a turn of more begins with one that is timed */
#define LOOK_AGAIN_NS 50000000ull
#define MEASURED_WITHIN_NS 300000000ull /* what ended is in the next measurement by then */

static uint32_t share_of(const struct tf_row *row) {
  uint32_t share = atomic_load_explicit(&row->compute_ppm, memory_order_relaxed);
  return share && share < TF_WHOLE_DEVICE_PPM ? share : TF_WHOLE_DEVICE_PPM;
}

bool tf_unlimited(int row) { return share_of(&tf_view()->rows[row]) == TF_WHOLE_DEVICE_PPM; }

static uint32_t trim_of(const struct tf_device_state *state) {
  uint32_t trim = atomic_load_explicit(&state->trim_ppm, memory_order_relaxed);
  return LIKELY(trim) ? trim : TF_WHOLE_DEVICE_PPM;
}

/* Device time that this process has reserved and not yet used. */
static _Atomic int64_t allowances[TF_DEVICES];

/* What a process launched before it had a limit was not charged, and may be queued for long. Until when charges say
 * less than what is measured; for ever, as long as no sample has ended that was begun since. */
static _Atomic uint64_t uncharged_until_ns[TF_DEVICES], limited_since_ns[TF_DEVICES];
static _Atomic uint32_t shares[TF_DEVICES]; /* as this process had them last */

bool tf_uncharged_queued(int row) { return atomic_load(&uncharged_until_ns[row]) == UINT64_MAX; }

bool tf_uncharged_measured(int row) { return tf_now() < atomic_load(&uncharged_until_ns[row]); }

void tf_uncharged_over(int row, uint64_t begun_ns) {
  if (LIKELY(!tf_uncharged_queued(row)) || begun_ns < atomic_load(&limited_since_ns[row])) return;
  atomic_store(&uncharged_until_ns[row], tf_now() + MEASURED_WITHIN_NS);
}

/* Moves the word by `wall_ns` and returns where it was. What was earned before `since_ns` and not used is lost, but for
 * a small credit; debt is bounded too. */
static uint64_t move(struct tf_device_state *state, double wall_ns, uint64_t since_ns, uint32_t share) {
  uint64_t now = tf_now(), credit = CREDIT_NS * TF_WHOLE_DEVICE_PPM / share;
  uint64_t floor = since_ns > credit ? since_ns - credit : 0;
  uint64_t ready = atomic_load_explicit(&state->ready_at_ns, memory_order_relaxed), start, next;
  do {
    start = ready > floor ? ready : floor;
    if (start > now + DEBT_NS) start = now + DEBT_NS;
    double moved = (double)(int64_t)(start - now) + wall_ns;
    /* A refund cannot reach back beyond the credit either. */
    next = moved < 0 && (uint64_t)-moved > now - floor ? floor : now + (uint64_t)(int64_t)moved;
  } while (!atomic_compare_exchange_weak(&state->ready_at_ns, &ready, next));
  return start;
}

static int64_t trimmed(int64_t device_ns, uint32_t trim) {
  return (int64_t)((double)device_ns * trim / TF_WHOLE_DEVICE_PPM);
}

/* Device time becomes wall time at the worker's share. */
static double earned_in(int64_t device_ns, uint32_t share) { return (double)device_ns * TF_WHOLE_DEVICE_PPM / share; }

static void pay(int row, int64_t paced_ns, uint64_t since_ns) {
  struct tf_device_state *state = &tf_ledger->states[row];
  uint32_t share = share_of(&tf_view()->rows[row]);
  move(state, earned_in(paced_ns, share), since_ns, share);
  atomic_fetch_add(&state->paced_ns, (uint64_t)paced_ns);
}

/* What of a charge the measurement has charged already, while the launch ran. */
static int64_t advanced(struct tf_device_state *state, int64_t paced_ns, uint64_t begun_ns) {
  uint64_t known = atomic_load(&state->advanced_ns), used;
  if (begun_ns >= atomic_load(&state->advanced_at_ns)) {
    /* Whatever that was for, it is over. */
    if (known) atomic_compare_exchange_strong(&state->advanced_ns, &known, 0);
    return 0;
  }
  do used = paced_ns < 0 ? 0 : known < (uint64_t)paced_ns ? known : (uint64_t)paced_ns;
  while (used && !atomic_compare_exchange_weak(&state->advanced_ns, &known, known - used));
  return (int64_t)used;
}

void tf_correct(int row, int64_t device_ns, uint64_t since_ns) {
  struct tf_device_state *state = &tf_ledger->states[row];
  int64_t paced = trimmed(device_ns, trim_of(state));
  pay(row, paced - advanced(state, paced, since_ns), since_ns);
  atomic_fetch_add(&state->charged_ns, (uint64_t)device_ns);
}

void tf_settle(int row, int64_t device_ns) {
  struct tf_device_state *state = &tf_ledger->states[row];
  uint64_t now = tf_now();
  if (device_ns > 0) {
    atomic_store(&state->advanced_at_ns, now);
    atomic_fetch_add(&state->advanced_ns, (uint64_t)device_ns);
  } else {
    advanced(state, -device_ns, 0);
  }
  pay(row, device_ns, now);
}

void tf_rescale(const struct tf_view *view) {
  for (uint32_t i = 0; i < view->device_count; i++) {
    struct tf_device_state *state = &tf_ledger->states[i];
    uint32_t share = share_of(&view->rows[i]), before = atomic_exchange(&state->share_ppm, share);
    if (atomic_exchange(&shares[i], share) == TF_WHOLE_DEVICE_PPM && share < TF_WHOLE_DEVICE_PPM) {
      atomic_store(&limited_since_ns[i], tf_now());
      atomic_store(&uncharged_until_ns[i], UINT64_MAX);
    }
    if (!before || before == share) continue;
    /* A debt stays the same in device time. */
    uint64_t now = tf_now(), ready = atomic_load(&state->ready_at_ns);
    while (ready > now && !atomic_compare_exchange_weak(&state->ready_at_ns, &ready,
                                                        now + (uint64_t)((double)(ready - now) * before / share)))
      continue;
  }
}

/* Until its turn has come, the debt before it was refunded, or the limit is lifted. */
static void hold(int row, uint64_t turn, uint32_t share) {
  struct tf_device_state *state = &tf_ledger->states[row];
  uint64_t start = tf_now(), now = start;
  while (turn > now) {
    tf_wait_until(turn < now + LOOK_AGAIN_NS ? turn : now + LOOK_AGAIN_NS);
    tf_harvest(row); /* a late correction could not be compared with what was measured meanwhile */
    uint32_t changed = share_of(&tf_view()->rows[row]);
    uint64_t ready = atomic_load(&state->ready_at_ns);
    now = tf_now();
    if (changed == TF_WHOLE_DEVICE_PPM) break;
    if (changed != share && turn > now) turn = now + (uint64_t)((double)(turn - now) * share / changed);
    share = changed;
    if (ready < turn) turn = ready;
  }
  atomic_fetch_add(&state->throttled_ns, now - start);
}

/* Keeps the work under way small, and learns a new kernel's cost before much of it is launched. */
static void wait_for_samples(struct tf_launch *launch) {
  uint64_t start = tf_now(), now = start, step = 20000, age;
  for (;;) {
    bool any = tf_harvest(launch->row);
    uint64_t estimate = atomic_load(&launch->cost->estimate_ns);
    uint64_t flying = tf_in_flight_ns(launch->row, now, &age);
    uint64_t window = estimate * 2 > WINDOW_NS ? estimate * 2 : WINDOW_NS;
    bool unknown = !atomic_load(&launch->cost->samples) && atomic_load(&launch->cost->waiting);
    /* What takes much longer than it was charged for is a new phase: its length must be known before more of it goes.
     * With others at work, their launches may be what it waits for. */
    bool late = age > PATIENCE_NS + 2 * estimate && !tf_others_run(launch->row) && !tf_uncharged_queued(launch->row);
    if (!any || (!unknown && !late && flying <= window)) return;
    if (now - start > (unknown ? UNKNOWN_WAIT_NS : WINDOW_WAIT_NS)) {
      /* It has been under way so long, so it costs at least that; or one of those before it does, by equal shares. */
      if (late && !unknown) age /= flying / (estimate ? estimate : 1) + 1;
      if (((unknown && !tf_uncharged_queued(launch->row)) || late) && age > estimate)
        atomic_store(&launch->cost->estimate_ns, age);
      return;
    }
    tf_wait_until(now + step);
    if (step < 1000000) step *= 2;
    now = tf_now();
  }
}

static CUresult refuse_or_wait(void) {
  /* A silent owner under a closed policy: hold the launch until it is back. A file that cannot be read: an error. */
  while (tf_refused()) {
    if (tf_attach() == TF_BROKEN) return CUDA_ERROR_NOT_PERMITTED;
    tf_wait_until(tf_now() + LOOK_AGAIN_NS);
  }
  return CUDA_SUCCESS;
}

/* How many launches a turn may have. Should all of them take far longer than expected, they run all the same, and are over
 * the share by the part of their time that is not the worker's. */
static uint64_t most_launches(uint32_t share) {
  return (uint64_t)TURN_LAUNCHES * TF_WHOLE_DEVICE_PPM / (TF_WHOLE_DEVICE_PPM - share + 1);
}

/* A process reserves a quantum at a time and takes its turns in the order of the reservations, so the processes of a
 * worker share evenly and most launches touch no shared line. Returns how many launches the turn has that this one
 * begins; 0: it begins none. */
static uint64_t spend(int row, uint64_t estimate, uint32_t share) {
  int64_t left = atomic_fetch_sub(&allowances[row], (int64_t)estimate) - (int64_t)estimate;
  if (LIKELY(left >= 0)) return 0;
  /* Asked once a turn: a launch in between is worth no look at the clock, and ends with what was reserved. */
  if (tf_owner_is_silent(tf_view())) refuse_or_wait();
  struct tf_device_state *state = &tf_ledger->states[row];
  uint64_t wanted = QUANTUM_NS * share / TF_WHOLE_DEVICE_PPM, most = most_launches(share) * estimate;
  if (wanted > most) wanted = most;
  if (wanted < estimate) wanted = estimate;
  int64_t paced = trimmed((int64_t)wanted, trim_of(state));
  uint64_t turn = move(state, earned_in(paced, share), tf_now(), share);
  hold(row, turn, share);
  /* Charged when it may run, not when it was reserved: only so can charges be compared with what is measured. */
  atomic_fetch_add(&state->charged_ns, wanted);
  atomic_fetch_add(&state->paced_ns, (uint64_t)paced);
  atomic_fetch_add(&allowances[row], (int64_t)wanted);
  return estimate ? wanted / estimate : 1;
}

static void admit(struct tf_launch *launch, const struct tf_view *view, uint64_t key, uint64_t blocks) {
  struct tf_cost *cost = launch->cost = tf_cost_of(key, blocks);
  atomic_fetch_add_explicit(&cost->launches, 1, memory_order_relaxed);
  tf_note_stream(launch);
  bool due = tf_sample_due(cost);
  if (due) {
    tf_sampler_start();
    wait_for_samples(launch);
  }
  launch->estimate_ns = atomic_load_explicit(&cost->estimate_ns, memory_order_relaxed);
  atomic_fetch_add_explicit(&cost->charged_ns, launch->estimate_ns, memory_order_relaxed);
  uint64_t turn = spend(launch->row, launch->estimate_ns, share_of(&view->rows[launch->row]));
  if (turn) wait_for_samples(launch);
  /* The first launch of a turn finds the device free of our own work, so it does not wait between its events. */
  if (turn > WATCHED_LAUNCHES || (due && (turn || tf_sample_overdue(cost)))) launch->sample = tf_sample_begin(launch);
}

CUresult tf_admit(struct tf_launch *launch, uint64_t key, uint64_t blocks, CUstream stream, bool per_thread) {
  launch->cost = NULL;
  launch->sample = NULL;
  const struct tf_view *view = tf_view();
  if (!view) return tf_attach() == TF_BROKEN ? refuse_or_wait() : CUDA_SUCCESS;
  int row = tf_current_row();
  if (row == TF_NO_ROW) return CUDA_SUCCESS;
  if (share_of(&view->rows[row]) == TF_WHOLE_DEVICE_PPM || tf_is_capturing(stream, per_thread))
    return view->policy == TF_POLICY_CLOSED && tf_owner_is_silent(view) ? refuse_or_wait() : CUDA_SUCCESS;
  launch->row = row;
  launch->stream = stream;
  launch->per_thread = per_thread;
  admit(launch, view, key, blocks);
  return CUDA_SUCCESS;
}

void tf_launched(struct tf_launch *launch, CUresult result) {
  if (launch->sample) tf_sample_end(launch, launch->sample, result);
  if (result) atomic_fetch_add(&allowances[launch->row], (int64_t)launch->estimate_ns);
}
