// As much of CUDA as cuda/ uses, on the host (test/simt/execution.h). It lies before the toolkit's
// header on the include path of the simulated library.
//
// Streams run what they are given at once; memory is poisoned when it is allocated; a capture keeps
// launches for its graph. An error of a launch stays, as on a device: everything after it fails.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "test/simt/execution.h"
#include "test/simt/hopper.h"

#define UNIFLUID_SIMT 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

// ---- what a kernel sees ----

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::current->block->index)
#define blockDim (::simt::current->block->grid->block)
#define gridDim (::simt::current->block->grid->grid)

#define SIMT_PLACE \
  ::simt::Place { file, line }
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_HERE) { simt::block_barrier(SIMT_PLACE); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, SIMT_HERE) {
  simt::sync_warp(mask, SIMT_PLACE);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

namespace simt {

template <class T>
struct Exchange {
  T value;
  int source;
  T result;
};
template <class T>
void combine_exchange(void* const* payloads, uint32_t mask) {
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    auto& e = *static_cast<Exchange<T>*>(payloads[l]);
    if (e.source < 0 || e.source > 31 || !(mask >> e.source & 1))
      fail("a shuffle from lane " + std::to_string(e.source) + ", which takes no part");
    e.result = static_cast<Exchange<T>*>(payloads[e.source])->value;
  }
}
template <class T>
T exchange(uint32_t mask, T value, int source, Place place) {
  Exchange<T> payload{value, source, value};
  warp_operation(mask, reinterpret_cast<const void*>(&combine_exchange<T>), &payload,
                 combine_exchange<T>, place);
  return payload.result;
}

struct Vote {
  bool value;
  uint32_t result;
};
inline void combine_vote(void* const* payloads, uint32_t mask) {
  uint32_t ballot = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1 && static_cast<Vote*>(payloads[l])->value) ballot |= 1u << l;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) static_cast<Vote*>(payloads[l])->result = ballot;
}
inline uint32_t vote(uint32_t mask, bool value, Place place) {
  Vote payload{value, 0};
  warp_operation(mask, reinterpret_cast<const void*>(&combine_vote), &payload, combine_vote, place);
  return payload.result;
}

}  // namespace simt

template <class T>
T __shfl_sync(uint32_t mask, T v, int source, int width = 32, SIMT_HERE) {
  const int lane = static_cast<int>(simt::current->lane);
  return simt::exchange(mask, v, lane / width * width + source % width, SIMT_PLACE);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int bits, int = 32, SIMT_HERE) {
  return simt::exchange(mask, v, static_cast<int>(simt::current->lane) ^ bits, SIMT_PLACE);
}
// A lane whose source lies outside of its part of the warp keeps its own value.
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned by, int width = 32, SIMT_HERE) {
  const int lane = static_cast<int>(simt::current->lane), from = lane + static_cast<int>(by);
  return simt::exchange(mask, v, from / width == lane / width ? from : lane, SIMT_PLACE);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned by, int width = 32, SIMT_HERE) {
  const int lane = static_cast<int>(simt::current->lane), from = lane - static_cast<int>(by);
  return simt::exchange(mask, v, from >= lane / width * width ? from : lane, SIMT_PLACE);
}
inline uint32_t __ballot_sync(uint32_t mask, bool v, SIMT_HERE) {
  return simt::vote(mask, v, SIMT_PLACE);
}
inline bool __any_sync(uint32_t mask, bool v, SIMT_HERE) {
  return simt::vote(mask, v, SIMT_PLACE) != 0;
}
inline bool __all_sync(uint32_t mask, bool v, SIMT_HERE) {
  return simt::vote(mask, !v, SIMT_PLACE) == 0;
}

// Threads take turns, so that plain operations are atomic.
template <class T>
T atomicAdd(T* at, T v) {
  const T before = *at;
  *at = before + v;
  return before;
}
template <class T>
T atomicMax(T* at, T v) {
  const T before = *at;
  *at = std::max(before, v);
  return before;
}
template <class T>
T atomicExch(T* at, T v) {
  const T before = *at;
  *at = v;
  return before;
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(uint32_t v) { return __builtin_ffs(static_cast<int>(v)); }
inline int __clz(uint32_t v) { return v ? __builtin_clz(v) : 32; }
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
using std::max;
using std::min;

// ---- what the host calls ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorUnknown = 999,
};
using cudaStream_t = struct SimtStream*;
using cudaEvent_t = struct SimtEvent*;
using cudaGraph_t = struct SimtGraph*;
using cudaGraphExec_t = struct SimtGraph*;
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
inline constexpr int cudaSharedmemCarveoutMaxShared = 100;
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1
};
inline constexpr unsigned long long cudaEnableDefault = 0,
                                    cudaGraphInstantiateFlagUseNodePriority = 8;
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
};

const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int device);
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaRuntimeGetVersion(int*);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaMallocHost(void**, size_t);
cudaError_t cudaFreeHost(void*);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t);
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t*, unsigned, int priority);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult*);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*);
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int);

namespace simt {

// cudaLaunchKernelExC with the way to call a kernel whose parameters' types only the caller knows.
// `arguments`: a copyable block of them, each at its offset.
cudaError_t launch(const void* kernel, void (*invoke)(const void*, void**), dim3 grid, dim3 block,
                   size_t shared, bool cooperative, bool dependent, const unsigned char* arguments,
                   size_t bytes, const uint32_t* offsets, size_t count, cudaStream_t stream);
// What the latest failed launch did wrong, on this thread.
const char* last_error();

}  // namespace simt
