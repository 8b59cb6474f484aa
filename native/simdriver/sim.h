/* Shared state of the simulated machine and the functions its parts offer each other. */
#ifndef TF_SIM_H
#define TF_SIM_H

#include <pthread.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tf_cuda.h"
#include "inner_names.h"
#include "tf_process.h"

#define SIM_EXPORT __attribute__((visibility("default")))
#define SIM_MAGIC 0x54465349u
#define SIM_VERSION 9u
#define SIM_DEVICES 8u /* cards */
#define SIM_CUTS 7u /* hardware partitions of a card */
#define SIM_SLICES 56u /* of all cards; each has a device of its own behind the cards' */
#define SIM_ALL (SIM_DEVICES + SIM_SLICES)
#define SIM_PROCESSES 512u
#define SIM_SHARED 1024u
#define SIM_STREAMS 2048u
#define SIM_QUEUE 1024u
#define SIM_EVENTS 65536u
#define SIM_RUNNING 256u
#define SIM_WAITERS 1024u
#define SIM_BINS 4096u
#define SIM_BIN_NS 10000000ull
#define SIM_PATH 1024u
#define SIM_NONE 0xffffffffu
#define SIM_FOREVER UINT64_MAX

enum sim_command_kind { SIM_KERNEL = 1, SIM_COPY, SIM_RECORD, SIM_WAIT };

/* One entry of a stream's queue. */
struct sim_command {
  uint8_t kind, engine;
  uint16_t unused;
  uint32_t sms;
  uint64_t duration_ns;
  uint32_t event, generation;
};

struct sim_stream {
  uint32_t in_use, process, device, running, active;
  uint64_t head, tail;      /* commands finished, commands enqueued */
  uint64_t done_ns, sent_ns; /* durations finished, durations enqueued */
  uint64_t started_ns;      /* start of the running command */
  struct sim_command queue[SIM_QUEUE];
};

struct sim_event {
  uint32_t in_use, process;
  uint32_t recorded, done; /* generations */
  uint32_t stream, unused;
  uint64_t sent_ns; /* the stream's sent_ns when recorded: how much work is ahead */
  uint64_t time_ns;
};

/* Busy time in bins of 10 ms: the truth that tests read and that the NVML samples are cut from. */
struct sim_bins {
  uint64_t last_bin;
  uint32_t busy_ns[SIM_BINS];
};

struct sim_process_device {
  uint64_t used_bytes, contexts, busy_ns, sm_ns, service, kernels;
  uint32_t running, queued;
  struct sim_bins bins;
};

enum sim_operation { SIM_LOCK = 1, SIM_CHECKPOINT, SIM_RESTORE, SIM_UNLOCK, SIM_STORE };

/* The checkpoint of a process: who asks writes an operation, a thread of the process itself does it and answers. */
struct sim_checkpoint {
  uint32_t state;                  /* of the process, CU_PROCESS_STATE_* */
  uint32_t operation, taken;       /* asked for and not answered; its thread is at it */
  uint32_t result, thread;
  _Atomic uint32_t bell, answers;  /* futex words: an operation was asked for; one was answered */
  _Atomic uint32_t waiting;        /* threads that are held at a call */
  uint32_t timeout_ms, stored;     /* stored: the contents are in a file that has a name */
  uint32_t to[SIM_DEVICES];        /* restore: the card for what was on each card */
  uint64_t bytes[SIM_DEVICES], contexts[SIM_DEVICES]; /* given back while checkpointed, by card */
  char path[SIM_PATH];
};

struct sim_process {
  uint32_t pid, alive;
  uint64_t start_ticks;
  struct sim_checkpoint checkpoint;
  struct sim_process_device device[SIM_ALL];
};

/* Memory that several processes may have, known by the inode of the file with its contents; 0: free. */
struct sim_shared {
  uint64_t inode, bytes;
  uint32_t device, payer; /* card; the slot that counts it */
  uint64_t holders[SIM_PROCESSES / 64];
};

struct sim_running {
  uint32_t stream, sms;
  uint64_t finish_ns;
};

struct sim_device {
  char name[96], uuid[48];
  uint64_t memory_bytes, used_bytes, context_bytes, accounted_ns, busy_ns, sm_ns, bytes_per_second;
  uint32_t sms, threads_per_sm, clock_mhz, major, minor, free_sms, running_count, active_count;
  uint32_t engine_busy[2];
  uint32_t lost;
  uint32_t slots, partitioned,
      will_be; /* memory slots of a card that can be cut; its mode now, and after the next reset */
  struct sim_running running[SIM_RUNNING];
  uint32_t active[SIM_STREAMS];
  struct sim_bins bins;
};

/* A hardware partition: what NVML calls a GPU instance. A program can use it once it has a compute instance. */
struct sim_slice {
  uint32_t in_use, card, profile, start, width, slices; /* profile: its number in tables of profiles */
  uint32_t id, usable;
};

enum sim_waiter_state { SIM_FREE = 0, SIM_ACTIVE, SIM_WAITING, SIM_DETACHED };

/* A thread that takes part in virtual time. */
struct sim_waiter {
  _Atomic uint32_t state; /* written with the lock held */
  uint32_t pid;
  uint64_t wake_ns;
  _Atomic uint32_t signal;
};

struct sim_state {
  _Atomic uint32_t ready;
  uint32_t version, virtual_time, device_count, cuda_version, expected_processes, joined_processes;
  char driver_version[32];
  uint32_t stream_hint, event_hint, waiter_high, process_high;
  uint64_t sample_period_ns;
  _Atomic uint64_t virtual_now_ns;
  pthread_mutex_t lock;
  _Atomic uint64_t stops_again; /* of the lock, see tf_lock.h */
  struct sim_waiter waiters[SIM_WAITERS];
  struct sim_slice slices[SIM_SLICES];
  struct sim_device devices[SIM_ALL];
  struct sim_event events[SIM_EVENTS];
  struct sim_process processes[SIM_PROCESSES];
  struct sim_stream streams[SIM_STREAMS];
  struct sim_shared shared[SIM_SHARED];
};

extern struct sim_state *sim;
extern bool sim_forked; /* this process is a child of one that used the driver, and cannot */

/* state.c */
int sim_open(const char *path);
bool sim_ready(void);
void sim_uuid(const struct sim_device *card, CUuuid *uuid);
uint32_t sim_self(void);          /* slot of this process, claimed at first use; lock held */
void sim_reclaim_dead(void);      /* lock held */
void sim_watch(void);             /* from now on by one system call for all that run */

/* lock.c */
void sim_lock(void);
void sim_unlock(void);

/* clock.c */
uint64_t sim_now(void);
void sim_wait_until(uint64_t when_ns);
void sim_clock_enter(void);
void sim_clock_leave(void); /* the calling thread waits for something else than the clock */
void sim_clock_forget_process(uint32_t pid); /* lock held */
void sim_clock_after_fork(void);
void sim_clock_end(void);         /* this process exits: its remaining threads take no part any more */

/* timeline.c; all with the lock held */
void sim_advance(uint64_t now_ns);
bool sim_push(uint32_t stream, const struct sim_command *command, uint64_t now_ns);
uint64_t sim_stream_bound(const struct sim_stream *stream, uint64_t target_ns, uint64_t now_ns);
void sim_stream_drop(uint32_t stream, uint64_t now_ns);
uint32_t sim_stream_new(uint32_t device);
uint32_t sim_event_new(void);
void sim_event_finish(uint32_t event, uint32_t generation, uint64_t now_ns);
uint32_t sim_bin_percent(const struct sim_bins *bins, uint64_t from_ns, uint64_t to_ns);

/* context.c */
struct CUctx_st {
  uint32_t device, references, default_stream, alive;
};
CUcontext sim_current(void);
CUresult sim_check(void); /* initialised, a current context, no sticky error */
CUresult sim_initialised(void);
uint32_t sim_resolve_stream(CUstream stream, bool per_thread);
void sim_stick(CUresult error); /* every later call fails with it */

/* visible.c: the ordinals of this process are those of the devices that CUDA_VISIBLE_DEVICES leaves it */
uint32_t sim_visible_count(void);
bool sim_visible(CUdevice *device);       /* turns an ordinal into the machine's index; false: there is none */
CUdevice sim_ordinal(uint32_t index);
/* A restore may have moved the process to other cards. What it keeps names the index of before: these tell of now. */
uint32_t sim_physical(uint32_t index);
struct sim_device *sim_card(uint32_t index);
void sim_move_cards(const uint32_t to[SIM_DEVICES]);
bool sim_on_slice(void); /* this process runs on a hardware partition */

/* slices.c: cutting a card into hardware partitions; what changes them needs the lock */
struct sim_profile {
  uint32_t number, id;                       /* NVML_GPU_INSTANCE_PROFILE_*, and the number that nvidia-smi shows */
  uint32_t slices, width, step, last, most; /* of the compute; slots; starts are 0, step, ... last; how many at most */
  const char *suffix;
};
const struct sim_profile *sim_profiles(const struct sim_device *card, uint32_t *count);
const struct sim_profile *sim_profile_of(const struct sim_slice *slice);
void sim_profile_name(const struct sim_device *card, const struct sim_profile *profile, char *text, size_t length);
uint64_t sim_profile_bytes(const struct sim_device *card, const struct sim_profile *profile);
uint32_t sim_profile_sms(const struct sim_device *card, const struct sim_profile *profile);
bool sim_may_cut(uint32_t card, const struct sim_profile *profile, uint32_t start);
uint32_t sim_cut(uint32_t card, const struct sim_profile *profile, uint32_t start); /* place in slices, or SIM_NONE */
bool sim_slice_busy(uint32_t slice); /* a living process has a context there */
bool sim_card_busy(uint32_t card);
bool sim_cut_up(uint32_t card); /* it has partitions */
uint32_t sim_slice_named(const char *uuid, size_t length); /* a usable one, or SIM_NONE */
uint32_t sim_slice_at(uint32_t card, uint32_t number); /* of its usable ones, in the order of their ids, or SIM_NONE */

/* memory.c */
CUresult sim_charge(uint32_t device, uint64_t bytes);
void sim_uncharge(uint32_t device, uint64_t bytes);
void *sim_backing(uint64_t bytes);
uint64_t sim_touch_ns(uint64_t address, uint64_t bytes); /* what a kernel's bytes at an address take beyond the card */
/* Visits what a checkpoint moves: contents at an address, or in the file of a handle (-1: none). Managed memory is the
 * host's already. Ends when a visit returns false, and then does so too. */
typedef bool sim_visit(uint64_t address, uint64_t bytes, int file, void *context);
bool sim_memory_sweep(sim_visit *visit, void *context);
void sim_memory_forget(CUcontext context); /* with a context goes what was allocated in it */

/* shared.c: by row + 1; 0: there is none. What this process is charged for already becomes a row with one reference. */
uint32_t sim_share(uint64_t inode, uint32_t card, uint64_t bytes);
uint32_t sim_shared_again(uint64_t inode, uint32_t *device, uint64_t *bytes);
void sim_unshare(uint32_t row);
void sim_shared_leave(uint32_t slot); /* lock held */
bool sim_shares(void); /* this process has such memory */

/* stream.c */
struct CUstream_st {
  uint32_t slot, device;
  struct CUgraph_st *capture;
};
CUresult sim_enqueue(uint32_t stream, struct sim_command command); /* waits while the queue is full */
void sim_stream_wait(uint32_t stream);
struct CUgraph_st *sim_capture_of(CUstream stream);

/* module.c */
#define SIM_PARAMETERS 4u
struct CUfunc_st {
  char name[64];
  uint64_t fixed_ns;
  int kind;
};
struct sim_launch {
  CUfunction function;
  uint64_t blocks;
  uint64_t parameters[SIM_PARAMETERS];
};
CUresult sim_prepare(struct sim_launch *launch, CUfunction function, uint64_t blocks, void **parameters);
CUresult sim_run(const struct sim_launch *launch, uint32_t stream);

/* image.c: contents of device memory in host memory or in a file. False: no room for them. */
bool sim_image_save(void);
bool sim_image_load(void);
bool sim_image_store(const char *path); /* empty: back to host memory */

/* suspend.c: the gate in front of all calls, and the thread that serves checkpoints */
void sim_enter(void);
void sim_leave(void);
void sim_suspend_start(void);

/* graph.c */
struct CUgraph_st *sim_graph_new(void);
CUresult sim_graph_kernel(struct CUgraph_st *graph, const struct sim_launch *launch);
CUresult sim_graph_memory(struct CUgraph_st *graph, uint64_t bytes, CUdeviceptr *address);

#endif
