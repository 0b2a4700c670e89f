#include "core/engine.h"

#include <chrono>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace unifluid {

namespace {

// Workspace kept from step to step; more is given back (the VAE at a large size).
constexpr size_t kWorkspaceKept = size_t{256} << 20;
// What memory lacked for, an event above all, is tried again after so long; before the engine ends,
// for a second in all.
constexpr std::chrono::milliseconds kRetryAfter{10};
constexpr int kLastTries = 100;

}  // namespace

Engine::Engine(std::unique_ptr<Model> model, const EngineLimits& limits, Sink sink)
    : model_(std::move(model)),
      limits_(limits),
      sink_(std::move(sink)),
      description_(model_->backend->description()),
      workspace_(std::make_unique<Workspace>(*model_->backend)),
      token_ids_(*model_->backend, static_cast<size_t>(limits.max_sequences) * sizeof(int32_t)),
      thread_(begin()) {}

Engine::~Engine() { stop(); }

// All else of the engine is there.
std::thread Engine::begin() {
  publish_stats();
  try {
    return std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    throw Error(
        error_code::kDevice,
        std::string("expected a thread for the engine but the system gave none: ") + error.what());
  }
}

// ---- from other threads ----

uint64_t Engine::submit(Request&& request, int64_t priority) {
  std::lock_guard lock(mutex_);
  if (stopping_) throw Error(error_code::kDisposed, "the model was disposed");
  if (priority < -kMaxPriority || priority > kMaxPriority)
    throw Error(error_code::kInvalidArgument,
                "expected a priority from " + std::to_string(-kMaxPriority) + " to " +
                    std::to_string(kMaxPriority) + " but received " + std::to_string(priority));
  validate(request, *model_);
  if (limits_.max_queue >= 0 &&
      stats_.running + stats_.waiting >= limits_.max_sequences + limits_.max_queue) {
    ++stats_.refused;
    throw Error(error_code::kQueueFull, "the queue is full: " + std::to_string(stats_.running) +
                                            " requests running (limit " +
                                            std::to_string(limits_.max_sequences) + "), " +
                                            std::to_string(stats_.waiting) + " waiting (limit " +
                                            std::to_string(limits_.max_queue) + ")");
  }
  const uint64_t id = next_id_++;
  queued_.insert(id);
  try {
    inbox_.push_back({id, rank_of(id, priority), std::move(request)});
  } catch (...) {
    queued_.erase(id);
    throw;
  }
  ++stats_.waiting;
  wake_.notify_one();
  return id;
}

void Engine::cancel(uint64_t id) {
  std::lock_guard lock(mutex_);
  // The engine's thread may be in a long step: others need not wait for that to have the place.
  // What it has admitted in this turn still counts as waiting, until it is told as running.
  if (queued_.erase(id)) --stats_.waiting;
  if (std::erase_if(inbox_, [&](const Waiting& waiting) { return waiting.id == id; })) {
    ++cancelled_early_;
    ++stats_.cancelled;
    return;
  }
  cancelled_.push_back(id);
  wake_.notify_one();
}

void Engine::stop() {
  std::lock_guard stop_lock(stop_mutex_);
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

EngineStats Engine::stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  if (model_) stats.available_bytes = model_->backend->available();
  return stats;
}

// ---- the engine's thread ----

void Engine::run() {
  bool done = true;  // all of the turn before: nothing is to be tried again
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (done)
        wake_.wait(lock, [&] {
          return stopping_ || !inbox_.empty() || !cancelled_.empty() || !running_.empty() ||
                 !undecoded_.empty() || !waiting_.empty() || !waiting_images_.empty();
        });
      else
        wake_.wait_for(lock, kRetryAfter, [&] { return stopping_; });
      if (stopping_) break;
    }
    done = turn();
  }
  for (int tries = 0; !say_disposed() && tries < kLastTries; ++tries)
    std::this_thread::sleep_for(kRetryAfter);
  waiting_.clear();
  waiting_images_.clear();
  running_.clear();
  undecoded_.clear();
  workspace_.reset();
  token_ids_.reset();
  std::lock_guard lock(mutex_);
  model_.reset();
  stats_ = {};
}

// A step and what it takes. False where memory did not suffice even to say what failed: that is
// kept, and the next turn begins with it.
bool Engine::turn() noexcept {
  try {
    try {
      if (failure_) std::rethrow_exception(failure_);
      take_inbox();
      admit();
      if (!running_.empty()) step();
      sweep();  // a drawing's cache is given back before its picture takes memory
      decode_next();
      workspace_->trim(kWorkspaceKept);
    } catch (const std::exception& error) {
      // What failed belongs to the batch, not to one sequence: memory for the step, a device.
      failure_ = std::current_exception();
      fail_all(error);
      failure_ = nullptr;
    }
    sweep();
    publish_stats();
    flush();
    return true;
  } catch (const std::exception&) {
    sweep();  // those whose end is among the events already
    return false;
  }
}

// The end of all that runs and waits. False where memory did not suffice to say it of all of them;
// the next call goes on.
bool Engine::say_disposed() noexcept {
  try {
    take_inbox();
    const Error disposed(error_code::kDisposed, "the model was disposed");
    for (RequestQueue* queue : {&waiting_, &waiting_images_})
      for (; !queue->empty(); queue->pop_front()) {
        fail(queue->front().id, disposed);
        unqueue(queue->front().id);
      }
    fail_all(disposed);
    sweep();
    flush();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

void Engine::unqueue(uint64_t id) {
  std::lock_guard lock(mutex_);
  queued_.erase(id);
}

// Nothing is lost where memory lacks in the middle of it.
void Engine::take_inbox() {
  std::unordered_set<uint64_t> gone;
  {
    std::lock_guard lock(mutex_);
    for (; !inbox_.empty(); inbox_.pop_front()) {
      Waiting& next = inbox_.front();
      (takes_sequence(next.request) ? waiting_ : waiting_images_).push(std::move(next));
    }
    gone.insert(cancelled_.begin(), cancelled_.end());
    cancelled_.clear();
  }
  if (gone.empty()) return;
  const auto is_gone = [&](uint64_t id) { return gone.count(id) != 0; };
  size_t count = waiting_.erase_if(is_gone) + waiting_images_.erase_if(is_gone);
  count += std::erase_if(undecoded_, [&](const Undecoded& u) { return is_gone(u.id); });
  count += std::erase_if(running_, [&](const auto& s) { return is_gone(s->id); });
  cancelled_count_ += static_cast<int64_t>(count);
}

// ---- endings ----

// Either its end is among the events and it is to be removed, or, where this throws for want of
// memory, nothing has changed.
void Engine::fail(uint64_t id, const std::exception& error) {
  const auto [code, message] = describe(error);
  emit(id, ErrorEvent{code, message});
  try {
    remove(id);
  } catch (...) {
    events_.pop_back();
    throw;
  }
  ++failed_;
}

void Engine::fail_all(const std::exception& error) {
  sampled_.clear();
  for (const auto& sequence : running_)
    if (finished_.count(sequence->id) == 0) fail(sequence->id, error);
  for (; !undecoded_.empty(); undecoded_.pop_front()) fail(undecoded_.front().id, error);
}

void Engine::sweep() {
  if (finished_.empty()) return;
  std::erase_if(running_, [&](const auto& s) { return finished_.count(s->id) != 0; });
  finished_.clear();
}

void Engine::publish_stats() {
  const size_t bytes = running_bytes();
  std::lock_guard lock(mutex_);
  stats_.running = static_cast<int64_t>(running_.size() + undecoded_.size());
  stats_.waiting = static_cast<int64_t>(queued_.size());
  stats_.sequence_bytes = bytes;
  stats_.workspace_bytes = workspace_->bytes();
  stats_.allocated_bytes = model_->backend->allocated();
  stats_.steps = steps_;
  stats_.rows = rows_;
  stats_.launches = model_->backend->launches();
  stats_.completed = completed_;
  stats_.failed = failed_;
  stats_.cancelled = cancelled_count_ + cancelled_early_;
}

void Engine::flush() {
  if (events_.empty()) return;
  sink_(std::move(events_));
  events_.clear();
}

}  // namespace unifluid
