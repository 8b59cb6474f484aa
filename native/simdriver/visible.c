/* CUDA_VISIBLE_DEVICES as the driver reads it: indexes, or names of devices or the beginnings of names, in the order
 * that the process shall see them; the list ends at the first entry that is none.
 *
 * A process sees one hardware partition and nothing beside it (MIG user guide, "CUDA device enumeration"). To the process
 * it takes the place of its card; a card in this mode that is named as a whole stands for its first partition. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

static uint32_t indexes[SIM_DEVICES], count;
static uint32_t moved[SIM_DEVICES] = {0, 1, 2, 3, 4, 5, 6, 7};
_Static_assert(SIM_DEVICES == 8, "one entry per device");
static bool on_slice;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool find(const char *entry, uint32_t *index) {
  char *end;
  unsigned long number = strtoul(entry, &end, 10);
  if (*entry && !*end) {
    *index = (uint32_t)number;
    return number < sim->device_count;
  }
  for (uint32_t i = 0; *entry && i < sim->device_count; i++)
    if (!strncasecmp(sim->devices[i].uuid, entry, strlen(entry))) {
      *index = i;
      return true;
    }
  return false;
}

/* Takes a partition for the only device. */
static void take_slice(uint32_t slice) {
  count = 1;
  indexes[0] = sim->slices[slice].card;
  moved[indexes[0]] = SIM_DEVICES + slice;
  on_slice = true;
}

/* Adds an entry of the list; false ends it. */
static bool add(const char *entry) {
  uint32_t slice = SIM_NONE, index;
  if (!strncmp(entry, "MIG-", 4)) {
    slice = sim_slice_named(entry, strlen(entry));
    if (slice == SIM_NONE) return false;
  } else if (!find(entry, &index)) {
    return false;
  } else if (sim->devices[index].partitioned) {
    slice = sim_slice_at(index, 0);
    if (slice == SIM_NONE) return true;
  }
  if (slice == SIM_NONE) {
    indexes[count++] = index;
    return true;
  }
  if (!count) take_slice(slice);
  return false;
}

/* Without the variable whole cards go first: partitions are only seen where there are none. */
static void take_all(void) {
  for (uint32_t i = 0; i < sim->device_count; i++)
    if (!sim->devices[i].partitioned) indexes[count++] = i;
  for (uint32_t i = 0; i < sim->device_count && !count; i++) {
    uint32_t slice = sim->devices[i].partitioned ? sim_slice_at(i, 0) : SIM_NONE;
    if (slice != SIM_NONE) take_slice(slice);
  }
}

static void read_variable(void) {
  const char *given = getenv("CUDA_VISIBLE_DEVICES");
  if (!given) {
    take_all();
    return;
  }
  char list[1024];
  size_t length = strlen(given);
  if (length >= sizeof list) length = sizeof list - 1;
  memcpy(list, given, length);
  list[length] = 0;
  char *rest = list, *entry;
  while (count < SIM_DEVICES && (entry = strsep(&rest, ",")) && add(entry)) continue;
}

uint32_t sim_visible_count(void) {
  pthread_once(&once, read_variable);
  return count;
}

bool sim_visible(CUdevice *device) {
  if (*device < 0 || (uint32_t)*device >= sim_visible_count()) return false;
  *device = (CUdevice)indexes[*device];
  return true;
}

CUdevice sim_ordinal(uint32_t index) {
  uint32_t ordinal = 0;
  while (ordinal + 1 < sim_visible_count() && indexes[ordinal] != index) ordinal++;
  return (CUdevice)ordinal;
}

bool sim_on_slice(void) { return on_slice; }

uint32_t sim_physical(uint32_t index) { return moved[index]; }

struct sim_device *sim_card(uint32_t index) { return &sim->devices[moved[index]]; }

void sim_move_cards(const uint32_t to[SIM_DEVICES]) {
  for (uint32_t i = 0; i < SIM_DEVICES; i++) moved[i] = to[moved[i]];
}
