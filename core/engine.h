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
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "core/model.h"
#include "core/request.h"
#include "core/request_queue.h"
#include "core/sequence.h"

namespace unifluid {

struct EngineStats {
  int64_t running = 0;         // requests admitted and not finished
  int64_t waiting = 0;         // requests not yet admitted
  size_t sequence_bytes = 0;   // caches, latents and (on the CPU) logits of the running ones
  size_t workspace_bytes = 0;  // activations, kept from step to step
  size_t allocated_bytes = 0;  // all of these and the repacked weights
  size_t available_bytes = 0;  // what may still be allocated
  int64_t steps = 0;
  int64_t rows = 0;  // rows run through the decoder
  LaunchCounts launches;
  // Requests since the model was loaded, by how they ended.
  int64_t completed = 0, failed = 0, cancelled = 0, refused = 0;
};

struct EngineLimits {
  int64_t max_sequences = 1;  // requests that run at once
  // Requests that may wait beside `max_sequences` that run; -1: any number.
  int64_t max_queue = -1;
  // Estimated bytes of float32 activations. A request that would leave less waits; one that can
  // never fit is refused.
  size_t row_activation_bytes = 0;     // per decoder row
  size_t vision_activation_bytes = 0;  // per image in the vision tower
  size_t vae_activation_bytes = 0;     // per image of the model's size in the autoencoder
  size_t fixed_activation_bytes = 0;   // of the largest step outside the decoder
};

class Engine {
 public:
  // Called on the engine's thread with the events of one step, in the order they happened. If it
  // throws it must not have consumed any; all are delivered again.
  using Sink = std::function<void(std::vector<Event>&&)>;

  Engine(std::unique_ptr<Model> model, const EngineLimits& limits, Sink sink);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. A level of `priority` (-kMaxPriority to kMaxPriority) is worth kPlacesPerPriority
  // places in the queue. Throws as `validate` does, QUEUE_FULL where `max_queue` requests wait, and
  // DISPOSED after stop().
  uint64_t submit(Request&& request, int64_t priority = 0);
  // Any thread. The sequence is freed before the next step, a place among those that wait at once;
  // no event follows.
  void cancel(uint64_t id);
  // Any thread. Ends the engine after the step it is in: what runs and waits gets a DISPOSED error.
  // Frees the model. Waits; calling again does nothing.
  void stop();
  EngineStats stats() const;
  // The backend's line about itself.
  const std::string& description() const { return description_; }

 private:
  struct Step;
  // A drawing whose latents are done and whose pixels are not.
  struct Undecoded {
    uint64_t id;
    DoneEvent done;
  };

  std::thread begin();
  void run();
  bool turn() noexcept;
  bool say_disposed() noexcept;
  void take_inbox();
  void admit();
  void admit_from(RequestQueue& queue);
  size_t running_bytes() const;
  size_t step_bytes(int64_t rows, int64_t logits_rows) const;
  size_t step_bytes(const StepSize& size) const;
  StepSize largest_step(const Waiting& next, bool alone) const;
  size_t image_activation_bytes(const Request& request) const;
  bool make_room(const Waiting& next);
  void begin_workspace(size_t bytes);
  // Returns work(). If it runs out of memory, retries once with the workspace replaced by one block
  // of `bytes`. No scope of the workspace may be open.
  template <class Work>
  auto with_room(size_t bytes, const Work& work) {
    try {
      return work();
    } catch (const std::exception& error) {
      if (!lacks_memory(error) || workspace_->bytes() == 0) throw;
    }
    begin_workspace(bytes);
    return work();
  }
  void start(Waiting&& waiting, int64_t& prefill);
  void step();
  bool advance(Step& step);
  void decode_next();
  void gather(Step& step);
  void compute(Step& step);
  bool drop_largest_prompt(const Step& step, const std::exception& error);
  void sample_texts(Step& step);
  void read_tokens(const Step& step);
  void hand_out_tokens(size_t keep);
  void finish_scores(Step& step);
  void finish_drawings(Step& step);
  void complete_drawing(Sequence& sequence);
  void add_token(Sequence& sequence, int32_t token);
  DoneEvent encode(const EncodeRequest& request);
  DoneEvent features(const FeaturesRequest& request);
  DoneEvent decode(const DecodeRequest& request);
  void decode_pixels(const float* tokens, int64_t columns, int64_t rows, DoneEvent& done);

  void emit(uint64_t id, decltype(Event::what)&& what) { events_.push_back({id, std::move(what)}); }
  void fail(uint64_t id, const std::exception& error);
  void fail_all(const std::exception& error);
  void remove(uint64_t id) { finished_.insert(id); }
  void sweep();
  void flush();
  void unqueue(uint64_t id);
  void publish_stats();

  std::unique_ptr<Model> model_;
  const EngineLimits limits_;
  const Sink sink_;
  std::string description_;

  // Shared with other threads.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Waiting> inbox_;
  std::unordered_set<uint64_t> queued_;  // what waits: in the inbox, or on the engine's thread
  std::vector<uint64_t> cancelled_;
  int64_t cancelled_early_ = 0;  // that the engine's thread never saw
  bool stopping_ = false;
  EngineStats stats_;
  std::atomic<uint64_t> next_id_{1};

  // Token ids of one step on their way to the host: with a backend that runs while the engine goes
  // on, the next step is issued before they are waited for.
  struct SampledTokens {
    uint64_t ticket;  // Backend::begin_read's
    std::vector<uint64_t> sequences;
    std::unique_ptr<int32_t[]> ids;  // one of each sequence
  };

  // The engine's thread only.
  std::unique_ptr<Workspace> workspace_;
  Block token_ids_;  // int32 [max_sequences]: those sampled last, in the backend's memory
  std::deque<SampledTokens> sampled_;
  RequestQueue waiting_;                            // for a sequence
  RequestQueue waiting_images_;                     // those that take none
  std::vector<std::unique_ptr<Sequence>> running_;  // by rank
  std::deque<Undecoded> undecoded_;
  // A request that others on this device have left no memory for, and how many sequences ran then:
  // it is tried again when one of them has ended and given some back.
  struct {
    uint64_t id = 0;
    size_t running = 0;
  } starved_;
  std::unordered_set<uint64_t> finished_;
  std::vector<Event> events_;
  std::exception_ptr failure_;  // of the batch, until it has been said of all of it
  int64_t steps_ = 0, rows_ = 0;
  int64_t completed_ = 0, failed_ = 0, cancelled_count_ = 0;

  std::mutex stop_mutex_;  // one stop() at a time
  std::thread thread_;     // last: it starts when all else is there
};

}  // namespace unifluid
