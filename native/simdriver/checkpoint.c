/* The checkpoint calls, from the side of who makes them: any process, about any process of the machine.
 *
 * The caller only writes down what it wants; a thread of the target does it (suspend.c). So a caller that dies leaves
 * an operation that is carried out all the same, or was never asked for, and the state that GetState then tells is one
 * that anybody can go on from. A target that dies takes its state along. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

#define SINCE 12080u
#define PAIRS_SINCE 13000u
#define LOOK_NS 20000000l
/* A target that does not even begin, such as one that was stopped, is given up after so long. */
#define PATIENCE_S 5

static uint64_t wall_seconds(void) {
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return (uint64_t)moment.tv_sec;
}

static CUresult offered(void) {
  if (!sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
  return sim->cuda_version < SINCE ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
}

/* Lock held. */
static struct sim_process *find(int pid) {
  for (uint32_t i = 0; i < sim->process_high; i++) {
    struct sim_process *process = &sim->processes[i];
    if (!process->alive || process->pid != (uint32_t)pid) continue;
    if (tf_start_ticks(process->pid) == process->start_ticks) return process;
    sim_reclaim_dead();
  }
  return NULL;
}

/* Lock held; given up and taken again. False: the target is gone. */
static bool wait_for_answer(struct sim_process *process, int pid) {
  struct sim_checkpoint *checkpoint = &process->checkpoint;
  uint32_t seen = atomic_load(&checkpoint->answers);
  struct timespec slice = {0, LOOK_NS};
  sim_unlock();
  sim_clock_leave();
  syscall(SYS_futex, &checkpoint->answers, FUTEX_WAIT, seen, &slice, NULL, 0);
  sim_lock();
  return find(pid) == process;
}

struct wish {
  enum sim_operation operation;
  uint32_t needed; /* state that the process must be in */
  uint32_t timeout_ms;
  const uint32_t *to;
  const char *path;
};

/* Lock held. */
static CUresult carry_out(struct sim_process *process, int pid, const struct wish *wish) {
  struct sim_checkpoint *checkpoint = &process->checkpoint;
  while (checkpoint->operation)
    if (!wait_for_answer(process, pid)) return CUDA_ERROR_INVALID_VALUE;
  if (checkpoint->state != wish->needed) return CUDA_ERROR_ILLEGAL_STATE;
  uint64_t until = wall_seconds() + PATIENCE_S;
  uint32_t before = atomic_load(&checkpoint->answers);
  checkpoint->timeout_ms = wish->timeout_ms;
  if (wish->to) memcpy(checkpoint->to, wish->to, sizeof checkpoint->to);
  if (wish->path) snprintf(checkpoint->path, sizeof checkpoint->path, "%s", wish->path);
  checkpoint->operation = wish->operation;
  atomic_fetch_add(&checkpoint->bell, 1);
  syscall(SYS_futex, &checkpoint->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
  while (atomic_load(&checkpoint->answers) == before) {
    if (!wait_for_answer(process, pid)) return CUDA_ERROR_INVALID_VALUE;
    if (!checkpoint->taken && checkpoint->operation && wall_seconds() > until) {
      checkpoint->operation = 0;
      return CUDA_ERROR_NOT_READY;
    }
  }
  return (CUresult)checkpoint->result;
}

static CUresult ask(int pid, const struct wish *wish) {
  CUresult result = offered();
  if (result) return result;
  sim_lock();
  struct sim_process *process = find(pid);
  result = process ? carry_out(process, pid, wish) : CUDA_ERROR_INVALID_VALUE;
  sim_unlock();
  return result;
}

static bool zero(const void *bytes, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (((const char *)bytes)[i]) return false;
  return true;
}

SIM_EXPORT CUresult cuCheckpointProcessGetState(int pid, CUprocessState *state) {
  CUresult result = offered();
  if (result) return result;
  if (!state) return CUDA_ERROR_INVALID_VALUE;
  sim_lock();
  const struct sim_process *process = find(pid);
  if (process) *state = (CUprocessState)process->checkpoint.state;
  sim_unlock();
  return process ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuCheckpointProcessGetRestoreThreadId(int pid, int *thread) {
  CUresult result = offered();
  if (result) return result;
  if (!thread) return CUDA_ERROR_INVALID_VALUE;
  sim_lock();
  const struct sim_process *process = find(pid);
  if (process) *thread = (int)process->checkpoint.thread;
  sim_unlock();
  return process ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *arguments) {
  struct wish wish = {.operation = SIM_LOCK, .needed = CU_PROCESS_STATE_RUNNING};
  if (arguments) {
    if (arguments->reserved0 || !zero(arguments->reserved1, sizeof arguments->reserved1))
      return CUDA_ERROR_INVALID_VALUE;
    wish.timeout_ms = arguments->timeoutMs;
  }
  return ask(pid, &wish);
}

SIM_EXPORT CUresult cuCheckpointProcessCheckpoint(int pid, CUcheckpointCheckpointArgs *arguments) {
  if (arguments && !zero(arguments, sizeof *arguments)) return CUDA_ERROR_INVALID_VALUE;
  return ask(pid, &(struct wish){.operation = SIM_CHECKPOINT, .needed = CU_PROCESS_STATE_LOCKED});
}

static bool index_of(const CUuuid *wanted, uint32_t *index) {
  for (uint32_t i = 0; i < sim->device_count; i++) {
    CUuuid uuid;
    sim_uuid(&sim->devices[i], &uuid);
    if (memcmp(&uuid, wanted, sizeof uuid) != 0) continue;
    *index = i;
    return true;
  }
  return false;
}

/* Turns pairs into the card for every card. The cards must be of one kind, and no two become one. */
static bool read_pairs(const CUcheckpointRestoreArgs *arguments, uint32_t to[SIM_DEVICES], bool named[SIM_DEVICES]) {
  bool taken[SIM_DEVICES] = {false};
  for (uint32_t i = 0; i < SIM_DEVICES; i++) to[i] = i, named[i] = false;
  for (unsigned i = 0; i < arguments->gpuPairsCount; i++) {
    uint32_t from, onto;
    if (!index_of(&arguments->gpuPairs[i].oldUuid, &from) || !index_of(&arguments->gpuPairs[i].newUuid, &onto) ||
        named[from] || taken[onto] || strcmp(sim->devices[from].name, sim->devices[onto].name) != 0)
      return false;
    named[from] = taken[onto] = true;
    /* A card that is taken by another changes places with it, so that no two ordinals mean one card. */
    for (uint32_t other = 0; other < SIM_DEVICES; other++)
      if (to[other] == onto) to[other] = to[from];
    to[from] = onto;
  }
  return true;
}

SIM_EXPORT CUresult cuCheckpointProcessRestore(int pid, CUcheckpointRestoreArgs *arguments) {
  uint32_t to[SIM_DEVICES];
  bool named[SIM_DEVICES];
  struct wish wish = {.operation = SIM_RESTORE, .needed = CU_PROCESS_STATE_CHECKPOINTED, .to = to};
  CUresult result = offered();
  if (result) return result;
  CUcheckpointRestoreArgs none = {0};
  if (!arguments) arguments = &none;
  if (sim->cuda_version < PAIRS_SINCE && !zero(arguments, sizeof *arguments)) return CUDA_ERROR_INVALID_VALUE;
  if (!zero(arguments->reserved, sizeof arguments->reserved) || arguments->reserved1 ||
      (arguments->gpuPairsCount && !arguments->gpuPairs) || !read_pairs(arguments, to, named))
    return CUDA_ERROR_INVALID_VALUE;
  sim_lock();
  struct sim_process *process = find(pid);
  result = process ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  /* Pairs are for all cards that the process was on, or for none. */
  for (uint32_t i = 0; process && arguments->gpuPairsCount && i < SIM_DEVICES; i++)
    if (process->checkpoint.bytes[i] && !named[i]) result = CUDA_ERROR_INVALID_VALUE;
  if (!result) result = carry_out(process, pid, &wish);
  sim_unlock();
  return result;
}

SIM_EXPORT CUresult cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *arguments) {
  if (arguments && !zero(arguments, sizeof *arguments)) return CUDA_ERROR_INVALID_VALUE;
  return ask(pid, &(struct wish){.operation = SIM_UNLOCK, .needed = CU_PROCESS_STATE_LOCKED});
}

/* Stands for the storage that a caller may provide from 13.4 on: the contents of a checkpointed process move to a file,
 * or with an empty path back to host memory. A restore reads them from where they are. */
SIM_EXPORT CUresult tfSimCheckpointStore(int pid, const char *path) {
  if (!path || strlen(path) >= SIM_PATH) return CUDA_ERROR_INVALID_VALUE;
  return ask(pid, &(struct wish){.operation = SIM_STORE, .needed = CU_PROCESS_STATE_CHECKPOINTED, .path = path});
}

/* What a checkpoint of a process holds of each card, how many of its threads wait at a call, and whether the contents
 * are in a file. -1: there is no such process. */
SIM_EXPORT int tfSimCheckpoint(int pid, uint32_t *waiting, uint32_t *stored, uint64_t bytes[SIM_DEVICES]) {
  if (!sim_ready()) return -1;
  sim_lock();
  const struct sim_process *process = find(pid);
  if (process) {
    *waiting = atomic_load(&process->checkpoint.waiting);
    *stored = process->checkpoint.stored;
    memcpy(bytes, process->checkpoint.bytes, sizeof process->checkpoint.bytes);
  }
  sim_unlock();
  return process ? 0 : -1;
}
