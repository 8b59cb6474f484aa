/* A driver whose calls do nothing and succeed: what remains of a call is what stands in front of it.
 * answers.c replaces those that must answer something. */
#include <string.h>

#include "null.h"

#define TF_CALL(symbol, base, since, per_thread) \
  NULL_EXPORT __attribute__((weak)) int symbol(void) { return 0; }
#include "driver_rows.h"
#undef TF_CALL
#undef TF_HOOK

static const struct {
  const char *name;
  int (*address)(void);
} rows[] = {
#define TF_CALL(symbol, base, since, per_thread) {#symbol, symbol},
#include "driver_rows.h"
};

/* The bare function, past any library that was preloaded in front of it. */
NULL_EXPORT void *tfNullAddress(const char *name) {
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (!strcmp(rows[i].name, name)) return (void *)rows[i].address;
  return NULL;
}
