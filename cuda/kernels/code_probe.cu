// Whether this library has code for a device: it is compiled for some, and a kernel stands for all.
#include "core/error.h"
#include "cuda/fault.h"
#include "cuda/kernels.h"

namespace unifluid::cuda {
namespace {

__global__ void nothing() {}

}  // namespace

void expect_code() {
  cudaFuncAttributes attributes{};
  const auto* kernel = reinterpret_cast<const void*>(nothing);
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // it leaves the device as it was
    throw Error(error_code::kDevice,
                "the CUDA library was compiled for other GPUs than this one: \"npx unifluid build "
                "--cuda\" compiles it for this machine's");
  }
  check(status, "loading the library's kernels");
}

// A device may run code that was compiled for an older one.
bool code_has_dependents() {
  constexpr int kLeast = 90;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(nothing)),
        "loading the library's kernels");
  return attributes.ptxVersion >= kLeast;
}

}  // namespace unifluid::cuda
