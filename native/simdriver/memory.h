/* What the files of the simulated driver about memory share: the table of all that this process has. */
#ifndef TF_SIM_MEMORY_H
#define TF_SIM_MEMORY_H

#include "sim.h"
#include "tf_table.h"

/* HOSTED is managed memory that is in host memory, because the card was full or the program advised so. OPENED is what
 * another process allocated. */
enum { PLAIN = 1, STREAM_ORDERED, PHYSICAL, MAPPED, ARRAY, MANAGED, HOSTED, OPENED };

extern struct tf_table sim_memory;
extern _Atomic bool sim_any_hosted; /* until then kernels need not ask where their memory is */

/* ipc.c: PLAIN memory that other processes may have, or OPENED: this process has it no more. */
void sim_memory_unshare(const struct tf_entry *entry);

#endif
