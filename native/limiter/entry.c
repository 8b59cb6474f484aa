/* The ways in: direct links come here by symbol preference, dlsym and dlvsym and cuGetProcAddress by these functions.
 *
 * A look-up is always answered by the real one first; only what it finds is replaced. So the requested version, the
 * stream flag and "not found" mean what they mean without us. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Declared here without their types: only the addresses matter. */
#define TF_HOOK(symbol, base, since, per_thread) extern void symbol(void);
#include "driver_rows.h"

#include "limiter.h"

#define DECLARE(symbol) extern void symbol(void);
TF_NVML_HOOKS(DECLARE)

struct hook {
  const char *symbol, *base;
  int since, per_thread, real;
  void (*address)(void);
};

static const struct hook hooks[] = {
#define TF_HOOK(symbol, base, since, per_thread) {#symbol, #base, since, per_thread, REAL_##symbol, symbol},
#define TF_ALIAS(symbol, base, since, per_thread) TF_HOOK(symbol, base, since, per_thread)
#include "driver_rows.h"
};

static const struct hook management_hooks[] = {
#define ROW(symbol) {#symbol, #symbol, 0, 0, REAL_##symbol, symbol},
    TF_NVML_HOOKS(ROW)};

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* Without a worker nothing is replaced: results are the driver's own. */
static bool off(void) {
  const char *folder = getenv("TENSORFUSION_WORKER_DIR");
  return !folder || !*folder;
}

static const struct hook *by_symbol(const char *name) {
  if (name[0] == 'c' && name[1] == 'u') {
    for (size_t i = 0; i < COUNT(hooks); i++)
      if (!strcmp(hooks[i].symbol, name)) return &hooks[i];
  } else if (!strncmp(name, "nvml", 4)) {
    for (size_t i = 0; i < COUNT(management_hooks); i++)
      if (!strcmp(management_hooks[i].symbol, name)) return &management_hooks[i];
  }
  return NULL;
}

static const struct hook *wanted(const char *name) {
  const struct hook *hook = name ? by_symbol(name) : NULL;
  if (!hook || off()) return NULL;
  if (name[0] == 'c') tf_load_driver();
  else tf_load_management();
  return hook;
}

/* The last call is a jump, so RTLD_NEXT still means "after the caller". */
TF_EXPORT void *dlsym(void *restrict handle, const char *restrict name) {
  const struct hook *hook = wanted(name);
  if (hook) return tf_real_dlsym(handle, name) ? (void *)hook->address : NULL;
  tf_dlsym *real = tf_find_dlsym();
  return real(handle, name);
}

TF_EXPORT void *dlvsym(void *restrict handle, const char *restrict name, const char *restrict version) {
  const struct hook *hook = wanted(name);
  tf_dlvsym *real = tf_find_dlvsym();
  if (hook) return real(handle, name, version) ? (void *)hook->address : NULL;
  return real(handle, name, version);
}

void tf_replace(const char *name, void **address, int version, uint64_t flags) {
  const struct hook *chosen = NULL;
  if (!name || off()) return;
  for (size_t i = 0; i < COUNT(hooks); i++) {
    const struct hook *hook = &hooks[i];
    /* By address first: a name may mean a function of another name from some version on. */
    if (tf_real_table[hook->real] == *address) {
      *address = (void *)hook->address;
      return;
    }
    if (strcmp(hook->base, name) != 0) continue;
    bool own = (flags & CU_GET_PROC_ADDRESS_PER_THREAD) != 0;
    if (hook->since <= version && (!hook->per_thread || own) &&
        (!chosen || hook->since > chosen->since || (hook->since == chosen->since && hook->per_thread)))
      chosen = hook;
  }
  /* The driver gave an address that it does not export: by the rules of the table it is this function. */
  if (chosen) *address = (void *)chosen->address;
}
