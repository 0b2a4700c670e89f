// The engine: one thread per loaded model that runs many sequences together (continuous batching).
//
// Each step gathers the next rows of all running sequences, text and image alike, into one ragged
// batch, runs the decoder once, hands text rows to the sampler and image rows to the diffusion
// head, and tells what came of it. Sequences join and leave between steps. A sequence's results do
// not depend on its company (core/backend.h, "Invariance").
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "core/memory.h"
#include "core/model.h"
#include "core/request.h"
#include "core/sequence.h"

namespace unifluid {

struct EngineStats {
  int64_t running = 0;        // sequences admitted and not finished
  int64_t waiting = 0;        // requests not yet admitted
  size_t sequence_bytes = 0;  // caches and latents of the running ones
  size_t allocated_bytes = 0;
  int64_t steps = 0;
  int64_t rows = 0;  // rows run through the decoder
};

class Engine {
 public:
  // Called on the engine's thread with the events of one step, in the order they happened.
  using Sink = std::function<void(std::vector<Event>&&)>;

  Engine(std::unique_ptr<Model> model, int64_t max_sequences, Sink sink);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. Throws as `validate` does, and DISPOSED after stop().
  uint64_t submit(Request&& request);
  // Any thread. The sequence is freed before the next step; no event follows.
  void cancel(uint64_t id);
  // Any thread. Ends the engine after the step it is in: what runs and waits gets a DISPOSED error.
  // Frees the model. Waits; calling again does nothing.
  void stop();
  EngineStats stats() const;
  // The backend's line about itself.
  const std::string& description() const { return description_; }

 private:
  struct Waiting {
    uint64_t id;
    Request request;
  };
  struct Step;

  void run();
  void take_inbox();
  void admit();
  void step();
  void gather(Step& step);
  void finish_text(Step& step);
  void finish_scores(Step& step);
  void finish_drawings(Step& step);
  void complete_drawing(Sequence& sequence);
  void add_token(Sequence& sequence, int32_t token);
  DoneEvent encode(const EncodeRequest& request);
  DoneEvent decode(const DecodeRequest& request);
  void decode_pixels(const float* tokens, int64_t columns, int64_t rows, DoneEvent& done);

  void emit(uint64_t id, decltype(Event::what)&& what) { events_.push_back({id, std::move(what)}); }
  void fail(uint64_t id, const std::exception& error);
  void fail_all(const std::exception& error);
  void remove(uint64_t id) { finished_.insert(id); }
  void sweep();
  void flush();
  void publish_stats();

  std::unique_ptr<Model> model_;
  const int64_t max_sequences_;
  const Sink sink_;
  std::string description_;

  // Shared with other threads.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Waiting> inbox_;
  std::vector<uint64_t> cancelled_;
  bool stopping_ = false;
  EngineStats stats_;
  std::atomic<uint64_t> next_id_{1};

  // The engine's thread only.
  std::unique_ptr<Workspace> workspace_;
  std::deque<Waiting> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::unordered_set<uint64_t> finished_;
  std::vector<Event> events_;
  int64_t steps_ = 0, rows_ = 0;

  std::mutex stop_mutex_;  // one stop() at a time
  std::thread thread_;     // last: it starts when all else is there
};

}  // namespace unifluid
