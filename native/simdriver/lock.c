/* The lock of the machine's state. A real driver works in the kernel, where a stop signal waits until the call returns;
 * here a process may be stopped while it holds the lock. */
#include <errno.h>

#include "sim.h"
#include "tf_lock.h"

static struct tf_lock lock_of(void) { return (struct tf_lock){.mutex = &sim->lock, .stops_again = &sim->stops_again}; }

void sim_lock(void) {
  struct tf_lock lock = lock_of();
  /* A process killed inside leaves at worst one half-done command; its slot is reclaimed as a whole later. */
  if (tf_lock_take(&lock, UINT32_MAX) == EOWNERDEAD) tf_lock_mended(&lock);
}

void sim_unlock(void) {
  struct tf_lock lock = lock_of();
  tf_lock_give(&lock);
}
