/* Memory that several processes have: counted once on its card, and for one of them, as long as any has it. */
#include <string.h>

#include "sim.h"

static uint32_t references[SIM_SHARED]; /* of this process */

static bool has(const struct sim_shared *row, uint32_t slot) { return row->holders[slot / 64] >> (slot % 64) & 1; }

/* Lock held. */
static struct sim_process_device *payer(const struct sim_shared *row) {
  return &sim->processes[row->payer].device[row->device];
}

static uint32_t first_holder(const struct sim_shared *row) {
  for (uint32_t word = 0; word < SIM_PROCESSES / 64; word++)
    if (row->holders[word]) return word * 64 + (uint32_t)__builtin_ctzll(row->holders[word]);
  return SIM_NONE;
}

/* Lock held. True: nobody has it any more, and its payer still counts it. */
static bool let_go(struct sim_shared *row, uint32_t slot) {
  row->holders[slot / 64] &= ~(1ull << (slot % 64));
  uint32_t next = first_holder(row);
  if (next == SIM_NONE) row->inode = 0;
  if (next == SIM_NONE || row->payer != slot) return next == SIM_NONE;
  payer(row)->used_bytes -= row->bytes;
  row->payer = next;
  payer(row)->used_bytes += row->bytes;
  return false;
}

void sim_shared_leave(uint32_t slot) {
  for (uint32_t i = 0; i < SIM_SHARED; i++)
    if (sim->shared[i].inode && has(&sim->shared[i], slot)) let_go(&sim->shared[i], slot);
}

uint32_t sim_share(uint64_t inode, uint32_t card, uint64_t bytes) {
  uint32_t at = 0;
  sim_lock();
  while (at < SIM_SHARED && sim->shared[at].inode) at++;
  if (at < SIM_SHARED) {
    struct sim_shared *row = &sim->shared[at];
    *row = (struct sim_shared){.inode = inode, .bytes = bytes, .device = card, .payer = sim_self()};
    row->holders[row->payer / 64] = 1ull << (row->payer % 64);
    references[at] = 1;
  }
  sim_unlock();
  return at == SIM_SHARED ? 0 : at + 1;
}

uint32_t sim_shared_again(uint64_t inode, uint32_t *device, uint64_t *bytes) {
  uint32_t found = 0;
  sim_lock();
  sim_reclaim_dead(); /* what only the dead had is gone */
  for (uint32_t i = 0; inode && i < SIM_SHARED && !found; i++) {
    struct sim_shared *row = &sim->shared[i];
    if (row->inode != inode) continue;
    row->holders[sim_self() / 64] |= 1ull << (sim_self() % 64);
    references[i]++;
    *device = row->device;
    *bytes = row->bytes;
    found = i + 1;
  }
  sim_unlock();
  return found;
}

void sim_unshare(uint32_t row) {
  sim_lock();
  struct sim_shared *shared = &sim->shared[row - 1];
  if (!--references[row - 1] && let_go(shared, sim_self())) {
    payer(shared)->used_bytes -= shared->bytes;
    sim->devices[shared->device].used_bytes -= shared->bytes;
  }
  sim_unlock();
}

bool sim_shares(void) {
  bool any = false;
  for (uint32_t i = 0; i < SIM_SHARED && !any; i++) any = references[i];
  return any;
}
