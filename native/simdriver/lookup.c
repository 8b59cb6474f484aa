/* cuGetProcAddress as the driver of the configured version answers it. */
#include <string.h>

#include "tf_cuda.h"

/* Declared here without their types: only the addresses matter. */
#define TF_CALL(symbol, base, since, per_thread) extern void symbol(void);
#include "driver_rows.h"

static const struct {
  const char *base;
  int since, per_thread;
  void (*address)(void);
} rows[] = {
#define TF_CALL(symbol, base, since, per_thread) {#base, since, per_thread, symbol},
#define TF_ALIAS(symbol, base, since, per_thread) TF_CALL(symbol, base, since, per_thread)
#include "driver_rows.h"
};

/* In device.c, where the typed functions are. */
extern CUresult sim_cuda_version(int *version);

static CUresult look_up(const char *name, void **address, int version, uint64_t flags, int *status) {
  int driver;
  CUresult result = sim_cuda_version(&driver);
  if (result) return result;
  if (!name || !address) return CUDA_ERROR_INVALID_VALUE;
  int best = -1, best_own = -1, newest = 0, known = 0;
  int wants_own = (flags & CU_GET_PROC_ADDRESS_PER_THREAD) != 0;
  for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++) {
    if (strcmp(rows[i].base, name) != 0) continue;
    known = 1;
    if (rows[i].since > version || rows[i].since > driver || (rows[i].per_thread && !wants_own)) continue;
    /* The newest that fits; of equals the variant for per-thread streams, which only then is listed. */
    if (best < 0 || rows[i].since > newest || (rows[i].since == newest && rows[i].per_thread > best_own)) {
      best = i;
      newest = rows[i].since;
      best_own = rows[i].per_thread;
    }
  }
  *address = best < 0 ? NULL : (void *)rows[best].address;
  if (status)
    *status = best >= 0 ? CU_GET_PROC_ADDRESS_SUCCESS
              : known   ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                        : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return best < 0 ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

__attribute__((visibility("default"))) CUresult real_cuGetProcAddress(const char *name, void **address, int version,
                                                                      uint64_t flags) __asm__("cuGetProcAddress");
CUresult real_cuGetProcAddress(const char *name, void **address, int version, uint64_t flags) {
  return look_up(name, address, version, flags, NULL);
}

__attribute__((visibility("default"))) CUresult real_cuGetProcAddress_v2(const char *name, void **address, int version,
                                                                         uint64_t flags,
                                                                         int *status) __asm__("cuGetProcAddress_v2");
CUresult real_cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags, int *status) {
  return look_up(name, address, version, flags, status);
}

/* Private tables are not offered; callers must cope, as they do on drivers that lack one. */
__attribute__((visibility("default"))) CUresult real_cuGetExportTable(const void **table,
                                                                      const CUuuid *id) __asm__("cuGetExportTable");
CUresult real_cuGetExportTable(const void **table, const CUuuid *id) {
  (void)table, (void)id;
  return CUDA_ERROR_NOT_FOUND;
}
