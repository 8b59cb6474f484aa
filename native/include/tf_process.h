/* Telling processes apart whose numbers are given out again. */
#ifndef TF_PROCESS_H
#define TF_PROCESS_H

#include <stdint.h>

/* When a process started, in clock ticks since the machine did; 0: no such process, or a zombie. */
uint64_t tf_start_ticks(uint32_t pid);

#endif
