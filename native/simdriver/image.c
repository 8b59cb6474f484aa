/* What a checkpoint keeps: the touched pages of device memory, moved into a file of host memory or of a disk.
 *
 * The list of pages stays with the process, as the real driver's image does: only this process can go on from it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim.h"

#define PAGES 512u
#define PRESENT_OR_SWAPPED (3ull << 62) /* Documentation/admin-guide/mm/pagemap.rst of the kernel */
#define CHUNK (1u << 20)

/* A run of bytes of the image: where they belong, at an address or in a handle's file. */
struct run {
  uint64_t at, bytes, offset;
  int file;
};

static struct image {
  int file;
  uint64_t end;
  struct run *runs;
  size_t count, capacity;
} image = {.file = -1};

static bool write_all(int file, const void *from, uint64_t bytes, uint64_t offset) {
  while (bytes) {
    ssize_t done = pwrite(file, from, bytes, (off_t)offset);
    if (done <= 0) return false;
    from = (const char *)from + done;
    bytes -= (uint64_t)done;
    offset += (uint64_t)done;
  }
  return true;
}

static bool read_all(int file, void *to, uint64_t bytes, uint64_t offset) {
  while (bytes) {
    ssize_t done = pread(file, to, bytes, (off_t)offset);
    if (done <= 0) return false;
    to = (char *)to + done;
    bytes -= (uint64_t)done;
    offset += (uint64_t)done;
  }
  return true;
}

static bool copy(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t bytes) {
  char *buffer = malloc(CHUNK);
  bool good = buffer;
  while (good && bytes) {
    uint64_t part = bytes < CHUNK ? bytes : CHUNK;
    good = read_all(from, buffer, part, from_offset) && write_all(to, buffer, part, to_offset);
    from_offset += part;
    to_offset += part;
    bytes -= part;
  }
  free(buffer);
  return good;
}

static bool remember(uint64_t at, uint64_t bytes, int file) {
  if (image.count == image.capacity) {
    size_t capacity = image.capacity ? image.capacity * 2 : 64;
    struct run *larger = realloc(image.runs, capacity * sizeof *larger);
    if (!larger) return false;
    image.runs = larger;
    image.capacity = capacity;
  }
  image.runs[image.count++] = (struct run){at, bytes, image.end, file};
  image.end += bytes;
  return true;
}

static bool save_pages(uint64_t from, uint64_t to) {
  uint64_t offset = image.end;
  return from == to || (remember(from, to - from, -1) && write_all(image.file, (void *)from, to - from, offset));
}

static bool is_zero(const char *page, uint64_t bytes) { return !*page && !memcmp(page, page + 1, bytes - 1); }

/* Pages that are zero, most of them because they were never touched, are so afterwards without being kept. */
static bool save_touched(uint64_t address, uint64_t bytes) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), seen[PAGES], start = address, end = address + bytes;
  int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (map < 0) return save_pages(address, end);
  bool good = true;
  for (uint64_t at = address; good && at < end;) {
    uint64_t many = (end - at + page - 1) / page;
    if (many > PAGES) many = PAGES;
    good = read_all(map, seen, many * sizeof *seen, at / page * sizeof *seen);
    for (uint64_t i = 0; good && i < many; i++, at += page) {
      if (seen[i] & PRESENT_OR_SWAPPED && !is_zero((const char *)at, at + page < end ? page : end - at)) continue;
      good = save_pages(start, at);
      start = at + page;
    }
  }
  close(map);
  return good && save_pages(start < end ? start : end, end);
}

static bool save_file(int file, uint64_t bytes) {
  for (off_t at = 0; at < (off_t)bytes;) {
    off_t data = lseek(file, at, SEEK_DATA);
    if (data < 0) return true; /* no more */
    at = lseek(file, data, SEEK_HOLE);
    uint64_t offset = image.end;
    if (!remember((uint64_t)data, (uint64_t)(at - data), file) ||
        !copy(file, (uint64_t)data, image.file, offset, (uint64_t)(at - data)))
      return false;
  }
  return true;
}

static bool save_one(uint64_t address, uint64_t bytes, int file, void *unused) {
  (void)unused;
  return file < 0 ? save_touched(address, bytes) : save_file(file, bytes);
}

/* After all is saved: nothing is left at its place, and a program that looks there finds no memory. */
static bool leave_one(uint64_t address, uint64_t bytes, int file, void *unused) {
  (void)unused;
  if (file >= 0) return ftruncate(file, 0) || !ftruncate(file, (off_t)bytes);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap((void *)address, bytes, PROT_NONE, flags, -1, 0) != MAP_FAILED;
}

static bool return_one(uint64_t address, uint64_t bytes, int file, void *unused) {
  (void)unused;
  return file >= 0 || !mprotect((void *)address, bytes, PROT_READ | PROT_WRITE);
}

static void drop(void) {
  if (image.file >= 0) close(image.file);
  free(image.runs);
  image = (struct image){.file = -1};
}

bool sim_image_save(void) {
  image.file = memfd_create("device-image", MFD_CLOEXEC);
  if (image.file >= 0 && sim_memory_sweep(save_one, NULL) && sim_memory_sweep(leave_one, NULL)) return true;
  drop();
  return false;
}

bool sim_image_load(void) {
  bool good = sim_memory_sweep(return_one, NULL);
  for (size_t i = 0; good && i < image.count; i++) {
    const struct run *run = &image.runs[i];
    good = run->file < 0 ? read_all(image.file, (void *)run->at, run->bytes, run->offset)
                         : copy(image.file, run->offset, run->file, run->at, run->bytes);
  }
  if (good) drop();
  return good;
}

bool sim_image_store(const char *path) {
  int to = *path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : memfd_create("device-image", MFD_CLOEXEC);
  if (to < 0) return false;
  if (!copy(image.file, 0, to, 0, image.end) || (*path && fsync(to))) {
    if (*path) unlink(path);
    close(to);
    return false;
  }
  close(image.file);
  image.file = to;
  return true;
}
