#include "cuda/fault.h"

#include <string>

#include "core/error.h"

namespace unifluid::cuda {
namespace {

std::string describe(cudaError_t status, const char* what) {
  return std::string("CUDA error while ") + what + ": " + cudaGetErrorString(status);
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // a failed allocation leaves the device as it was
    throw Error(error_code::kInsufficientMemory, describe(status, what));
  }
  throw Error(error_code::kDevice, describe(status, what));
}

void Fault::check(cudaError_t status, const char* what) {
  happened_ = happened_ || (status != cudaSuccess && status != cudaErrorMemoryAllocation);
  cuda::check(status, what);
}

void Fault::expect_none() const {
  if (happened_)
    throw Error(error_code::kDevice,
                "the GPU has failed in an earlier request; the model must be loaded again");
}

}  // namespace unifluid::cuda
