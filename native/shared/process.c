#include "tf_process.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t tf_start_ticks(uint32_t pid) {
  char path[48], text[1024];
  snprintf(path, sizeof path, "/proc/%u/stat", pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return 0;
  text[length] = 0;
  /* The name in parentheses may contain anything; the state follows the last one. */
  char *cursor = strrchr(text, ')');
  if (!cursor || cursor[2] == 'Z' || cursor[2] == 'X') return 0;
  cursor += 2;
  for (int field = 3; field < 22 && cursor; field++) cursor = strchr(cursor + 1, ' ');
  return cursor ? strtoull(cursor + 1, NULL, 10) : 0;
}
