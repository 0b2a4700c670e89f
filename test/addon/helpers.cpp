#include "test/addon/helpers.h"

#include <cmath>
#include <limits>

#include "core/error.h"

namespace unifluid::test {
namespace {

// The bytes of any typed array; its offset may be odd.
const uint8_t* bytes_of(Napi::Value value) {
  const auto array = value.As<Napi::TypedArray>();
  return static_cast<const uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset();
}

int64_t integer_of(Napi::Object object, const char* name) {
  return object.Get(name).ToNumber().Int64Value();
}

}  // namespace

Call::~Call() {
  try {
    backend.synchronize();
  } catch (const Error&) {
    // The operation has told already what happened.
  }
  for (const Piece& piece : pieces_) backend.release(piece.memory, piece.bytes);
}

void* Call::allocate(size_t bytes) {
  void* memory = backend.allocate(bytes);
  pieces_.push_back({memory, bytes});
  return memory;
}

bool Call::has(const char* name) const { return !arguments.Get(name).IsUndefined(); }

double Call::number(const char* name) const {
  const Napi::Value value = arguments.Get(name);
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), std::string("no number: ") + name);
  return value.ToNumber().DoubleValue();
}

double Call::number(const char* name, double otherwise) const {
  return has(name) ? number(name) : otherwise;
}

Activation Call::activation(Napi::Value value) const {
  if (value.IsUndefined()) return Activation::none;
  const std::string word = value.ToString().Utf8Value();
  if (word == "none") return Activation::none;
  if (word == "silu") return Activation::silu;
  if (word == "gelu_tanh") return Activation::gelu_tanh;
  if (word == "gelu_erf") return Activation::gelu_erf;
  throw Napi::TypeError::New(arguments.Env(), "unknown activation " + word);
}

Tensor Call::input(Napi::Value value) {
  if (value.IsUndefined()) return {};
  const auto object = value.As<Napi::Object>();
  const int64_t rows = integer_of(object, "rows"), cols = integer_of(object, "cols");
  const int64_t stride = object.Has("stride") ? integer_of(object, "stride") : cols;
  const auto data = object.Get("data").As<Napi::Float32Array>();
  if (static_cast<int64_t>(data.ElementLength()) < rows * stride)
    throw Napi::RangeError::New(value.Env(), "fewer elements than rows * stride");
  Tensor all(nullptr, backend.activation_type(), rows, stride);
  all.data = allocate(all.bytes());
  backend.write(data.Data(), all);
  return all.columns(0, cols);
}

Tensor Call::matrix(Napi::Value value) {
  if (value.IsUndefined()) return {};
  return backend.matrix(stored_tensor(value.As<Napi::Object>()));
}

const float* Call::vector(Napi::Value value) {
  if (value.IsUndefined()) return nullptr;
  const auto array = value.As<Napi::Float32Array>();
  StoredTensor stored{array.Data(), DType::f32, 1, static_cast<int64_t>(array.ElementLength())};
  return backend.vector(stored);
}

Tensor Call::output(int64_t rows, int64_t cols) {
  const int64_t stride = has("outStride") ? integer("outStride") : cols;
  Tensor all(nullptr, backend.activation_type(), rows, stride);
  all.data = allocate(all.bytes());
  const std::vector<float> poison(static_cast<size_t>(rows * stride),
                                  std::numeric_limits<float>::quiet_NaN());
  backend.write(poison.data(), all);
  return all.columns(0, cols);
}

float* Call::floats(int64_t count) {
  return static_cast<float*>(allocate(static_cast<size_t>(count) * sizeof(float)));
}

Napi::Value Call::result(const Tensor& output) {
  Tensor all = output;
  all.cols = output.stride;
  auto array = Napi::Float32Array::New(arguments.Env(), static_cast<size_t>(all.size()));
  backend.read(all, array.Data());
  return array;
}

StoredTensor stored_tensor(Napi::Object value) {
  const std::string type = value.Get("type").ToString().Utf8Value();
  StoredTensor stored{};
  stored.data = bytes_of(value.Get("data"));
  stored.type = type == "bf16" ? DType::bf16 : type == "f16" ? DType::f16 : DType::f32;
  stored.rows = integer_of(value, "rows");
  stored.cols = integer_of(value, "cols");
  const size_t bytes = static_cast<size_t>(stored.rows * stored.cols) * size_of(stored.type);
  if (value.Get("data").As<Napi::TypedArray>().ByteLength() < bytes)
    throw Napi::RangeError::New(value.Env(), "fewer bytes than rows * cols elements");
  return stored;
}

uint64_t seed_of(Napi::Value value) {
  bool lossless = false;
  return value.As<Napi::BigInt>().Uint64Value(&lossless);
}

std::vector<double> numbers(Napi::Value value) {
  const auto list = value.As<Napi::Array>();
  std::vector<double> out;
  for (uint32_t i = 0; i < list.Length(); ++i) out.push_back(list.Get(i).ToNumber().DoubleValue());
  return out;
}

}  // namespace unifluid::test
