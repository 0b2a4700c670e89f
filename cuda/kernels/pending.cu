// Interim: operations whose kernels are not there yet. Goes with the last of them.
#include "core/error.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"

namespace unifluid::cuda {
#define PENDING(name, Args)                                        \
  __attribute__((weak)) void name(Queue&, const Args&) {           \
    throw Error(error_code::kInternal, #name " is not there yet"); \
  }
PENDING(attention, AttentionArgs)
}  // namespace unifluid::cuda
