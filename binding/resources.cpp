#include "binding/resources.h"

#include "cpu/backend.h"
#include "cuda/loader.h"

namespace unifluid::binding {

std::unique_ptr<Backend> open_backend(const Resources& r) {
  if (r.cuda_library.empty())
    return make_cpu_backend(r.threads, r.isa.empty() ? nullptr : r.isa.c_str(), r.max_memory,
                            r.bf16);
  return cuda::make_cuda_backend(r.cuda_library,
                                 {r.cuda_device, r.cuda_type, r.max_memory, r.cuda_weights});
}

}  // namespace unifluid::binding
