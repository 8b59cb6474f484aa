/* The driver's functions as programs see them: each passes the gate that a checkpoint closes. */
#include "tf_cuda.h"

extern void sim_enter(void);
extern void sim_leave(void);

#define TF_GATE(symbol, parameters, names)                            \
  extern CUresult inner_##symbol parameters;                          \
  extern CUresult symbol parameters;                                  \
  __attribute__((visibility("default"))) CUresult symbol parameters { \
    sim_enter();                                                      \
    CUresult result = inner_##symbol names;                           \
    sim_leave();                                                      \
    return result;                                                    \
  }
#include "gates.h"
