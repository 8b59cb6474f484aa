/* A lock that processes share: a robust mutex whose stopped holder holds nobody up.
 *
 * Whoever lives holds it for microseconds, but a stop signal may come in just these. Nobody may take the lock away: the
 * holder would go on writing one day. So whoever waits for a stopped process lets that one continue, and it stops again
 * by itself as soon as it has unlocked. */
#ifndef TF_LOCK_H
#define TF_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct tf_lock {
  pthread_mutex_t *mutex;        /* robust, shared by processes */
  _Atomic uint64_t *stops_again; /* beside it: the thread that was let go on and stops again; 0 is none */
  bool (*may_go_on)(const void *owner, uint32_t process); /* whether to let a process continue; NULL: any */
  const void *owner;
};

/* 0: held. EOWNERDEAD: held, and what it guards is to be mended, then tf_lock_mended called. Else as
 * pthread_mutex_timedlock(3) after so many looks at the holder, 20 ms each; UINT32_MAX: as many as
 * it takes. */
int tf_lock_take(const struct tf_lock *lock, uint32_t most_looks);
void tf_lock_mended(const struct tf_lock *lock);
void tf_lock_give(const struct tf_lock *lock);

#endif
