/* cuGetProcAddress: apart from entry.c, where the hooks are declared without their types. */
#include "limiter.h"

TF_EXPORT CUresult cuGetProcAddress(const char *name, void **address, int version, uint64_t flags) {
  tf_load_driver();
  CUresult result = REAL(cuGetProcAddress)(name, address, version, flags);
  if (!result && *address) tf_replace(name, address, version, flags);
  return result;
}

TF_EXPORT CUresult cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags, int *status) {
  tf_load_driver();
  CUresult result = REAL(cuGetProcAddress_v2)(name, address, version, flags, status);
  if (!result && *address) tf_replace(name, address, version, flags);
  return result;
}
