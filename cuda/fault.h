// What becomes of CUDA's errors.
#pragma once

#include <cuda_runtime.h>

namespace unifluid::cuda {

// Throws where `status` is an error, INSUFFICIENT_MEMORY where memory is what lacks and
// DEVICE_ERROR otherwise. `what` was being done: "allocating memory". For calls that give the
// device no work.
void check(cudaError_t status, const char* what);

// A fault of one backend's device, which stays: CUDA tells of a kernel's fault at whatever call
// comes next, a copy or a wait more often than a launch, and what ran before it is lost.
class Fault {
 public:
  // For calls that give the device work or wait for it: throws DEVICE_ERROR where `status` is an
  // error, after which `expect_none` does so too; but where memory is what lacks, as for a kernel
  // that is launched for the first time, INSUFFICIENT_MEMORY, and the device is as it was.
  void check(cudaError_t status, const char* what);
  void mark() { happened_ = true; }
  // Throws DEVICE_ERROR.
  void expect_none() const;

 private:
  bool happened_ = false;
};

}  // namespace unifluid::cuda
