/* The driver's functions for programs that bring their own load: all of the table, found at run time. */
#ifndef TF_DRIVER_H
#define TF_DRIVER_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "tf_cuda.h"

static void *(*look_up)(void *, const char *) = dlsym;

#define TF_CALL(symbol, base, since, per_thread) static CUresult (*p_##symbol)();
#include "driver_rows.h"

static void *open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (library) return library;
  fprintf(stderr, "%s\n", dlerror());
  exit(1);
}

/* `through` names the limiter where it is not preloaded: its dlsym is asked then, as a preloaded one would be. The
 * start of a sanitizer bears no dlsym but the C library's. */
static void *load_driver(const char *through) {
  void *library = open_library("libcuda.so.1");
  if (*through) *(void **)&look_up = dlsym(open_library(through), "dlsym");
#define TF_CALL(symbol, base, since, per_thread) *(void **)&p_##symbol = look_up(library, #symbol);
#include "driver_rows.h"
  return library;
}

#endif
