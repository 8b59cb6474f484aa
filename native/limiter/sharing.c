/* Memory that a process makes a handle of, for others of its worker. It counts once, as long as any of them refers to
 * it, for whoever allocated it or, after that one let go, for one of who is left.
 *
 * A handle for cuIpcOpenMemHandle is 64 bytes that tell which memory it is. A file descriptor says nothing, and its
 * number and inode are not its own: so each is marked with a lock of its open file at a position that nobody else
 * uses (fcntl(2), "Open file description locks"), and the mark goes wherever the descriptor is passed. Handles of other
 * workers are not found, and their memory is counted there. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "limiter.h"
#include "tf_table.h"

#define MARKS 256u /* open files of one allocation that can be told */

static uint32_t references[TF_SHARED]; /* of this process, by row; the ledger is locked */
static struct tf_table opened = TF_TABLE_INIT;
/* Over making, opening and closing handles: what is noted must be in the order of the driver's answers. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

void tf_sharing_after_fork(void) {
  tf_table_reset(&opened);
  pthread_mutex_init(&order, NULL);
  memset(references, 0, sizeof references);
}

/* --- The ledger's rows; all with its lock held --- */

static uint32_t self_slot(void) { return (uint32_t)(tf_self() - tf_ledger->processes); }

static uint64_t *word_of(struct tf_ledger *ledger, const struct tf_shared *row) {
  uint32_t device = row->device < TF_DEVICES ? row->device : 0; /* others may have written there */
  return &ledger->processes[row->payer].devices[device].shared_bytes;
}

static uint32_t first_holder(const struct tf_shared *row) {
  for (uint32_t word = 0; word < TF_PROCESSES / 64; word++)
    if (row->holders[word]) return word * 64 + (uint32_t)__builtin_ctzll(row->holders[word]);
  return TF_PROCESSES;
}

static bool holds(const struct tf_shared *row, uint32_t slot) { return row->holders[slot / 64] >> (slot % 64) & 1; }

void tf_sharing_sum_again(struct tf_ledger *ledger) {
  for (uint32_t slot = 0; slot < TF_PROCESSES; slot++)
    for (uint32_t device = 0; device < TF_DEVICES; device++) ledger->processes[slot].devices[device].shared_bytes = 0;
  for (uint32_t i = 0; i < TF_SHARED; i++) {
    struct tf_shared *row = &ledger->shared[i];
    uint32_t first = first_holder(row);
    if (!row->key || first == TF_PROCESSES || row->device >= TF_DEVICES) {
      row->key = 0;
      continue;
    }
    if (row->payer >= TF_PROCESSES || !holds(row, row->payer)) row->payer = first;
    *word_of(ledger, row) += row->bytes;
  }
}

/* A process refers to a row no more. The bytes that are free now. */
static uint64_t let_go(struct tf_shared *row, uint32_t slot) {
  row->holders[slot / 64] &= ~(1ull << (slot % 64));
  if (row->payer != slot) return 0;
  *word_of(tf_ledger, row) -= row->bytes;
  uint32_t next = first_holder(row);
  if (next == TF_PROCESSES) {
    row->key = 0;
    return row->bytes;
  }
  row->payer = next;
  *word_of(tf_ledger, row) += row->bytes;
  return 0;
}

void tf_sharing_leave(uint32_t slot) {
  for (uint32_t i = 0; i < TF_SHARED; i++)
    if (tf_ledger->shared[i].key && holds(&tf_ledger->shared[i], slot)) let_go(&tf_ledger->shared[i], slot);
}

/* --- References of this process --- */

void tf_shared_drop(uint32_t row) {
  struct tf_shared *shared = &tf_ledger->shared[row - 1];
  if (!tf_self()) return;
  tf_ledger_lock();
  if (references[row - 1]) references[row - 1]--;
  uint64_t freed = references[row - 1] ? 0 : let_go(shared, self_slot());
  bool wanted = tf_sink(shared->device, freed);
  tf_ledger_unlock();
  if (wanted) tf_wake();
}

/* The row that has this key gets one more reference; 0: there is none. */
static uint32_t hold(uint64_t key) {
  uint32_t found = 0;
  if (!key || !tf_view() || !tf_self()) return 0;
  tf_ledger_lock();
  for (uint32_t i = 0; i < TF_SHARED && !found; i++) {
    struct tf_shared *row = &tf_ledger->shared[i];
    if (row->key != key) continue;
    row->holders[self_slot() / 64] |= 1ull << (self_slot() % 64);
    references[i]++;
    found = i + 1;
  }
  tf_ledger_unlock();
  return found;
}

/* What this process is charged as `class` becomes a row that it pays. 0: there is no free row. */
static uint32_t share(int device, enum tf_class class, uint64_t bytes, uint64_t key) {
  uint32_t at = 0, slot = self_slot();
  tf_ledger_lock();
  while (at < TF_SHARED && tf_ledger->shared[at].key) at++;
  if (at < TF_SHARED && tf_take_out(device, class, bytes)) {
    struct tf_shared *row = &tf_ledger->shared[at];
    *row = (struct tf_shared){.bytes = bytes, .device = (uint32_t)device, .payer = slot};
    row->holders[slot / 64] = 1ull << (slot % 64);
    row->key = key;
    *word_of(tf_ledger, row) += bytes;
    references[at] = 1;
  } else {
    at = TF_SHARED;
  }
  tf_ledger_unlock();
  return at == TF_SHARED ? 0 : at + 1;
}

struct mark {
  uint32_t row;
};

static bool set_row(struct tf_entry *entry, void *context) {
  entry->shared = ((struct mark *)context)->row;
  return false;
}

/* `order` held. The row of something that this process has in `table`; it becomes one if it is none yet. */
static uint32_t row_of(struct tf_table *table, const struct tf_entry *entry, uint64_t key) {
  bool sharable = entry->kind == TF_PLAIN || entry->kind == TF_PHYSICAL;
  if (entry->shared || !sharable || !key || !tf_self()) return entry->shared;
  struct mark mark = {share((int)entry->device, (enum tf_class)entry->kind, entry->bytes, key)};
  if (mark.row && !tf_table_change(table, entry->key, set_row, &mark)) {
    tf_shared_drop(mark.row); /* freed meanwhile */
    return 0;
  }
  return mark.row;
}

/* --- cuMemAlloc: handles of 64 bytes --- */

static uint64_t key_of(const CUipcMemHandle *handle) {
  /* FNV-1a, 64 bit (Fowler, Noll, Vo). */
  uint64_t hash = 0xcbf29ce484222325ull;
  for (size_t i = 0; i < sizeof *handle; i++) hash = (hash ^ ((const unsigned char *)handle)[i]) * 0x100000001b3ull;
  return hash ? hash : 1;
}

static bool contains(const struct tf_entry *entry, void *context) {
  uint64_t address = *(uint64_t *)context;
  return address >= entry->key && address - entry->key < entry->bytes;
}

TF_EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address) {
  struct tf_entry entry;
  pthread_mutex_lock(&order);
  CUresult result = REAL(cuIpcGetMemHandle)(handle, address);
  if (!result && tf_view() && tf_table_find(tf_addresses(), contains, &address, &entry))
    row_of(tf_addresses(), &entry, key_of(handle));
  pthread_mutex_unlock(&order);
  return result;
}

static bool once_more(struct tf_entry *entry, void *unused) {
  (void)unused;
  entry->handles++;
  return false;
}

/* Opening again in the same context gives the same address, and is closed as often. */
static CUresult open_handle(call_cuIpcOpenMemHandle *real, CUdeviceptr *address, CUipcMemHandle handle,
                            unsigned flags) {
  CUcontext context = NULL;
  pthread_mutex_lock(&order);
  CUresult result = real(address, handle, flags);
  if (!result && !tf_table_change(&opened, *address, once_more, NULL)) {
    struct tf_entry entry = {.key = *address, .handles = 1, .shared = hold(key_of(&handle))};
    REAL(cuCtxGetCurrent)(&context);
    entry.owner = (uint64_t)(uintptr_t)context;
    if (entry.shared) tf_table_put(&opened, &entry);
  }
  pthread_mutex_unlock(&order);
  return result;
}
TF_EXPORT CUresult cuIpcOpenMemHandle(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) {
  return open_handle(REAL(cuIpcOpenMemHandle), address, handle, flags);
}
TF_EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) {
  return open_handle(REAL(cuIpcOpenMemHandle_v2), address, handle, flags);
}

static bool once_less(struct tf_entry *entry, void *context) {
  *(struct tf_entry *)context = *entry;
  return !--entry->handles;
}

TF_EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  struct tf_entry before;
  pthread_mutex_lock(&order);
  CUresult result = REAL(cuIpcCloseMemHandle)(address);
  if (!result && tf_table_change(&opened, address, once_less, &before) && before.handles == 1)
    tf_shared_drop(before.shared);
  pthread_mutex_unlock(&order);
  return result;
}

static bool of_context(const struct tf_entry *entry, void *context) { return entry->owner == *(uint64_t *)context; }

void tf_sharing_context_gone(uint64_t context) {
  struct tf_entry entry;
  while (tf_table_take_match(&opened, of_context, &context, &entry)) tf_shared_drop(entry.shared);
}

/* --- cuMemCreate: file descriptors --- */

/* Marks are far from the beginning of the file, where a lock would be looked for, and differ between workers. */
static uint64_t new_marks(void) {
  uint64_t chosen = 0;
  return getrandom(&chosen, sizeof chosen, GRND_NONBLOCK) == sizeof chosen ? (chosen >> 4 | 1ull << 59) / MARKS * MARKS
                                                                           : 0;
}

static void mark_file(int file, uint32_t row) {
  tf_ledger_lock();
  struct tf_shared *shared = &tf_ledger->shared[row - 1];
  struct flock mark = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)(shared->key + shared->files)};
  bool room = shared->files < MARKS;
  shared->files += room;
  tf_ledger_unlock();
  mark.l_len = 1;
  if (room) fcntl(file, F_OFD_SETLK, &mark);
}

TF_EXPORT CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, int type,
                                                unsigned long long flags) {
  struct tf_entry entry;
  pthread_mutex_lock(&order);
  CUresult result = REAL(cuMemExportToShareableHandle)(shareable, handle, type, flags);
  bool told = !result && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && tf_view();
  if (told && tf_table_get(tf_physical(), tf_original(handle), &entry)) {
    uint32_t row = row_of(tf_physical(), &entry, new_marks());
    if (row) mark_file(*(int *)shareable, row);
  }
  pthread_mutex_unlock(&order);
  return result;
}

/* Whether the open file itself holds the lock: another one is kept from it, and it is not. */
static bool has_mark(int file, int other, uint64_t at) {
  struct flock own = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)at, .l_len = 1}, theirs = own;
  return !fcntl(other, F_OFD_GETLK, &theirs) && theirs.l_type != F_UNLCK && !fcntl(file, F_OFD_GETLK, &own) &&
         own.l_type == F_UNLCK;
}

static uint64_t key_of_file(int file) {
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  int other = open(path, O_RDONLY | O_CLOEXEC);
  uint64_t found = 0;
  for (uint32_t i = 0; other >= 0 && i < TF_SHARED && !found; i++) {
    tf_ledger_lock();
    struct tf_shared row = tf_ledger->shared[i];
    tf_ledger_unlock();
    for (uint32_t n = 0; row.key && n < row.files && n < MARKS && !found; n++)
      if (has_mark(file, other, row.key + n)) found = row.key;
  }
  if (other >= 0) close(other);
  return found;
}

TF_EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable, int type) {
  pthread_mutex_lock(&order);
  /* Held before the driver does: who exported it may let go at any time. */
  bool told = type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && tf_view() && tf_self();
  uint32_t row = told ? hold(key_of_file((int)(intptr_t)shareable)) : 0;
  CUresult result = REAL(cuMemImportFromShareableHandle)(handle, shareable, type);
  struct tf_entry entry = {.kind = TF_PHYSICAL, .handles = 1, .shared = row};
  if (!result && row) {
    entry.key = *handle;
    entry.bytes = tf_ledger->shared[row - 1].bytes;
    entry.device = tf_ledger->shared[row - 1].device;
    if (!tf_physical_again(*handle)) tf_table_put(tf_physical(), &entry);
    else tf_shared_drop(row); /* the driver knows it by that handle already, and so does its row */
  } else if (row) {
    tf_shared_drop(row);
  }
  pthread_mutex_unlock(&order);
  return result;
}
