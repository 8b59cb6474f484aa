/* What the parts of the limiter offer each other. */
#ifndef TF_LIMITER_H
#define TF_LIMITER_H

#include <stdbool.h>
#include <stdint.h>

#include "real_calls.h"
#include "region.h"
#include "tf_process.h"

#define TF_EXPORT __attribute__((visibility("default")))
#define TF_NO_ROW (-1)
#define LIKELY(x) __builtin_expect(!!(x), 1)

/* real.c: the functions of the driver that we stand in front of. What it lacks answers "not supported". */
extern void *tf_real_table[REAL_COUNT];
#define REAL(name) ((call_##name *)tf_real_table[REAL_##name])
#define HAS(name) tf_has(REAL_##name)
bool tf_has(enum tf_real function);
void tf_load_driver(void);
void tf_load_management(void);
void *tf_real_dlsym(void *handle, const char *name);
typedef void *tf_dlsym(void *, const char *);
tf_dlsym *tf_find_dlsym(void);
typedef void *tf_dlvsym(void *, const char *, const char *);
tf_dlvsym *tf_find_dlvsym(void);
uint64_t tf_now(void);                      /* the driver's clock: monotonic, or virtual on the simulator */
void tf_wait_until(uint64_t when_ns);       /* ends early when the limits change, or at tf_wake */
void tf_wake(void);                         /* ends the waits of all processes of the worker */

/* entry.c: our function instead of a real one that cuGetProcAddress found. */
void tf_replace(const char *name, void **address, int version, uint64_t flags);

/* region.c: the worker's files. */
struct tf_row { /* a device_limit; atomic, since an old copy is written anew while a slow reader may still be at it */
  char uuid[sizeof((struct tf_device_limit *)0)->uuid]; /* of a row of a worker always the same */
  _Atomic uint64_t vram_bytes, context_bytes, spill_bytes, measured_busy_ns, measured_at_ns;
  _Atomic uint32_t compute_ppm, contended;
};
struct tf_view {
  _Atomic uint32_t device_count, policy, heartbeat_needed, full_policy, full_wait_ms;
  struct tf_row rows[TF_DEVICES];
};
enum tf_mode { TF_UNKNOWN = 0, TF_OFF, TF_ATTACHED, TF_BROKEN };
extern struct tf_ledger *tf_ledger;
extern const struct tf_limits *tf_limits;
enum tf_mode tf_attach(void);               /* opens the files on the first call */
const struct tf_view *tf_view(void);        /* the limits in force; re-read when they changed. NULL: none */
struct tf_process *tf_self(void);           /* this process's slot; NULL: none could be had */
int tf_row_of_uuid(const char *uuid);
int tf_row_of_device(CUdevice device);
int tf_current_row(void);                   /* of the current context's device */
/* One comparison tells that no launch is limited: the word is the limits' sequence, the value the one they had. */
extern const _Atomic uint32_t *_Atomic tf_gate_word;
extern _Atomic uint32_t tf_gate_value;
static inline bool tf_gate_is_open(void) {
  const _Atomic uint32_t *word = atomic_load_explicit(&tf_gate_word, memory_order_relaxed);
  return atomic_load_explicit(word, memory_order_relaxed) == atomic_load_explicit(&tf_gate_value, memory_order_relaxed);
}
bool tf_owner_is_silent(const struct tf_view *view);
bool tf_refused(void);                      /* closed policy and a fault of ours: hold work back. Counts either way */
void tf_region_after_fork(void);

/* ledger.c: bytes by class. */
enum tf_class {
  TF_PLAIN,
  TF_MANAGED,
  TF_POOL,
  TF_PHYSICAL,
  TF_ARRAY,
  TF_CONTEXT,
  TF_GRAPH,
  TF_SPILLED,
  TF_SHARES,
  TF_CLASSES
};
CUresult tf_reserve(int row, enum tf_class class, uint64_t bytes); /* out of memory at the cap */
void tf_release(int row, enum tf_class class, uint64_t bytes);
bool tf_spill_reserve(int row, enum tf_class class, uint64_t bytes); /* reserved bytes become spilled ones */
void tf_spill_undo(int row, enum tf_class class, uint64_t bytes);
void tf_want(int row, int64_t bytes);       /* more, or less, is waited for */
uint64_t tf_used(int row);
/* Lock held: bytes leave a class of this process for a shared row, or the sum (true: somebody waits for room). */
bool tf_take_out(int row, enum tf_class class, uint64_t bytes);
bool tf_sink(uint32_t row, uint64_t bytes);
void tf_recover_dead(void);
void tf_sum_again(struct tf_ledger *ledger); /* lock held: the sums from the processes' rows */
uint64_t tf_pid_namespace(void);

/* lock.c */
void tf_ledger_lock(void);
void tf_ledger_unlock(void);
const char *tf_ledger_problem(struct tf_ledger *ledger); /* why its locks cannot be used, or NULL */

/* oversold.c: the card is full although the worker is within its cap. */
struct tf_full {
  uint64_t started_ns, step_ns; /* 0: did not wait yet */
  bool trimmed, asked;
};
/* After each attempt: whether to make the next one. It has waited by then. False ends it. */
bool tf_full_again(struct tf_full *full, int row, enum tf_class class, uint64_t bytes, CUresult result);
#define TF_PATIENTLY(result, row, class, bytes, call)                     \
  do {                                                                    \
    struct tf_full full_ = {0};                                           \
    do (result) = (call);                                                 \
    while ((result) && tf_full_again(&full_, row, class, bytes, result)); \
    if (full_.started_ns) tf_full_over(&full_, row, bytes);               \
  } while (0)
void tf_full_over(struct tf_full *full, int row, uint64_t bytes);
bool tf_spills(int row, CUresult result);   /* what failed so may go to host memory */
/* Host memory instead, for bytes that are reserved as `class`; on success they are reserved as TF_SPILLED. */
CUresult tf_spill(CUdeviceptr *address, uint64_t bytes, int row, enum tf_class *class);
CUresult tf_spill_physical(CUmemGenericAllocationHandle *handle, uint64_t bytes, const CUmemAllocationProp *properties,
                           unsigned long long flags, int row, enum tf_class *class);

/* memory.c, pools.c, graphs.c */
bool tf_trim_pools(int row);                /* gives back what our pools keep; true if anything was */
CUresult tf_pool_allocate(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream, bool per_thread,
                          bool from_pool);
void tf_pool_freed(uint64_t pool, uint64_t bytes);
void tf_pools_after_fork(void);
void tf_memory_remember(uint64_t address, uint64_t bytes, enum tf_class class, int row, uint64_t owner);
void tf_memory_after_fork(void);
struct tf_table *tf_addresses(void);
struct tf_table *tf_physical(void);
uint64_t tf_original(uint64_t handle);      /* the handle that physical memory is known by */
bool tf_physical_again(uint64_t handle);    /* one more reference, if it is known */
void tf_graph_add_bytes(CUgraph graph, uint64_t bytes);
void tf_graphs_after_fork(void);
bool tf_is_capturing(CUstream stream, bool per_thread);
bool tf_any_capture(void);

/* sharing.c: what several processes of the worker refer to, by its row + 1 in the ledger. */
void tf_shared_drop(uint32_t row);          /* one reference of this process less */
void tf_sharing_context_gone(uint64_t context);
void tf_sharing_after_fork(void);
void tf_sharing_leave(uint32_t slot);       /* ledger locked: a process is gone, the sums are made again afterwards */
void tf_sharing_sum_again(struct tf_ledger *ledger);

/* pace.c: admission of launches. */
struct tf_cost;
struct tf_sample;
struct tf_launch {
  int row;
  bool per_thread;
  CUstream stream;
  uint64_t estimate_ns;
  struct tf_cost *cost;
  struct tf_sample *sample;
};
CUresult tf_admit(struct tf_launch *launch, uint64_t key, uint64_t blocks, CUstream stream, bool per_thread);
void tf_launched(struct tf_launch *launch, CUresult result);
static inline void tf_note_length(struct tf_device_state *state, uint64_t device_ns) {
  uint32_t longest = (uint32_t)(device_ns / 1000);
  if (longest > atomic_load(&state->longest_us)) atomic_store(&state->longest_us, longest);
}
void tf_rescale(const struct tf_view *view);
bool tf_unlimited(int row);
bool tf_uncharged_queued(int row);          /* work from before there was a limit may be ahead of what is launched */
bool tf_uncharged_measured(int row);        /* or in what is measured */
void tf_uncharged_over(int row, uint64_t begun_ns); /* a sample of that time has ended */

/* cost.c: what launches cost, learned from events around some of them. */
struct tf_cost {
  _Atomic uint64_t key;
  _Atomic uint64_t estimate_ns;
  /* Written under the lock of a ring; atomic, since launches look at them and a graph's end resets them. */
  _Atomic uint64_t low_ns, previous_low_ns; /* least of this and the previous window of samples */
  _Atomic uint64_t surprise_ns;             /* least of the samples in a row that were far above */
  _Atomic uint32_t window, surprises;
  _Atomic uint32_t samples, waiting;        /* harvested; under way */
  _Atomic uint32_t launches;                /* since the last sample */
  _Atomic uint64_t charged_ns;              /* for them, each by the estimate of its time */
};
struct tf_cost *tf_cost_of(uint64_t key, uint64_t blocks);
void tf_cost_forget(uint64_t key);
bool tf_sample_due(const struct tf_cost *cost);
bool tf_sample_overdue(const struct tf_cost *cost); /* no turn began for long: any launch will do */
void tf_note_stream(const struct tf_launch *launch); /* work on several streams may overlap */
struct tf_sample *tf_sample_begin(struct tf_launch *launch);
void tf_sample_end(struct tf_launch *launch, struct tf_sample *sample, CUresult result);
bool tf_harvest(int row);                   /* reads finished samples; true while any is under way */
bool tf_others_run(int row);                /* other workers, or other processes of this one */
/* Charged device time of this process under way, and how long ago the first launch after the latest that ended began. */
uint64_t tf_in_flight_ns(int row, uint64_t now_ns, uint64_t *stuck_ns);
void tf_correct(int row, int64_t device_ns, uint64_t since_ns); /* pace.c: charge or refund after the fact */
void tf_settle(int row, int64_t device_ns); /* the same, as measured: it is not trimmed */
void tf_cost_after_fork(void);

/* sampler.c: the thread that compares what was charged with what was measured. */
void tf_sampler_start(void);
void tf_sampler_after_fork(void);

/* attest.c */
void tf_attest(const char *state, const char *reason);

#endif
