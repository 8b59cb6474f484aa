/* Sizes of allocations as the driver rounds them. */
#ifndef TF_SIZES_H
#define TF_SIZES_H

#include "tf_cuda.h"

/* Alignment of a device allocation and of a pitch. */
#define TF_ALIGNMENT 512u

static inline uint64_t tf_rounded(uint64_t bytes) {
  return bytes > UINT64_MAX - TF_ALIGNMENT ? bytes : (bytes + TF_ALIGNMENT - 1) / TF_ALIGNMENT * TF_ALIGNMENT;
}

static inline uint64_t tf_product(uint64_t left, uint64_t right) {
  uint64_t product;
  return __builtin_mul_overflow(left, right, &product) ? UINT64_MAX : product;
}

static inline uint64_t tf_element_bytes(int format, unsigned channels) {
  uint64_t bytes = format == 0x02 || format == 0x09 || format == 0x10   ? 2
                   : format == 0x03 || format == 0x0a || format == 0x20 ? 4
                                                                        : 1;
  return bytes * (channels ? channels : 1);
}

static inline uint64_t tf_array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *shape, unsigned level) {
  uint64_t width = shape->Width >> level, height = shape->Height >> level, depth = shape->Depth >> level;
  uint64_t cells = tf_product(tf_product(width ? width : 1, height ? height : 1), depth ? depth : 1);
  return tf_rounded(tf_product(cells, tf_element_bytes(shape->Format, shape->NumChannels)));
}

static inline uint64_t tf_mipmap_bytes(const CUDA_ARRAY3D_DESCRIPTOR *shape, unsigned levels) {
  uint64_t total = 0;
  for (unsigned level = 0; level < levels && level < 32; level++)
    if (__builtin_add_overflow(total, tf_array_bytes(shape, level), &total)) return UINT64_MAX;
  return total;
}

#endif
