/* What the owner of a worker's files does to them, for Python: tools/region_module.py compiles it into a module.
 *
 * Every pointer is into a mapping that stays until the call is over. The tenant may write to the ledger at any time, so
 * nothing in it is trusted: no address, count or length of a call depends on its contents. */
#ifndef TF_OWNER_H
#define TF_OWNER_H

#include "region.h"

/* Makes empty files usable; their magic numbers come last, and those of the limits after those of the ledger. */
void tf_owner_create(struct tf_limits *limits, struct tf_ledger *ledger);
/* 0: files of this layout; 1: the limits are not; 2: the ledger is not. */
int tf_owner_check(const struct tf_limits *limits, const struct tf_ledger *ledger);
/* Puts `wanted` in force, of which device_count must be at most TF_DEVICES, and wakes the waiting. */
void tf_owner_write(struct tf_limits *limits, const struct tf_limits *wanted);
/* Gives a sign of life. */
void tf_owner_beat(struct tf_limits *limits, uint64_t now_ns);
/* Copies the states that differ from their copies and names them in `changed`; how many. NULL is left out. */
size_t tf_owner_copy(struct tf_device_state **states, size_t count, struct tf_device_state *copies, uint32_t *changed);
/* Whether a worker waits for memory on one of these devices. */
int tf_owner_wants(struct tf_device_state **states, size_t count);
/* Bytes that living processes wait for; those of another pid namespace than the caller's count as living. */
uint64_t tf_owner_wanted(const struct tf_ledger *ledger, uint32_t row, uint64_t pid_namespace);
/* Copies the numbers of the attached processes to `found`, which has TF_PROCESSES; how many. */
size_t tf_owner_pids(const struct tf_ledger *ledger, uint32_t *found);

#endif
