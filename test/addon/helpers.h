// What the operations of the test addon share: reading JavaScript arguments into tensors of a
// backend and returning results. The TypeScript side, with the meaning of every field, is
// test/support/ops.ts.
//
// Arguments are those of our own tests, so a wrong one only has to fail, not to explain itself.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace unifluid::test {

// A KV cache that lives from one call to the next.
struct Cache {
  int64_t kv_heads, capacity, head_dim;
  KvCache kv;
};

// The arguments of one call, and the backend memory that they and the results take. Everything is
// released when the call ends, so an operation that runs later is waited for first.
class Call {
 public:
  Call(Backend& backend, Napi::Object arguments) : backend(backend), arguments(arguments) {}
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // ---- scalars ----
  bool has(const char* name) const;
  double number(const char* name) const;
  double number(const char* name, double otherwise) const;
  int64_t integer(const char* name) const { return static_cast<int64_t>(number(name)); }
  // none where absent
  Activation activation(const char* name) const { return activation(arguments.Get(name)); }
  Activation activation(Napi::Value value) const;

  // ---- tensors ----
  // An activation { data: Float32Array, rows, cols, stride? }; empty where absent.
  Tensor input(const char* name) { return input(arguments.Get(name)); }
  Tensor input(Napi::Value value);
  // A weight { data, type, rows, cols } in the type it is stored in.
  Tensor matrix(const char* name) { return matrix(arguments.Get(name)); }
  Tensor matrix(Napi::Value value);
  // A Float32Array as float32 in the backend's memory; null where absent.
  const float* vector(const char* name) { return vector(arguments.Get(name)); }
  const float* vector(Napi::Value value);
  // Activations filled with NaN, so that what an operation leaves out shows. `stride` from the
  // argument "outStride" where it is given.
  Tensor output(int64_t rows, int64_t cols);
  // float32 in the backend's memory.
  float* floats(int64_t count);

  // ---- results ----
  // All of an output, the gaps between its rows included.
  Napi::Value result(const Tensor& output);

  Backend& backend;
  Napi::Object arguments;

 private:
  void* allocate(size_t bytes);
  struct Piece {
    void* memory;
    size_t bytes;
  };
  std::vector<Piece> pieces_;
};

// q, k, v and what an attention is, without its spans and its output.
AttentionArgs attention_settings(Call&);
ConvolutionGeometry geometry_of(const Call&);
StoredTensor stored_tensor(Napi::Object value);
uint64_t seed_of(Napi::Value value);
std::vector<double> numbers(Napi::Value value);

// The methods of the class TestBackend, one file a family. Each takes its call's arguments and
// returns what JavaScript gets.
Napi::Value workspace(Call&);
Napi::Value linear(Call&);
Napi::Value grouped_linear(Call&);
Napi::Value gated_linear(Call&);
Napi::Value rms_norm(Call&);
Napi::Value rms_norms(Call&);
Napi::Value layer_norm(Call&);
Napi::Value group_norm(Call&);
Napi::Value convolution(Call&);
Napi::Value read_pixels(Call&);
Napi::Value embed_tokens(Call&);
Napi::Value image_embed(Call&);
Napi::Value add_rows(Call&);
Napi::Value soft_cap(Call&);
Napi::Value sample_text(Call&);
Napi::Value attention(Call&, std::vector<Cache>&);
Napi::Value decoder_step(Call&);
Napi::Value diffusion_head(Call&);
Napi::Value diffusion_sample(Call&);
Napi::Value training(Call&);
Napi::Value time_operation(Call&);

// Functions without a backend: draws and schedules.
void export_bandwidth(Napi::Env env, Napi::Object exports);
void export_randomness(Napi::Env env, Napi::Object exports);
void export_engine(Napi::Env env, Napi::Object exports);
void export_shortage(Napi::Env env, Napi::Object exports);
void export_simulation(Napi::Env env, Napi::Object exports);

}  // namespace unifluid::test
