/* A small thread-safe map from 64-bit handles to what is known of them. Open addressing, grows, never shrinks. */
#ifndef TF_TABLE_H
#define TF_TABLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct tf_entry {
  uint64_t key; /* 0: free; addresses and handles never are 0 */
  uint64_t bytes, owner;
  uint32_t kind, device;
  uint32_t handles, mappings; /* references to physical memory */
  uint32_t shared, unused;    /* row + 1 of memory that other processes may refer to */
};

struct tf_table {
  pthread_mutex_t lock;
  struct tf_entry *entries;
  uint64_t capacity, count;
};

#define TF_TABLE_INIT {.lock = PTHREAD_MUTEX_INITIALIZER}

/* Each takes the lock. `put` replaces and returns false when out of memory; `take` removes. */
bool tf_table_put(struct tf_table *table, const struct tf_entry *entry);
bool tf_table_get(struct tf_table *table, uint64_t key, struct tf_entry *found);
bool tf_table_take(struct tf_table *table, uint64_t key, struct tf_entry *found);
/* Change an entry in place under the lock: `change` returns true to remove it. False: there is none. */
bool tf_table_change(struct tf_table *table, uint64_t key, bool (*change)(struct tf_entry *, void *), void *context);
/* Copies the first entry that `match` picks, in no order. */
bool tf_table_find(struct tf_table *table, bool (*match)(const struct tf_entry *, void *), void *context,
                   struct tf_entry *found);
/* Removes the first entry that `match` picks. */
bool tf_table_take_match(struct tf_table *table, bool (*match)(const struct tf_entry *, void *), void *context,
                         struct tf_entry *found);
/* In the child after fork: nothing of the parent's is ours. */
void tf_table_reset(struct tf_table *table);

#endif
