// What a model or a trainer is given of the machine.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/backend.h"

namespace unifluid::binding {

struct Resources {
  int threads = 1;
  std::string isa;           // empty: the best
  size_t max_memory = 0;     // bytes; 0: what there is
  bool bf16 = false;         // the CPU's products (cpu/backend.h)
  std::string cuda_library;  // empty: the CPU
  int cuda_device = 0;
  DType cuda_type = DType::bf16;
  size_t cuda_weights = 0;  // bytes that a model's weights will take
};

// Throws what make_cpu_backend and make_cuda_backend do.
std::unique_ptr<Backend> open_backend(const Resources&);

}  // namespace unifluid::binding
