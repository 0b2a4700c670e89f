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
// Called, not copied to where it is used: long code that many unrolled places use.
#ifdef UNIFLUID_SIMT
#define UNIFLUID_DEVICE_CALLED inline
#else
#define UNIFLUID_DEVICE_CALLED __device__ __noinline__ inline
#endif
