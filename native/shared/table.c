#include "tf_table.h"

#include <stdlib.h>
#include <string.h>

static uint64_t place(const struct tf_table *table, uint64_t key) {
  return (key * 0x9E3779B97F4A7C15ull >> 20) & (table->capacity - 1);
}

/* Lock held. The slot of a key, or the free slot where it would go. */
static uint64_t find(const struct tf_table *table, uint64_t key) {
  uint64_t slot = place(table, key);
  while (table->entries[slot].key && table->entries[slot].key != key) slot = (slot + 1) & (table->capacity - 1);
  return slot;
}

static bool grow(struct tf_table *table) {
  struct tf_table larger = *table;
  larger.capacity = table->capacity ? table->capacity * 2 : 256;
  larger.entries = calloc(larger.capacity, sizeof *larger.entries);
  if (!larger.entries) return false;
  for (uint64_t i = 0; i < table->capacity; i++)
    if (table->entries[i].key) larger.entries[find(&larger, table->entries[i].key)] = table->entries[i];
  free(table->entries);
  table->entries = larger.entries;
  table->capacity = larger.capacity;
  return true;
}

/* Lock held. Moves later entries of the chain up, so that no marker of a removed entry is needed. */
static void remove_slot(struct tf_table *table, uint64_t slot) {
  uint64_t mask = table->capacity - 1, next = slot;
  for (;;) {
    next = (next + 1) & mask;
    if (!table->entries[next].key) break;
    uint64_t wanted = place(table, table->entries[next].key);
    if (((next - wanted) & mask) < ((next - slot) & mask)) continue;
    table->entries[slot] = table->entries[next];
    slot = next;
  }
  table->entries[slot].key = 0;
  table->count--;
}

bool tf_table_put(struct tf_table *table, const struct tf_entry *entry) {
  pthread_mutex_lock(&table->lock);
  bool room = table->count * 2 < table->capacity || grow(table);
  if (room) {
    uint64_t slot = find(table, entry->key);
    if (!table->entries[slot].key) table->count++;
    table->entries[slot] = *entry;
  }
  pthread_mutex_unlock(&table->lock);
  return room;
}

static bool look(struct tf_table *table, uint64_t key, struct tf_entry *found, bool take) {
  pthread_mutex_lock(&table->lock);
  bool known = false;
  if (table->capacity && key) {
    uint64_t slot = find(table, key);
    known = table->entries[slot].key == key;
    if (known && found) *found = table->entries[slot];
    if (known && take) remove_slot(table, slot);
  }
  pthread_mutex_unlock(&table->lock);
  return known;
}

bool tf_table_get(struct tf_table *table, uint64_t key, struct tf_entry *found) {
  return look(table, key, found, false);
}

bool tf_table_take(struct tf_table *table, uint64_t key, struct tf_entry *found) {
  return look(table, key, found, true);
}

bool tf_table_change(struct tf_table *table, uint64_t key, bool (*change)(struct tf_entry *, void *), void *context) {
  pthread_mutex_lock(&table->lock);
  bool known = false;
  if (table->capacity && key) {
    uint64_t slot = find(table, key);
    known = table->entries[slot].key == key;
    if (known && change(&table->entries[slot], context)) remove_slot(table, slot);
  }
  pthread_mutex_unlock(&table->lock);
  return known;
}

bool tf_table_find(struct tf_table *table, bool (*match)(const struct tf_entry *, void *), void *context,
                   struct tf_entry *found) {
  pthread_mutex_lock(&table->lock);
  bool known = false;
  for (uint64_t slot = 0; slot < table->capacity && !known; slot++) {
    known = table->entries[slot].key && match(&table->entries[slot], context);
    if (known) *found = table->entries[slot];
  }
  pthread_mutex_unlock(&table->lock);
  return known;
}

bool tf_table_take_match(struct tf_table *table, bool (*match)(const struct tf_entry *, void *), void *context,
                         struct tf_entry *found) {
  pthread_mutex_lock(&table->lock);
  bool known = false;
  for (uint64_t slot = 0; slot < table->capacity && !known; slot++) {
    if (!table->entries[slot].key || !match(&table->entries[slot], context)) continue;
    *found = table->entries[slot];
    remove_slot(table, slot);
    known = true;
  }
  pthread_mutex_unlock(&table->lock);
  return known;
}

void tf_table_reset(struct tf_table *table) {
  pthread_mutex_init(&table->lock, NULL);
  if (table->entries) memset(table->entries, 0, table->capacity * sizeof *table->entries);
  table->count = 0;
}
