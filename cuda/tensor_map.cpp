#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <array>
#include <string>

#include "core/error.h"

namespace unifluid::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the library is linked with the runtime only.
Encode find_encode() {
  constexpr unsigned kVersion = 12000;  // of CUDA, which brought it
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion,
                                       cudaEnableDefault, &result) != cudaSuccess ||
      result != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Encode>(function);
}

Encode encode() {
  static const Encode found = find_encode();
  return found;
}

// `sizes` and the elements from one to the next in each dimension, the innermost first; its
// elements lie together.
template <size_t kRank>
TensorMap map_of(void* data, const std::array<int64_t, kRank>& sizes,
                 const std::array<int64_t, kRank>& steps, const std::array<int, kRank>& box) {
  TensorMap map{};
  cuuint64_t lengths[kRank], bytes[kRank - 1];
  cuuint32_t box_lengths[kRank], each[kRank];
  std::string shape;
  for (size_t i = 0; i < kRank; ++i) {
    lengths[i] = static_cast<cuuint64_t>(sizes[i]);
    if (i > 0) bytes[i - 1] = static_cast<cuuint64_t>(steps[i]) * 2;
    box_lengths[i] = static_cast<cuuint32_t>(box[i]);
    each[i] = 1;
    shape = std::to_string(sizes[i]) + (i > 0 ? " x " : "") + shape;
  }
  const CUresult status =
      encode()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, data, lengths, bytes, box_lengths,
               each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw Error(error_code::kDevice, "the GPU's driver refused to map a tensor of " + shape +
                                         ": error " + std::to_string(static_cast<int>(status)));
  return map;
}

}  // namespace

bool has_tensor_maps() { return encode() != nullptr; }

TensorMap tensor_map(const Tensor& matrix, int box_rows) {
  return map_of<2>(matrix.data, {matrix.cols, matrix.rows}, {1, matrix.stride},
                   {kBoxColumns, box_rows});
}

TensorMap image_map(const Tensor& image, int64_t width, int box_width, int box_height) {
  return map_of<3>(image.data, {image.cols, width, image.rows / width},
                   {1, image.stride, image.stride * width}, {kBoxColumns, box_width, box_height});
}

}  // namespace unifluid::cuda
