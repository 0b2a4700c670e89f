// Shared memory: pieces of a block's dynamic arena.
//
// On a device a piece is a bare pointer. In the simulation every access goes through a check of its
// bounds and of the order of reads and writes: two threads that touch one element, one of them
// writing, need a barrier between them.
#pragma once

#include "cuda/device/types.h"

namespace unifluid::cuda {

template <class T>
class Shared {
 public:
  Shared() = default;

#ifdef UNIFLUID_SIMT
  Shared(T* data, uint32_t count) : data_(data), count_(count) {}

  T load(uint32_t i) const {
    simt::shared_read(data_, i, 1, count_, sizeof(T));
    return data_[i];
  }
  void store(uint32_t i, T v) const {
    simt::shared_write(data_, i, 1, count_, sizeof(T));
    data_[i] = v;
  }
  // 16 bytes; `i` must be a multiple of their elements.
  Vector<T> load_vector(uint32_t i) const {
    simt::shared_read(data_, i, Vector<T>::kSize, count_, sizeof(T));
    return cuda::load_vector(data_ + i);
  }
  void store_vector(uint32_t i, const Vector<T>& v) const {
    simt::shared_write(data_, i, Vector<T>::kSize, count_, sizeof(T));
    cuda::store_vector(data_ + i, v);
  }
  // Two neighbours; `i` must be even.
  float2 load_pair(uint32_t i) const {
    simt::shared_read(data_, i, 2, count_, sizeof(T));
    return {data_[i], data_[i + 1]};
  }
  void store_pair(uint32_t i, T first, T second) const {
    simt::shared_write(data_, i, 2, count_, sizeof(T));
    data_[i] = first;
    data_[i + 1] = second;
  }
  // For the wrappers of this folder only.
  T* address(uint32_t i) const { return data_ + i; }
  uint32_t count() const { return count_; }
  Shared part(uint32_t first, uint32_t count) const {
    simt::shared_bounds(data_, first, count, count_, sizeof(T));
    return Shared(data_ + first, count);
  }

 private:
  T* data_ = nullptr;
  uint32_t count_ = 0;
#else
  UNIFLUID_DEVICE Shared(T* data, uint32_t) : data_(data) {}

  UNIFLUID_DEVICE T load(uint32_t i) const { return data_[i]; }
  UNIFLUID_DEVICE void store(uint32_t i, T v) const { data_[i] = v; }
  UNIFLUID_DEVICE Vector<T> load_vector(uint32_t i) const { return cuda::load_vector(data_ + i); }
  UNIFLUID_DEVICE void store_vector(uint32_t i, const Vector<T>& v) const {
    cuda::store_vector(data_ + i, v);
  }
  UNIFLUID_DEVICE float2 load_pair(uint32_t i) const {
    return *reinterpret_cast<const float2*>(data_ + i);
  }
  UNIFLUID_DEVICE void store_pair(uint32_t i, T first, T second) const {
    *reinterpret_cast<float2*>(data_ + i) = make_float2(first, second);
  }
  UNIFLUID_DEVICE T* address(uint32_t i) const { return data_ + i; }
  UNIFLUID_DEVICE Shared part(uint32_t first, uint32_t) const { return Shared(data_ + first, 0); }

 private:
  T* data_ = nullptr;
#endif
};

// Hands out pieces of the dynamic shared memory of the launch, in order, each aligned to 16 bytes.
// The host counts the same bytes with `SharedBytes`.
class SharedArena {
 public:
  template <class T>
  UNIFLUID_DEVICE Shared<T> take(uint32_t count) {
    const uint32_t bytes = (count * static_cast<uint32_t>(sizeof(T)) + 15) / 16 * 16;
    const uint32_t at = used_;
    used_ += bytes;
    return Shared<T>(reinterpret_cast<T*>(piece(at, bytes)), count);
  }

 private:
  UNIFLUID_DEVICE static unsigned char* piece(uint32_t at, uint32_t bytes) {
#ifdef UNIFLUID_SIMT
    return simt::shared_take(at, bytes);
#else
    // 1024: the pattern of the swizzle of 128 bytes (cuda/device/wgmma.h) repeats so often
    extern __shared__ __align__(1024) unsigned char arena[];
    return arena + at;
#endif
  }
  uint32_t used_ = 0;
};

// Host side of SharedArena: adds up what the same takes need.
struct SharedBytes {
  size_t used = 0;
  template <class T>
  SharedBytes& take(size_t count) {
    used += (count * sizeof(T) + 15) / 16 * 16;
    return *this;
  }
};

}  // namespace unifluid::cuda
