// Whether what the model gave is made of numbers. Operations do not check (core/backend.h); whoever
// hands a result out does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"

namespace unifluid {

// By bits, so that it is a vector's work however large the result is.
inline bool all_finite(const float* values, size_t count) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t others = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    others |= (bits & kExponent) == kExponent;
  }
  return others == 0;
}

// Throws NUMERICAL_ERROR. `what` begins the message: "the image features".
inline void expect_finite(const float* values, size_t count, const char* what) {
  if (!all_finite(values, count))
    throw Error(
        error_code::kNumerical,
        std::string(what) + " hold values that are not finite: a weight is NaN or infinite");
}
inline void expect_finite(const std::vector<float>& values, const char* what) {
  expect_finite(values.data(), values.size(), what);
}

}  // namespace unifluid
