/* Finding the real functions, although dlsym itself is one of those we replace. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <limits.h>
#include <link.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "limiter.h"

void *tf_real_table[REAL_COUNT];

static tf_dlsym *real_dlsym;
static tf_dlvsym *real_dlvsym;
static uint64_t (*virtual_now)(void);
static void (*virtual_wait)(uint64_t);

struct wanted {
  const char *name;
  void *address;
};

/* Symbols of a loaded object, read from its own tables: no loader function is called that could be replaced. */
static void scan(const struct dl_phdr_info *info, const ElfW(Dyn) * dynamic, struct wanted *wanted, int count) {
  const ElfW(Sym) *symbols = NULL;
  const char *strings = NULL;
  const uint32_t *hash = NULL;
  for (; dynamic->d_tag != DT_NULL; dynamic++) {
    /* glibc has already added the load address, the vDSO's table is relative. */
    uintptr_t value = dynamic->d_un.d_ptr;
    if (value < info->dlpi_addr) value += info->dlpi_addr;
    if (dynamic->d_tag == DT_SYMTAB) symbols = (const ElfW(Sym) *)value;
    else if (dynamic->d_tag == DT_STRTAB) strings = (const char *)value;
    else if (dynamic->d_tag == DT_GNU_HASH) hash = (const uint32_t *)value;
  }
  if (!symbols || !strings || !hash) return;
  uint32_t buckets = hash[0], first = hash[1], words = hash[2], last = 0;
  const uint32_t *bucket = (const uint32_t *)((const ElfW(Addr) *)(hash + 4) + words), *chain = bucket + buckets;
  for (uint32_t i = 0; i < buckets; i++)
    if (bucket[i] > last) last = bucket[i];
  if (last < first) return;
  while (!(chain[last - first] & 1)) last++;
  for (uint32_t i = first; i <= last; i++)
    for (int w = 0; w < count; w++)
      if (!wanted[w].address && symbols[i].st_shndx != SHN_UNDEF && ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC &&
          !strcmp(strings + symbols[i].st_name, wanted[w].name))
        wanted[w].address = (void *)(info->dlpi_addr + symbols[i].st_value);
}

static int visit(struct dl_phdr_info *info, size_t size, void *context) {
  (void)size;
  const char *name = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
  name = name ? name + 1 : info->dlpi_name;
  /* libdl carries them before glibc 2.34. */
  bool carrier = name && (!strncmp(name, "libc.so", 7) || !strncmp(name, "libdl.so", 8) || !strncmp(name, "libc-2", 6));
  if (!carrier) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
      scan(info, (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr), context, 2);
  return 0;
}

static void find_loader(void) {
  struct wanted wanted[2] = {{"dlsym", NULL}, {"dlvsym", NULL}};
  dl_iterate_phdr(visit, wanted);
  real_dlsym = (tf_dlsym *)wanted[0].address;
  real_dlvsym = (tf_dlvsym *)wanted[1].address;
}

static pthread_once_t loader_once = PTHREAD_ONCE_INIT;

tf_dlsym *tf_find_dlsym(void) {
  pthread_once(&loader_once, find_loader);
  return real_dlsym;
}

void *tf_real_dlsym(void *handle, const char *name) {
  tf_dlsym *look_up = tf_find_dlsym();
  return look_up ? look_up(handle, name) : NULL;
}

tf_dlvsym *tf_find_dlvsym(void) {
  pthread_once(&loader_once, find_loader);
  return real_dlvsym;
}

static const char *const names[] = {
#define NAME(symbol) #symbol,
    TF_REAL_ROWS(NAME)};

static int missing_in_driver(void) { return CUDA_ERROR_NOT_SUPPORTED; }
static int missing_in_management(void) { return NVML_ERROR_NOT_SUPPORTED; }

bool tf_has(enum tf_real function) {
  void *address = tf_real_table[function];
  return address && address != (void *)missing_in_driver && address != (void *)missing_in_management;
}

static void *load(const char *variable, const char *fallback, const char *prefix, void *missing) {
  const char *path = getenv(variable);
  void *library = dlopen(path ? path : fallback, RTLD_LAZY | RTLD_LOCAL);
  for (int i = 0; i < REAL_COUNT; i++) {
    if (strncmp(names[i], prefix, strlen(prefix)) != 0) continue;
    void *address = library ? tf_real_dlsym(library, names[i]) : NULL;
    tf_real_table[i] = address ? address : missing;
  }
  return library;
}

static void load_driver(void) {
  void *library = load("TENSORFUSION_CUDA_LIBRARY", "libcuda.so.1", "cu", (void *)missing_in_driver);
  int (*is_virtual)(void) = library ? (int (*)(void))tf_real_dlsym(library, "tfSimVirtual") : NULL;
  if (is_virtual && is_virtual()) {
    virtual_wait = (void (*)(uint64_t))tf_real_dlsym(library, "tfSimWaitUntil");
    virtual_now = (uint64_t (*)(void))tf_real_dlsym(library, "tfSimNow");
  }
}

static void load_management(void) {
  load("TENSORFUSION_NVML_LIBRARY", "libnvidia-ml.so.1", "nvml", (void *)missing_in_management);
}

void tf_load_driver(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load_driver);
}

void tf_load_management(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load_management);
}

/* A program linked against the driver reaches our functions before any look-up; one that is not must not pay. */
__attribute__((constructor)) static void linked_directly(void) {
  if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD)) tf_load_driver();
  if (dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_NOLOAD)) tf_load_management();
}

uint64_t tf_now(void) {
  if (virtual_now) return virtual_now();
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
}

void tf_wait_until(uint64_t when_ns) {
  if (virtual_wait) {
    virtual_wait(when_ns);
    return;
  }
  struct timespec until = {(time_t)(when_ns / 1000000000ull), (long)(when_ns % 1000000000ull)};
  uint32_t seen = tf_limits ? atomic_load(&tf_limits->sequence) : 0;
  if (tf_limits)
    syscall(SYS_futex, &tf_limits->sequence, FUTEX_WAIT_BITSET, seen, &until, NULL, FUTEX_BITSET_MATCH_ANY);
  else clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

void tf_wake(void) {
  if (tf_limits) syscall(SYS_futex, &tf_limits->sequence, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
