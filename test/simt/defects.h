// Kernels that are wrong on purpose, each beside its right form: what the simulation must catch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace unifluid::cuda {

struct Outcome {
  std::string error;  // of the launch; empty: none
  bool right;         // the results are those of the right kernel
};

std::vector<std::string> defect_names();
// Runs a kernel, right or wrong, with the order of threads that `seed` gives.
Outcome run_defect(const std::string& name, bool wrong, uint64_t seed);

}  // namespace unifluid::cuda
