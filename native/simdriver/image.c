/* What a checkpoint keeps: the pages of device memory, put aside in host memory, or written to a file.
 *
 * Device memory is host memory here, so pages that are put aside are not copied: they get other addresses, and the
 * time that the card's link takes is the timeline's. It takes Linux 5.7 (mremap(2), MREMAP_DONTUNMAP). Physical memory
 * that programs map themselves lies in files, may be mapped anywhere, and is copied.
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

/* A block that is put aside: where it belongs, and where it is. */
struct aside {
  uint64_t at, bytes;
  void *place;
};

static struct image {
  int file;
  uint64_t end;
  struct run *runs;
  size_t count, capacity;
  struct aside *blocks;
  size_t blocks_count, blocks_capacity;
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

/* Room for one more; the list stays as it is when there is none. */
static void *grown(void *list, size_t count, size_t *capacity, size_t size) {
  if (count < *capacity) return list;
  size_t larger = *capacity ? *capacity * 2 : 64;
  void *moved = realloc(list, larger * size);
  if (moved) *capacity = larger;
  return moved;
}

static bool remember(uint64_t at, uint64_t bytes, int file) {
  struct run *runs = grown(image.runs, image.count, &image.capacity, sizeof *runs);
  if (!runs) return false;
  image.runs = runs;
  image.runs[image.count++] = (struct run){at, bytes, image.end, file};
  image.end += bytes;
  return true;
}

/* A part of a block, as bytes from its beginning. */
static bool save_part(const struct aside *block, uint64_t from, uint64_t to) {
  uint64_t offset = image.end, bytes = to - from;
  return !bytes || (remember(block->at + from, bytes, -1) &&
                    write_all(image.file, (const char *)block->place + from, bytes, offset));
}

static bool is_zero(const char *page, uint64_t bytes) { return !*page && !memcmp(page, page + 1, bytes - 1); }

/* Pages that are zero, most of them because they were never touched, are so afterwards without being kept. */
static bool save_touched(const struct aside *block) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), seen[PAGES], start = 0, end = block->bytes;
  uint64_t first = (uint64_t)(uintptr_t)block->place / page;
  int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (map < 0) return save_part(block, 0, end);
  bool good = true;
  for (uint64_t at = 0; good && at < end;) {
    uint64_t many = (end - at + page - 1) / page;
    if (many > PAGES) many = PAGES;
    good = read_all(map, seen, many * sizeof *seen, (first + at / page) * sizeof *seen);
    for (uint64_t i = 0; good && i < many; i++, at += page) {
      uint64_t bytes = at + page < end ? page : end - at;
      if (seen[i] & PRESENT_OR_SWAPPED && !is_zero((const char *)block->place + at, bytes)) continue;
      good = save_part(block, start, at);
      start = at + page;
    }
  }
  close(map);
  return good && save_part(block, start < end ? start : end, end);
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
  (void)address, (void)unused;
  return file < 0 || save_file(file, bytes);
}

/* Nothing is left at its place, and a program that looks there finds no memory. */
static bool put_aside(uint64_t address, uint64_t bytes, int file, void *unused) {
  (void)unused;
  if (file >= 0) return true;
  struct aside *blocks = grown(image.blocks, image.blocks_count, &image.blocks_capacity, sizeof *blocks);
  if (!blocks) return false;
  image.blocks = blocks;
  if (mprotect((void *)address, bytes, PROT_NONE)) return false;
  void *place = mremap((void *)address, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
  if (place == MAP_FAILED) return false;
  image.blocks[image.blocks_count++] = (struct aside){address, bytes, place};
  return true;
}

static bool empty_file(uint64_t address, uint64_t bytes, int file, void *unused) {
  (void)address, (void)unused;
  return file < 0 || ftruncate(file, 0) || !ftruncate(file, (off_t)bytes);
}

static bool open_one(uint64_t address, uint64_t bytes, int file, void *unused) {
  (void)unused;
  return file >= 0 || !mprotect((void *)address, bytes, PROT_READ | PROT_WRITE);
}

static bool put_back(void) {
  for (; image.blocks_count; image.blocks_count--) {
    const struct aside *block = &image.blocks[image.blocks_count - 1];
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    if (mremap(block->place, block->bytes, block->bytes, flags, (void *)block->at) == MAP_FAILED) return false;
  }
  return sim_memory_sweep(open_one, NULL);
}

static void drop(void) {
  if (image.file >= 0) close(image.file);
  free(image.runs);
  free(image.blocks);
  image = (struct image){.file = -1};
}

bool sim_image_save(void) {
  image.file = memfd_create("device-image", MFD_CLOEXEC);
  if (image.file >= 0 && sim_memory_sweep(save_one, NULL) && sim_memory_sweep(put_aside, NULL) &&
      sim_memory_sweep(empty_file, NULL))
    return true;
  put_back();
  drop();
  return false;
}

bool sim_image_load(void) {
  bool good = put_back();
  for (size_t i = 0; good && i < image.count; i++) {
    const struct run *run = &image.runs[i];
    good = run->file < 0 ? read_all(image.file, (void *)run->at, run->bytes, run->offset)
                         : copy(image.file, run->offset, run->file, run->at, run->bytes);
  }
  if (good) drop();
  return good;
}

/* What was put aside goes to the end of the image's file. */
static bool write_down(void) {
  for (size_t i = 0; i < image.blocks_count; i++) {
    const struct aside *block = &image.blocks[i];
    if (mprotect(block->place, block->bytes, PROT_READ) || !save_touched(block)) return false;
  }
  return true;
}

bool sim_image_store(const char *path) {
  int to = *path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : memfd_create("device-image", MFD_CLOEXEC);
  if (to < 0) return false;
  struct image before = image;
  image.file = to;
  if (!copy(before.file, 0, to, 0, before.end) || (*path && (!write_down() || fsync(to)))) {
    image.file = before.file;
    image.end = before.end;
    image.count = before.count;
    if (*path) unlink(path);
    close(to);
    return false;
  }
  close(before.file);
  for (; *path && image.blocks_count; image.blocks_count--)
    munmap(image.blocks[image.blocks_count - 1].place, image.blocks[image.blocks_count - 1].bytes);
  return true;
}
