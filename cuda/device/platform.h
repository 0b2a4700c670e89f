// What every device header includes first: the CUDA runtime, or its simulation on the host
// (test/simt), which lies before it on the include path of the simulated library and defines
// UNIFLUID_SIMT.
//
// Kernels never say PTX, never use <<<>>> and never declare shared arrays: what differs between the
// two is in the headers of this folder.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define UNIFLUID_DEVICE __device__ __forceinline__
