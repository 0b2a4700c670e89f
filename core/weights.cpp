#include "core/weights.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace unifluid {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Number of elements; throws where it overflows or a dimension is negative.
uint64_t count(const TensorRecord& record) {
  uint64_t n = 1;
  for (int64_t d : record.shape) {
    if (d < 0 || (d > 0 && n > (uint64_t{1} << 48) / static_cast<uint64_t>(d)))
      throw Error(error_code::kInvalidCheckpoint,
                  "tensor " + record.name + " has an impossible shape " + shape_text(record.shape));
    n *= static_cast<uint64_t>(d);
  }
  return n;
}

}  // namespace

Weights::Weights(const std::vector<std::string>& files, std::vector<TensorRecord> records) {
  files_.reserve(files.size());
  for (const std::string& file : files) files_.emplace_back(file);
  for (TensorRecord& record : records) {
    if (record.file < 0 || record.file >= static_cast<int64_t>(files_.size()))
      throw Error(error_code::kInvalidCheckpoint, "tensor " + record.name + " names file " +
                                                      std::to_string(record.file) + " of " +
                                                      std::to_string(files_.size()));
    const MappedFile& file = files_[static_cast<size_t>(record.file)];
    const uint64_t bytes = count(record) * size_of(record.type);
    if (record.offset > file.size() || bytes > file.size() - record.offset)
      throw Error(error_code::kInvalidCheckpoint,
                  "tensor " + record.name + " reaches beyond the end of " + file.path());
    if (!records_.try_emplace(record.name, std::move(record)).second)
      throw Error(error_code::kInvalidCheckpoint, "tensor " + record.name + " occurs twice");
  }
}

StoredTensor Weights::stored(const std::string& name, int64_t rows, int64_t cols) const {
  const auto found = records_.find(name);
  if (found == records_.end())
    throw Error(error_code::kInvalidCheckpoint, "tensor " + name + " is missing");
  const TensorRecord& r = found->second;
  const uint64_t wanted = static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols);
  const bool leading_fits = rows == 1 || (!r.shape.empty() && r.shape[0] == rows);
  if (count(r) != wanted || !leading_fits)
    throw Error(error_code::kInvalidCheckpoint, "tensor " + name + " has shape " +
                                                    shape_text(r.shape) + " where " +
                                                    shape_text({rows, cols}) + " is needed");
  return {files_[static_cast<size_t>(r.file)].data() + r.offset, r.type, rows, cols};
}

Tensor Weights::matrix(Backend& backend, const std::string& name, int64_t rows,
                       int64_t cols) const {
  return backend.matrix(stored(name, rows, cols));
}

const float* Weights::vector(Backend& backend, const std::string& name, int64_t size) const {
  return backend.vector(stored(name, 1, size));
}

Tensor Weights::convolution(Backend& backend, const std::string& name, int64_t out, int64_t in,
                            int64_t kernel) const {
  return backend.convolution_weight(stored(name, out, in * kernel * kernel), kernel);
}

namespace {

// The index of the first element whose exponent bits are all set, or n.
template <class Bits>
uint64_t first_with_exponent(const unsigned char* data, uint64_t n, Bits exponent) {
  for (uint64_t i = 0; i < n; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    if ((bits & exponent) == exponent) return i;
  }
  return n;
}

}  // namespace

bool Weights::find_non_finite(NonFinite* found) const {
  std::vector<const TensorRecord*> order;
  for (const auto& [name, record] : records_) order.push_back(&record);
  std::sort(order.begin(), order.end(), [](const TensorRecord* a, const TensorRecord* b) {
    return a->file != b->file ? a->file < b->file : a->offset < b->offset;
  });
  for (const TensorRecord* r : order) {
    const unsigned char* data = files_[static_cast<size_t>(r->file)].data() + r->offset;
    const uint64_t n = count(*r);
    const uint64_t at = r->type == DType::f32 ? first_with_exponent<uint32_t>(data, n, 0x7f800000u)
                        : r->type == DType::bf16 ? first_with_exponent<uint16_t>(data, n, 0x7f80)
                                                 : first_with_exponent<uint16_t>(data, n, 0x7c00);
    if (at == n) continue;
    uint32_t bits = 0;
    std::memcpy(&bits, data + at * size_of(r->type), size_of(r->type));
    // Bits below the exponent make a NaN; the topmost one is the sign.
    const int width = r->type == DType::f32 ? 32 : 16;
    const int mantissa = r->type == DType::f32 ? 23 : r->type == DType::bf16 ? 7 : 10;
    const bool negative = (bits >> (width - 1)) & 1;
    const bool nan = (bits & ((uint32_t{1} << mantissa) - 1)) != 0;
    const float infinity = std::numeric_limits<float>::infinity();
    found->name = r->name;
    found->index = static_cast<int64_t>(at);
    found->value = nan ? std::numeric_limits<float>::quiet_NaN() : negative ? -infinity : infinity;
    return true;
  }
  return false;
}

}  // namespace unifluid
