// The tensors of a checkpoint by name. Files are mapped; a backend makes of each what it computes
// with.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/backend.h"
#include "core/mapped_file.h"

namespace unifluid {

// Where a tensor lies, as lib/checkpoint read it from the safetensors header.
struct TensorRecord {
  std::string name;
  DType type;
  std::vector<int64_t> shape;
  int64_t file;     // index
  uint64_t offset;  // bytes from the start of the file
};

class Weights {
 public:
  // Maps the files. Throws INVALID_CHECKPOINT where a tensor does not lie within its file.
  Weights(const std::vector<std::string>& files, std::vector<TensorRecord> records);

  // The shapes are checked again here, since native code trusts nobody: INVALID_CHECKPOINT.
  Tensor matrix(Backend&, const std::string& name, int64_t rows, int64_t cols) const;
  const float* vector(Backend&, const std::string& name, int64_t size) const;
  Tensor convolution(Backend&, const std::string& name, int64_t out, int64_t in,
                     int64_t kernel) const;
  // As it lies in its file, in host memory.
  StoredTensor stored(const std::string& name, int64_t rows, int64_t cols) const;

  struct NonFinite {
    std::string name;
    int64_t index;
    float value;
  };
  // The first NaN or infinity, in the order of the files; false: none.
  bool find_non_finite(NonFinite* found) const;

 private:
  std::vector<MappedFile> files_;
  std::unordered_map<std::string, TensorRecord> records_;
};

}  // namespace unifluid
