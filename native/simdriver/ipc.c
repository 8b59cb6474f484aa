/* Handles of plain memory for other processes (cuIpcGetMemHandle): the contents move into a file that they map too. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

#define MAGIC 0x49504354u
#define CHUNK 65536u

/* The 64 bytes of a handle: where the file is to be found, and which it must be. */
struct handle {
  uint32_t magic, pid;
  int file;
  uint32_t unused;
  uint64_t inode;
  char zero[40];
};
_Static_assert(sizeof(struct handle) == sizeof(CUipcMemHandle), "as long as the driver's");

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static bool write_touched(int file, const char *from, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += CHUNK) {
    uint64_t part = bytes - at < CHUNK ? bytes - at : CHUNK;
    bool zero = !from[at] && !memcmp(from + at, from + at + 1, part - 1);
    if (!zero && pwrite(file, from + at, part, (off_t)at) != (ssize_t)part) return false;
  }
  return true;
}

/* Under the table's lock. The file stays open, in `handles`, for whoever opens the handle. */
static bool move_to_file(struct tf_entry *entry, void *failed) {
  if (entry->kind != PLAIN || entry->shared) return false;
  int file = memfd_create("shared-device-memory", MFD_CLOEXEC);
  void *address = (void *)(uintptr_t)entry->key;
  struct stat status;
  if (file >= 0 && !ftruncate(file, (off_t)entry->bytes) && !fstat(file, &status) &&
      write_touched(file, address, entry->bytes) &&
      (entry->shared = sim_share(status.st_ino, sim_physical(entry->device), entry->bytes))) {
    entry->handles = (uint32_t)file;
    *(bool *)failed =
        mmap(address, entry->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED;
    return false;
  }
  if (file >= 0) close(file);
  *(bool *)failed = true;
  return false;
}

void sim_memory_unshare(const struct tf_entry *entry) {
  if (entry->kind == PLAIN) close((int)entry->handles);
  sim_unshare(entry->shared);
}

static bool contains(const struct tf_entry *entry, void *context) {
  uint64_t address = *(uint64_t *)context;
  return entry->kind == PLAIN && address >= entry->key && address - entry->key < entry->bytes;
}

SIM_EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address) {
  CUresult result = sim_check();
  struct tf_entry entry;
  bool failed = false;
  if (result) return result;
  if (!handle || !tf_table_find(&sim_memory, contains, &address, &entry)) return CUDA_ERROR_INVALID_VALUE;
  struct stat status;
  tf_table_change(&sim_memory, entry.key, move_to_file, &failed);
  if (failed || !tf_table_get(&sim_memory, entry.key, &entry) || fstat((int)entry.handles, &status))
    return CUDA_ERROR_OUT_OF_MEMORY;
  struct handle made = {.magic = MAGIC, .pid = (uint32_t)getpid(), .file = (int)entry.handles, .inode = status.st_ino};
  memcpy(handle, &made, sizeof made);
  return CUDA_SUCCESS;
}

struct wanted {
  uint32_t shared;
  uint64_t context;
  struct tf_entry found;
};

static bool opened_already(const struct tf_entry *entry, void *context) {
  const struct wanted *wanted = context;
  return entry->kind == OPENED && entry->shared == wanted->shared && entry->owner == wanted->context;
}

static bool once_more(struct tf_entry *entry, void *unused) {
  (void)unused;
  entry->handles++;
  return false;
}

/* The file of a handle, or -1: its process is gone, or the memory. */
static int open_file(const struct handle *handle) {
  char path[64];
  struct stat status;
  snprintf(path, sizeof path, "/proc/%u/fd/%d", handle->pid, handle->file);
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0 || (!fstat(file, &status) && status.st_ino == handle->inode)) return file;
  close(file);
  return -1;
}

static CUresult map(const struct handle *handle, struct tf_entry *entry) {
  int file = open_file(handle);
  void *memory = MAP_FAILED;
  if (file >= 0) memory = mmap(NULL, entry->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (memory == MAP_FAILED) return CUDA_ERROR_INVALID_VALUE;
  entry->key = (uint64_t)(uintptr_t)memory;
  if (tf_table_put(&sim_memory, entry)) return CUDA_SUCCESS;
  munmap(memory, entry->bytes);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

/* Once per context; another opening is another reference to the same address. */
static CUresult open_once(CUdeviceptr *address, const struct handle *handle) {
  struct tf_entry entry = {.kind = OPENED, .handles = 1, .owner = (uint64_t)(uintptr_t)sim_current()};
  if (!(entry.shared = sim_shared_again(handle->inode, &entry.device, &entry.bytes))) return CUDA_ERROR_INVALID_VALUE;
  struct tf_entry found;
  struct wanted wanted = {.shared = entry.shared, .context = entry.owner};
  CUresult result = CUDA_SUCCESS;
  bool again = tf_table_find(&sim_memory, opened_already, &wanted, &found);
  if (again) tf_table_change(&sim_memory, found.key, once_more, NULL);
  else result = map(handle, &entry);
  if (again || result) sim_unshare(entry.shared);
  if (!result) *address = again ? found.key : entry.key;
  return result;
}

SIM_EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) {
  CUresult result = sim_check();
  struct handle told;
  memcpy(&told, &handle, sizeof told);
  if (result) return result;
  if (!address || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS || told.magic != MAGIC) return CUDA_ERROR_INVALID_VALUE;
  if (told.pid == (uint32_t)getpid()) return CUDA_ERROR_INVALID_CONTEXT; /* as the driver answers */
  pthread_mutex_lock(&order);
  result = open_once(address, &told);
  pthread_mutex_unlock(&order);
  return result;
}
SIM_EXPORT CUresult cuIpcOpenMemHandle(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) {
  return cuIpcOpenMemHandle_v2(address, handle, flags);
}

static bool once_less(struct tf_entry *entry, void *context) {
  *(struct tf_entry *)context = *entry;
  return entry->kind == OPENED && !--entry->handles;
}

SIM_EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  CUresult result = sim_check();
  struct tf_entry before;
  if (result) return result;
  pthread_mutex_lock(&order);
  if (!tf_table_change(&sim_memory, address, once_less, &before) || before.kind != OPENED)
    result = CUDA_ERROR_INVALID_VALUE;
  else if (before.handles == 1) {
    munmap((void *)(uintptr_t)address, before.bytes);
    sim_unshare(before.shared);
  }
  pthread_mutex_unlock(&order);
  return result;
}
