// readBandwidth(bytes, threads, repeats): the best rate, in bytes per second, at which so many
// threads read memory that fits no cache. The benchmarks hold the speed of decoding against it.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

uint64_t read(const uint64_t* data, size_t count) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8)
    for (size_t k = 0; k < 8; ++k) sums[k] += data[i + k];
  uint64_t sum = 0;
  for (uint64_t s : sums) sum += s;
  return sum;
}

Napi::Value read_bandwidth(const Napi::CallbackInfo& info) {
  const size_t bytes = static_cast<size_t>(info[0].ToNumber().Int64Value()) / 64 * 64;
  const size_t threads = static_cast<size_t>(info[1].ToNumber().Int64Value());
  const int repeats = info[2].ToNumber().Int32Value();
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, bytes),
                                                           std::free);
  if (!memory || threads == 0) return info.Env().Null();
  std::memset(memory.get(), 1, bytes);  // pages must be there, or all would be one zero page
  const uint64_t* data = static_cast<const uint64_t*>(memory.get());
  const size_t share = bytes / 8 / threads / 8 * 8;
  double best = 0;
  std::vector<uint64_t> sums(threads);
  for (int r = 0; r < repeats; ++r) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> workers;
    for (size_t t = 0; t < threads; ++t)
      workers.emplace_back([&, t] { sums[t] = read(data + t * share, share); });
    for (std::thread& worker : workers) worker.join();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    const double rate = static_cast<double>(share * threads * 8) / took.count();
    if (rate > best) best = rate;
  }
  // The sums are part of the result only so that the reads are not left out.
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("bytesPerSecond", best);
  out.Set("sum", static_cast<double>(sums[0] & 0xffff));
  return out;
}

}  // namespace

void export_bandwidth(Napi::Env env, Napi::Object exports) {
  exports.Set("readBandwidth", Napi::Function::New(env, read_bandwidth));
}

}  // namespace unifluid::test
