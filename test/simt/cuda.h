// As much of the driver's interface as cuda/ uses: maps of tensors for the bulk copies of Hopper.
// A map here is what was asked for, and what a device would refuse is refused.
#pragma once

#include <cstdint>

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

// A tensor of two-byte elements and the box of it that a copy takes; dimensions from the innermost
// on, those that are missing of length 1.
struct CUtensorMap {
  static constexpr uint32_t kMostDimensions = 3;

  const unsigned char* data;
  uint32_t rank;
  int64_t sizes[kMostDimensions];
  int64_t bytes[kMostDimensions];  // from one to the next
  uint32_t box[kMostDimensions];

  uint32_t box_elements() const { return box[0] * box[1] * box[2]; }
};

CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* data,
                                const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill);
