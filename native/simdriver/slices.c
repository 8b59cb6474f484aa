/* Hardware partitions: the profiles and places of NVIDIA's MIG user guide, and cutting by them. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

/* "Supported MIG profiles" of the guide: cards of eight memory slots and seven compute slices, and the A30. */
static const struct sim_profile eight[] = {
    {0, 19, 1, 1, 1, 6, 7, ""}, {7, 20, 1, 1, 1, 6, 1, "+me"}, {9, 15, 1, 2, 2, 6, 4, ""}, {1, 14, 2, 2, 2, 4, 3, ""},
    {2, 9, 3, 4, 4, 4, 2, ""},  {3, 5, 4, 4, 1, 0, 1, ""},     {4, 0, 7, 8, 1, 0, 1, ""},
};
static const struct sim_profile four[] = {
    {0, 14, 1, 1, 1, 3, 4, ""},
    {1, 5, 2, 2, 2, 2, 2, ""},
    {3, 0, 4, 4, 1, 0, 1, ""},
};
/* Multiprocessors of each profile of `eight`, as the guide lists them (`nvidia-smi mig -lgip`): they follow from how a
 * model's multiprocessors lie on its chip, so cards with as many have the same. */
static const struct {
  uint32_t card, profile[sizeof eight / sizeof *eight];
} published[] = {
    {108, {14, 14, 14, 28, 42, 56, 98}},  /* A100 */
    {132, {16, 16, 26, 32, 60, 64, 132}}, /* H100 SXM, H200 */
};
_Static_assert(SIM_SLICES == SIM_DEVICES * SIM_CUTS, "room for every partition of every card");
#define GIB (1ull << 30)

const struct sim_profile *sim_profiles(const struct sim_device *card, uint32_t *count) {
  *count = card->slots == 8 ? sizeof eight / sizeof *eight : card->slots == 4 ? sizeof four / sizeof *four : 0;
  return card->slots == 4 ? four : eight;
}

const struct sim_profile *sim_profile_of(const struct sim_slice *slice) {
  uint32_t count;
  return &sim_profiles(&sim->devices[slice->card], &count)[slice->profile];
}

static uint32_t compute_slices(const struct sim_device *card) { return card->slots == 8 ? 7 : card->slots; }

uint64_t sim_profile_bytes(const struct sim_device *card, const struct sim_profile *profile) {
  return card->memory_bytes / card->slots * profile->width;
}

/* Where no figures are known: multiprocessors come in pairs, and every slice has as many. */
uint32_t sim_profile_sms(const struct sim_device *card, const struct sim_profile *profile) {
  for (uint32_t i = 0; card->slots == 8 && i < sizeof published / sizeof *published; i++)
    if (published[i].card == card->sms) return published[i].profile[profile - eight];
  return card->sms / compute_slices(card) / 2 * 2 * profile->slices;
}

void sim_profile_name(const struct sim_device *card, const struct sim_profile *profile, char *text, size_t length) {
  unsigned long long gib = (sim_profile_bytes(card, profile) + GIB / 2) / GIB;
  snprintf(text, length, "%ug.%llugb%s", profile->slices, gib, profile->suffix);
}

bool sim_may_cut(uint32_t card, const struct sim_profile *profile, uint32_t start) {
  if (start > profile->last || start % profile->step) return false;
  uint32_t taken = 0, same = 0;
  for (uint32_t i = 0; i < SIM_SLICES; i++) {
    const struct sim_slice *other = &sim->slices[i];
    if (!other->in_use || other->card != card) continue;
    if (other->start < start + profile->width && start < other->start + other->width) return false;
    taken += other->slices;
    same += sim_profile_of(other) == profile;
  }
  return same < profile->most && taken + profile->slices <= compute_slices(&sim->devices[card]);
}

/* Ids are the lowest that are free, from 1 on: 0 is the whole card's. */
static uint32_t new_id(uint32_t card) {
  for (uint32_t id = 1;; id++) {
    bool free = true;
    for (uint32_t i = 0; i < SIM_SLICES; i++)
      if (sim->slices[i].in_use && sim->slices[i].card == card && sim->slices[i].id == id) free = false;
    if (free) return id;
  }
}

/* The same name for the same place, as a driver gives it. */
static void name_slice(struct sim_device *device, const char *card, const struct sim_slice *slice) {
  uint64_t halves[2];
  char text[96];
  for (int half = 0; half < 2; half++) {
    int length = snprintf(text, sizeof text, "%s/%u/%u/%u/%d", card, slice->profile, slice->start, slice->id, half);
    halves[half] = 0xcbf29ce484222325ull;
    for (int i = 0; i < length; i++) halves[half] = (halves[half] ^ (unsigned char)text[i]) * 0x100000001b3ull;
    halves[half] ^= halves[half] >> 29;
  }
  snprintf(device->uuid, sizeof device->uuid, "MIG-%08x-%04x-5%03x-8%03x-%012llx", (unsigned)(halves[0] >> 32),
           (unsigned)(halves[0] >> 16 & 0xffff), (unsigned)(halves[0] & 0xfff), (unsigned)(halves[1] >> 48 & 0xfff),
           (unsigned long long)(halves[1] & 0xffffffffffffull));
}

uint32_t sim_cut(uint32_t card, const struct sim_profile *profile, uint32_t start) {
  uint32_t count, place = 0;
  while (place < SIM_SLICES && sim->slices[place].in_use) place++;
  if (place == SIM_SLICES || !sim_may_cut(card, profile, start)) return SIM_NONE;
  const struct sim_device *whole = &sim->devices[card];
  struct sim_slice *slice = &sim->slices[place];
  struct sim_device *device = &sim->devices[SIM_DEVICES + place];
  *slice = (struct sim_slice){.card = card, .start = start, .width = profile->width, .slices = profile->slices};
  slice->profile = (uint32_t)(profile - sim_profiles(whole, &count));
  slice->id = new_id(card);
  memset(device, 0, sizeof *device);
  for (uint32_t i = 0; i < sim->process_high; i++) /* what was done on the one that had this place before */
    if (sim->processes[i].device[SIM_DEVICES + place].busy_ns)
      memset(&sim->processes[i].device[SIM_DEVICES + place], 0, sizeof sim->processes[i].device[0]);
  char name[32], of[56];
  sim_profile_name(whole, profile, name, sizeof name);
  snprintf(of, sizeof of, "%s", whole->name);
  snprintf(device->name, sizeof device->name, "%s MIG %s", of, name);
  name_slice(device, whole->uuid, slice);
  device->memory_bytes = sim_profile_bytes(whole, profile);
  device->sms = device->free_sms = sim_profile_sms(whole, profile);
  device->context_bytes = whole->context_bytes;
  device->bytes_per_second = whole->bytes_per_second;
  device->threads_per_sm = whole->threads_per_sm;
  device->clock_mhz = whole->clock_mhz;
  device->major = whole->major;
  device->minor = whole->minor;
  device->accounted_ns = sim_now();
  slice->in_use = 1;
  return place;
}

static bool busy(uint32_t device) {
  for (uint32_t i = 0; i < sim->process_high; i++)
    if (sim->processes[i].alive && sim->processes[i].device[device].contexts) return true;
  return false;
}

bool sim_slice_busy(uint32_t slice) { return busy(SIM_DEVICES + slice); }
bool sim_card_busy(uint32_t card) { return busy(card); }

bool sim_cut_up(uint32_t card) {
  for (uint32_t i = 0; i < SIM_SLICES; i++)
    if (sim->slices[i].in_use && sim->slices[i].card == card) return true;
  return false;
}

uint32_t sim_slice_named(const char *uuid, size_t length) {
  for (uint32_t i = 0; i < SIM_SLICES; i++)
    if (sim->slices[i].usable && !strncmp(sim->devices[SIM_DEVICES + i].uuid, uuid, length)) return i;
  return SIM_NONE;
}

uint32_t sim_slice_at(uint32_t card, uint32_t number) {
  for (uint32_t id = 1; id <= SIM_CUTS; id++)
    for (uint32_t i = 0; i < SIM_SLICES; i++) {
      const struct sim_slice *slice = &sim->slices[i];
      if (slice->usable && slice->card == card && slice->id == id && !number--) return i;
    }
  return SIM_NONE;
}
