// Requests that wait to be admitted, in the order in which they are to be.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "core/request.h"

namespace unifluid {

// A level of priority is worth this many places in the queue. So a request is overtaken by a
// bounded number of later ones, however many of a higher priority keep coming: nothing starves.
inline constexpr int64_t kPlacesPerPriority = 64;
inline constexpr int64_t kMaxPriority = 1000;

// Smaller goes first. Ids count up in the order of arrival.
inline int64_t rank_of(uint64_t id, int64_t priority) {
  return static_cast<int64_t>(id) - priority * kPlacesPerPriority;
}

struct Waiting {
  uint64_t id;
  int64_t rank;
  Request request;
};

class RequestQueue {
 public:
  bool empty() const { return requests_.empty(); }
  void push(Waiting&& w) {
    const Key key{w.rank, w.id};
    requests_.emplace(key, std::move(w));
  }
  Waiting& front() { return requests_.begin()->second; }
  void pop_front() { requests_.erase(requests_.begin()); }
  // How many were removed.
  size_t erase_if(const std::function<bool(uint64_t id)>& gone) {
    return std::erase_if(requests_, [&](const auto& entry) { return gone(entry.second.id); });
  }
  void clear() { requests_.clear(); }

 private:
  using Key = std::pair<int64_t, uint64_t>;  // rank, id
  std::map<Key, Waiting> requests_;
};

}  // namespace unifluid
