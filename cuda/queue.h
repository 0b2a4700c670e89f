// The way of kernels to the device: a list of launches, and the host's small arrays that they read.
//
// Operations append launches; nothing runs until `flush`, which copies all staged arrays in one
// transfer and then issues the list. A list that comes again, same kernels, sizes and arguments, is
// replayed as a CUDA graph: arrays that differ from step to step are staged, so that their
// addresses, not their contents, are arguments. One step of the engine is one list.
//
// Launches come one after another, in one stream, but for those that `together` appends: it has a
// second stream for them, and in a graph they are a branch. All is one stream again behind them, so
// that whoever waits for the one has waited for both.
//
// One thread. The host runs ahead of the device by at most kSegments lists.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <tuple>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/fault.h"

namespace unifluid::cuda {

struct DeviceLimits {
  int index = 0;
  int processors = 1;              // multiprocessors
  int capability = 0;              // 86: compute capability 8.6
  size_t shared_bytes = 48 << 10;  // of one block, at most
  // Hopper's bulk copies and products of warpgroups may be used (cuda/kernels/warpgroup_probe.h).
  bool warpgroups = false;
  // So may those of training, whose operands lie transposed (cuda/kernels/training_product.h).
  bool transposed = false;
  // Clusters of 16 blocks of whole multiprocessors that run at once; 0: none are to be used.
  int clusters = 0;
  // Launches may begin before the one in front of them has ended (cuda/device/dependence.h).
  bool dependents = false;
  // A step of few rows may be one launch (cuda/kernels/decoder_step.cu).
  bool persistent = false;
};

class Queue {
 public:
  // `memory` and `fault` are those of the backend. Throws INSUFFICIENT_MEMORY and DEVICE_ERROR.
  Queue(int device, DeviceMemory& memory, Fault& fault);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // ---- for kernels ----

  // Appends a launch; `shared` is the bytes of dynamic shared memory. Arguments are converted to
  // the kernel's parameter types and copied.
  template <class... P, class... A>
  void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, const A&... arguments) {
    append(kernel, grid, block, shared, {Way::plain}, std::tuple<P...>(arguments...));
  }
  // Of a kernel that keeps to the rules of cuda/device/dependence.h: it may begin before the launch
  // in front of it has ended, where that is of the same kind and the device can do it.
  template <class... P, class... A>
  void launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                        const A&... arguments) {
    append(kernel, grid, block, shared, {limits_.dependents ? Way::dependent : Way::plain},
           std::tuple<P...>(arguments...));
  }
  // All blocks resident at once, for `team_barrier`.
  template <class... P, class... A>
  void launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                          const A&... arguments) {
    append(kernel, grid, block, shared, {Way::cooperative}, std::tuple<P...>(arguments...));
  }
  // Blocks in clusters of `size` side by side, for `cluster_barrier`; only where
  // `limits().warpgroups`.
  template <class... P, class... A>
  void launch_clusters(void (*kernel)(P...), unsigned size, dim3 grid, dim3 block, size_t shared,
                       const A&... arguments) {
    append(kernel, grid, block, shared, {Way::clusters, size}, std::tuple<P...>(arguments...));
  }

  // Appends what `first` appends, and what `beside` appends: launches that may run at the same time
  // as those, since neither needs or overwrites what the other writes. All of them come after what
  // is in front, and what follows comes after all of them. Those of `first` choose their processors
  // first. In both nothing is staged, and no scratch asked for. Where one throws, the launches that
  // there are by then follow each other.
  template <class First, class Beside>
  void together(const First& first, const Beside& beside) {
    const Open open(*this);
    Fork fork{commands_.size(), 0, 0};
    first();
    fork.beside = commands_.size();
    beside();
    fork.end = commands_.size();
    if (fork.beside > fork.first && fork.end > fork.beside) forks_.push_back(fork);
  }

  // Device memory with a copy of a host array, for the launches of this operation. Called before
  // the operation's first launch; at most kStagingBytes / 2 bytes an operation.
  template <class T>
  const T* stage(const T* host, size_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<const T*>(stage_bytes(host, count * sizeof(T)));
  }

  // Uninitialized device memory for the launches of this operation, aligned to kPieceAlignment; the
  // next operation's may be the same. Several pieces: ask for all first, with `reserve_scratch`.
  // Throws INSUFFICIENT_MEMORY.
  template <class T>
  T* scratch(size_t count) {
    return static_cast<T*>(scratch_bytes(count * sizeof(T)));
  }

  // Makes room for pieces of `bytes` in all: the sum of their `piece_bytes`. Before the operation's
  // first `stage`. Throws INSUFFICIENT_MEMORY, and leaves what room there was.
  void reserve_scratch(size_t bytes);
  static constexpr size_t kPieceAlignment = 256;
  // Of scratch, what a piece of `bytes` takes.
  static constexpr size_t piece_bytes(size_t bytes) {
    return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
  }

  const DeviceLimits& limits() const { return limits_; }
  void allow_warpgroups(bool allowed) { limits_.warpgroups = allowed; }
  void allow_transposed(bool allowed) { limits_.transposed = allowed; }
  void use_clusters(int count) { limits_.clusters = count; }
  // Clusters of `size` blocks of a kernel that the device holds at once.
  template <class... P>
  int resident_clusters(void (*kernel)(P...), unsigned size, int threads, size_t shared) {
    return resident_clusters_of(reinterpret_cast<const void*>(kernel), size, threads, shared);
  }
  void allow_persistent(bool allowed) { limits_.persistent = allowed; }
  void allow_dependents(bool allowed) { limits_.dependents = allowed; }

  // ---- for the backend ----

  // Every operation begins with this. Flushes where half of the staging memory is full, or where an
  // earlier `flush` left something.
  void begin_operation();
  // Issues what was appended. Where memory lacks for a launch (INSUFFICIENT_MEMORY) that and what
  // is behind it stay for the next time: whoever appended it counts on it.
  void flush();
  // Flushes and waits.
  void synchronize();
  // Waits for what runs, also after a failure.
  void settle() noexcept;
  // `give_back` frees device memory that nobody uses, where scratch finds none; nothing runs then.
  void on_shortage(std::function<void()> give_back) { give_back_ = std::move(give_back); }
  cudaStream_t stream() const { return stream_; }
  // What becomes of a call on the stream: a fault stays (cuda/fault.h).
  void check_work(cudaError_t status, const char* what) { fault_.check(status, what); }
  DeviceMemory& memory() { return memory_; }
  // Makes scratch just so large, as a piece of `bytes`. Between operations. As `reserve_scratch`
  // where it grows.
  void resize_scratch(size_t bytes);
  // Any thread, like the counts of lists: those replayed as graphs and those launched one by one.
  size_t scratch_held() const { return scratch_size_; }
  int64_t graph_launches() const { return graph_launches_; }
  int64_t plain_launches() const { return plain_launches_; }
  // Pairs of `together` among them.
  int64_t fork_launches() const { return fork_launches_; }

  // Device memory that every queue takes, whatever it runs.
  static constexpr size_t kStagingBytes = size_t{4} << 20;

 private:
  Queue(DeviceMemory& memory, Fault& fault) : memory_(memory), fault_(fault) {}

  static constexpr int kSegments = 4;
  // Fewer launches than this are not worth a graph.
  static constexpr size_t kGraphLaunches = 4;
  static constexpr size_t kMostGraphs = 32;
  // So many lists are not captured after memory lacked for a graph: each would take the time again.
  static constexpr int kListsWithoutGraph = 256;
  static constexpr size_t kMostArguments = 24;

  enum class Way : uint8_t { plain, dependent, cooperative, clusters };
  struct LaunchKind {
    Way way;
    unsigned cluster = 0;  // blocks of one
  };
  using Invoke = void (*)(const void* kernel, void** arguments);
  struct Command {
    const void* kernel;
    Invoke invoke;  // the simulation's way to call it
    dim3 grid, block;
    size_t shared;
    LaunchKind kind;
    bool overlaps;          // may run at the same time as others
    uint32_t first, count;  // arguments, in offsets_
  };
  // Commands [first, beside) and, beside them, [beside, end); neither is empty.
  struct Fork {
    size_t first, beside, end;
  };
  // While `together` appends.
  class Open {
   public:
    explicit Open(Queue& queue) : queue_(queue) { queue_.open_side(); }
    ~Open() { queue_.forking_ = false; }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;

   private:
    Queue& queue_;
  };
  struct Graph {
    uint64_t key;
    std::vector<unsigned char> identity;  // what the key is a hash of
    cudaGraphExec_t executable;
  };

  template <class... P>
  void append(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, LaunchKind kind,
              const std::tuple<P...>& arguments) {
    static_assert((std::is_trivially_copyable_v<P> && ...));
    static_assert(sizeof...(P) <= kMostArguments);
    Command command{reinterpret_cast<const void*>(kernel),
                    &Queue::invoke<P...>,
                    grid,
                    block,
                    shared,
                    kind,
                    kind.way == Way::dependent || forking_,
                    static_cast<uint32_t>(offsets_.size()),
                    static_cast<uint32_t>(sizeof...(P))};
    std::apply([&](const P&... each) { (push_argument(&each, sizeof each, alignof(P)), ...); },
               arguments);
    commands_.push_back(command);
  }

  template <class... P>
  static void invoke(const void* kernel, void** arguments) {
    invoke_with<P...>(reinterpret_cast<void (*)(P...)>(const_cast<void*>(kernel)), arguments,
                      std::index_sequence_for<P...>());
  }
  template <class... P, size_t... I>
  static void invoke_with([[maybe_unused]] void (*kernel)(P...), [[maybe_unused]] void** arguments,
                          std::index_sequence<I...>) {
#ifdef UNIFLUID_SIMT
    kernel(*static_cast<P*>(arguments[I])...);
#endif
  }

  void push_argument(const void* value, size_t size, size_t alignment);
  const void* stage_bytes(const void* host, size_t bytes);
  void* scratch_bytes(size_t bytes);
  int resident_clusters_of(const void* kernel, unsigned size, int threads, size_t shared);
  void allow_shared(const void* kernel, size_t shared);
  void allow_clusters(const void* kernel);
  void open_side();
  void keep_rest() noexcept;
  void issue();
  void issue(size_t first, size_t end, cudaStream_t stream);  // commands
  void issue(const Command& command, Way way, cudaStream_t stream);
  void wait_for(cudaStream_t other, cudaEvent_t event, cudaStream_t stream);
  void prepare(const Command& command);
  bool launch_graph();
  bool do_without_graph() noexcept;
  cudaGraph_t captured();  // the list
  std::vector<unsigned char> identity() const;
  void replace_scratch(size_t bytes, size_t size);  // by `size`, or at least by `bytes`
  void drop_scratch() noexcept;

  DeviceMemory& memory_;
  Fault& fault_;
  DeviceLimits limits_;
  cudaStream_t stream_ = nullptr;
  // From the first `together` on. All there is in the second stream is over before what follows in
  // the first.
  cudaStream_t side_ = nullptr;
  cudaEvent_t forked_ = nullptr, joined_ = nullptr;

  std::vector<Command> commands_;
  size_t issued_ = 0;        // of them, by a flush that is under way
  bool kept_ = false;        // a flush has left them
  std::vector<Fork> forks_;  // in the order of the commands
  bool forking_ = false;
  std::vector<uint32_t> offsets_;  // into arguments_
  std::vector<unsigned char> arguments_;

  unsigned char* staging_host_ = nullptr;    // pinned, kSegments * kStagingBytes
  unsigned char* staging_device_ = nullptr;  // kStagingBytes
  size_t staged_ = 0;
  bool operation_staged_ = false;
  int segment_ = 0;
  std::array<cudaEvent_t, kSegments> free_{};  // of a segment: its copy has been made

  std::function<void()> give_back_;
  unsigned char* scratch_ = nullptr;
  std::atomic<size_t> scratch_size_{0};
  size_t scratch_used_ = 0;

  std::list<Graph> graphs_;                         // the latest used first
  int lists_without_graph_ = 0;                     // to come
  std::unordered_set<uint64_t> seen_;               // keys of lists that were issued once
  std::unordered_set<const void*> shared_allowed_;  // kernels
  std::unordered_set<const void*> clusters_allowed_;
  std::unordered_set<const void*> made_alike_;  // kernels that may overlap others
  std::atomic<int64_t> graph_launches_{0}, plain_launches_{0}, fork_launches_{0};
};

}  // namespace unifluid::cuda
