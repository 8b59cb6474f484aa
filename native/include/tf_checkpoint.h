/* The driver's checkpoint calls: states of a process and arguments. Own declarations of the public ABI. */
#ifndef TF_CHECKPOINT_H
#define TF_CHECKPOINT_H

#include <stdint.h>

typedef enum {
  CU_PROCESS_STATE_RUNNING = 0,
  CU_PROCESS_STATE_LOCKED = 1,
  CU_PROCESS_STATE_CHECKPOINTED = 2,
  CU_PROCESS_STATE_FAILED = 3,
} CUprocessState;

typedef struct {
  unsigned timeoutMs, reserved0;
  uint64_t reserved1[7];
} CUcheckpointLockArgs;

typedef struct {
  uint64_t reserved[8];
} CUcheckpointCheckpointArgs;

typedef struct {
  CUuuid oldUuid, newUuid;
} CUcheckpointGpuPair;

/* The pairs are of 13.0; before, all of it had to be zero. */
typedef struct {
  CUcheckpointGpuPair *gpuPairs;
  unsigned gpuPairsCount;
  char reserved[44];
  uint64_t reserved1;
} CUcheckpointRestoreArgs;

typedef struct {
  uint64_t reserved[8];
} CUcheckpointUnlockArgs;

#endif
