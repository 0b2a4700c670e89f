// A kernel that is wrong on purpose, and what the right one computes.
#pragma once

#include <map>
#include <string>

#include "cuda/device/platform.h"
#include "test/simt/defects.h"

namespace unifluid::cuda {

inline constexpr uint32_t kThreads = 64;

struct Arguments {
  bool wrong;
  float* out;       // [kThreads], and one that only kernels see
  const float* in;  // [kThreads], 16-byte aligned
  uint32_t* arrivals;
};

struct Defect {
  void (*kernel)(const Arguments&);
  int shift;  // out[i] = in[i + shift]; -1: in[i ^ 1]
  bool cooperative = false;
  uint32_t threads = kThreads;
  size_t shared = 2 * kThreads * sizeof(float);
  bool dependent = false;
};

// Those of what Hopper adds (defects_hopper.cpp).
std::map<std::string, Defect> hopper_defects();

}  // namespace unifluid::cuda
