#ifndef TF_NULL_H
#define TF_NULL_H

#define NULL_EXPORT __attribute__((visibility("default")))

#endif
