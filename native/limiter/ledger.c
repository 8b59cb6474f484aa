/* Bytes by process, device and class, and their sum against the cap.
 *
 * A robust mutex guards both (lock.c). When its owner dies inside, the sums are computed again from the processes' rows,
 * so any instruction may be the last one. */
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "limiter.h"

_Static_assert(offsetof(struct tf_device_use, wanted_bytes) == TF_CLASSES * sizeof(uint64_t), "one word per class");

static uint64_t *word(struct tf_process *process, int row, enum tf_class class) {
  return &((uint64_t *)&process->devices[row])[class];
}

void tf_sum_again(struct tf_ledger *ledger) {
  tf_sharing_sum_again(ledger);
  for (uint32_t row = 0; row < TF_DEVICES; row++) {
    uint64_t total = 0, spilled = 0, wanted = 0;
    for (uint32_t i = 0; i < TF_PROCESSES; i++) {
      struct tf_process *process = &ledger->processes[i];
      if (!atomic_load(&process->pid)) continue;
      for (int class = 0; class < TF_CLASSES; class++) total += *word(process, (int)row, (enum tf_class)class);
      spilled += process->devices[row].spilled_bytes;
      wanted += process->devices[row].wanted_bytes;
    }
    atomic_store(&ledger->states[row].used_bytes, total);
    atomic_store(&ledger->states[row].spilled_bytes, spilled);
    atomic_store(&ledger->states[row].wanted_bytes, wanted);
  }
}

uint64_t tf_pid_namespace(void) {
  struct stat status;
  return stat("/proc/self/ns/pid", &status) ? 0 : status.st_ino;
}

void tf_recover_dead(void) {
  uint64_t space = tf_pid_namespace();
  for (uint32_t i = 0; i < TF_PROCESSES; i++) {
    struct tf_process *slot = &tf_ledger->processes[i];
    uint32_t pid = atomic_load(&slot->pid);
    uint64_t start = slot->start_ticks;
    /* A pid of another namespace says nothing here. */
    if (!pid || slot->pid_namespace != space || tf_start_ticks(pid) == start) continue;
    tf_ledger_lock();
    if (atomic_load(&slot->pid) == pid && slot->start_ticks == start) {
      tf_sharing_leave(i);
      memset(slot->devices, 0, sizeof slot->devices);
      atomic_store(&slot->pid, 0);
      tf_sum_again(tf_ledger);
      atomic_fetch_add(&tf_ledger->recovered, 1);
    }
    tf_ledger_unlock();
  }
}

static bool add(int row, enum tf_class class, uint64_t bytes, uint64_t cap) {
  struct tf_device_state *state = &tf_ledger->states[row];
  tf_ledger_lock();
  uint64_t used = atomic_load_explicit(&state->used_bytes, memory_order_relaxed);
  bool fits = !cap || (used <= cap && bytes <= cap - used);
  if (fits) {
    *word(tf_self(), row, class) += bytes;
    atomic_store_explicit(&state->used_bytes, used + bytes, memory_order_relaxed);
    if (used + bytes > state->peak_bytes) state->peak_bytes = used + bytes;
  }
  tf_ledger_unlock();
  return fits;
}

CUresult tf_reserve(int row, enum tf_class class, uint64_t bytes) {
  if (tf_refused()) return CUDA_ERROR_OUT_OF_MEMORY;
  if (row == TF_NO_ROW || !tf_self() || !bytes) return CUDA_SUCCESS;
  uint64_t cap = tf_view()->rows[row].vram_bytes;
  if (LIKELY(add(row, class, bytes, cap))) return CUDA_SUCCESS;
  if (class != TF_CONTEXT && tf_trim_pools(row) && add(row, class, bytes, cap)) return CUDA_SUCCESS;
  tf_recover_dead();
  if (add(row, class, bytes, cap)) return CUDA_SUCCESS;
  atomic_fetch_add(&tf_ledger->states[row].denied, 1);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

/* Lock held. Never below zero. */
static void lower(_Atomic uint64_t *sum, uint64_t bytes) {
  uint64_t before = atomic_load(sum);
  atomic_store(sum, before > bytes ? before - bytes : 0);
}

void tf_release(int row, enum tf_class class, uint64_t bytes) {
  if (row == TF_NO_ROW || !tf_self() || !bytes) return;
  struct tf_device_state *state = &tf_ledger->states[row];
  tf_ledger_lock();
  uint64_t *own = word(tf_self(), row, class);
  /* Never below zero, whatever was missed. */
  if (bytes > *own) bytes = *own;
  *own -= bytes;
  lower(&state->used_bytes, bytes);
  if (class == TF_SPILLED) lower(&state->spilled_bytes, bytes);
  bool wanted = atomic_load_explicit(&state->wanted_bytes, memory_order_relaxed) != 0;
  tf_ledger_unlock();
  if (wanted) tf_wake();
}

bool tf_take_out(int row, enum tf_class class, uint64_t bytes) {
  uint64_t *own = word(tf_self(), row, class);
  bool there = bytes <= *own;
  if (there) *own -= bytes;
  return there;
}

bool tf_sink(uint32_t row, uint64_t bytes) {
  struct tf_device_state *state = &tf_ledger->states[row < TF_DEVICES ? row : 0];
  if (bytes) lower(&state->used_bytes, bytes);
  return bytes && atomic_load_explicit(&state->wanted_bytes, memory_order_relaxed) != 0;
}

bool tf_spill_reserve(int row, enum tf_class class, uint64_t bytes) {
  struct tf_device_state *state = &tf_ledger->states[row];
  uint64_t cap = tf_view()->rows[row].spill_bytes;
  tf_ledger_lock();
  uint64_t spilled = atomic_load(&state->spilled_bytes);
  bool fits = spilled <= cap && bytes <= cap - spilled && bytes <= *word(tf_self(), row, class);
  if (fits) {
    *word(tf_self(), row, class) -= bytes;
    *word(tf_self(), row, TF_SPILLED) += bytes;
    atomic_store(&state->spilled_bytes, spilled + bytes);
  }
  tf_ledger_unlock();
  if (fits) atomic_fetch_add(&state->spilled_total_bytes, bytes);
  return fits;
}

void tf_spill_undo(int row, enum tf_class class, uint64_t bytes) {
  struct tf_device_state *state = &tf_ledger->states[row];
  tf_ledger_lock();
  *word(tf_self(), row, TF_SPILLED) -= bytes;
  *word(tf_self(), row, class) += bytes;
  lower(&state->spilled_bytes, bytes);
  tf_ledger_unlock();
  atomic_fetch_sub(&state->spilled_total_bytes, bytes);
}

void tf_want(int row, int64_t bytes) {
  struct tf_device_state *state = &tf_ledger->states[row];
  tf_ledger_lock();
  tf_self()->devices[row].wanted_bytes += (uint64_t)bytes;
  atomic_fetch_add(&state->wanted_bytes, (uint64_t)bytes);
  tf_ledger_unlock();
}

uint64_t tf_used(int row) { return atomic_load(&tf_ledger->states[row].used_bytes); }
