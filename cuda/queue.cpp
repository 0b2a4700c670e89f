#include "cuda/queue.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "cuda/size_class.h"

namespace unifluid::cuda {
namespace {

// An operation's scratch grows by whole steps where it can, seldom and by much rather than often.
constexpr size_t kScratchStep = size_t{1} << 20;

// FNV-1a of words in place of bytes, as a step's list has tens of thousands of these; the high half
// of a product is folded in, since the low bits of FNV's depend on low bits alone. Who finds a key
// compares what it is of.
uint64_t hash(const std::vector<unsigned char>& bytes) {
  uint64_t h = 0xcbf29ce484222325u;
  const auto add = [&h](uint64_t word) {
    h = (h ^ word) * 0x100000001b3u;
    h ^= h >> 32;
  };
  size_t at = 0;
  for (uint64_t word; at + sizeof word <= bytes.size(); at += sizeof word) {
    std::memcpy(&word, bytes.data() + at, sizeof word);
    add(word);
  }
  for (; at < bytes.size(); ++at) add(bytes[at]);
  return h;
}

template <class T>
void put(std::vector<unsigned char>& to, const T& value) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

}  // namespace

// By way of another constructor, after which a failure here leaves a queue to be destroyed.
Queue::Queue(int device, DeviceMemory& memory, Fault& fault) : Queue(memory, fault) {
  check(cudaSetDevice(device), "selecting the device");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "reading the device's properties");
  limits_.index = device;
  limits_.processors = properties.multiProcessorCount;
  limits_.capability = 10 * properties.major + properties.minor;
  limits_.shared_bytes = properties.sharedMemPerBlockOptin;
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "reading the device's properties");
  // Ahead of what runs beside it, see open_side.
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
        "creating a stream");
  void* host = nullptr;
  check(cudaMallocHost(&host, kSegments * kStagingBytes), "allocating pinned memory");
  staging_host_ = static_cast<unsigned char*>(host);
  void* const mirror = memory_.allocate(kStagingBytes);
  if (!mirror) memory_.refuse(kStagingBytes, "staging", 0);
  staging_device_ = static_cast<unsigned char*>(mirror);
  for (cudaEvent_t& event : free_)
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
}

// After a fault these calls fail as well; there is nothing to do about it.
Queue::~Queue() {
  settle();
  for (const Graph& graph : graphs_) cudaGraphExecDestroy(graph.executable);
  for (cudaEvent_t event : free_)
    if (event) cudaEventDestroy(event);
  for (cudaEvent_t event : {forked_, joined_})
    if (event) cudaEventDestroy(event);
  drop_scratch();
  memory_.release(staging_device_, kStagingBytes);
  if (staging_host_) cudaFreeHost(staging_host_);
  if (side_) cudaStreamDestroy(side_);
  if (stream_) cudaStreamDestroy(stream_);
}

// After a failure the second stream may run what the first does not wait for.
void Queue::settle() noexcept {
  if (stream_) cudaStreamSynchronize(stream_);
  if (side_) cudaStreamSynchronize(side_);
}

void Queue::begin_operation() {
  fault_.expect_none();
  // Half of the staging memory is always left for one operation.
  if (staged_ > kStagingBytes / 2 || kept_) flush();
  scratch_used_ = 0;
  operation_staged_ = false;
}

const void* Queue::stage_bytes(const void* host, size_t bytes) {
  if (staged_ + bytes > kStagingBytes)
    throw Error(error_code::kInternal, "an operation stages " + std::to_string(bytes) +
                                           " bytes, more than a list of launches holds");
  const size_t at = staged_;
  if (bytes) std::memcpy(staging_host_ + segment_ * kStagingBytes + at, host, bytes);
  staged_ = rounded_up(at + bytes, 16);
  operation_staged_ = true;
  return staging_device_ + at;
}

void Queue::reserve_scratch(size_t bytes) {
  if (bytes <= scratch_size_) return;
  // Growing issues all launches so far, and what this operation staged would go with them.
  if (scratch_used_ > 0 || operation_staged_)
    throw Error(error_code::kInternal,
                "reserve_scratch() called after the operation's first stage()");
  replace_scratch(bytes, device_bytes(rounded_up(bytes, kScratchStep)));
}

void Queue::resize_scratch(size_t bytes) {
  fault_.expect_none();
  scratch_used_ = 0;
  operation_staged_ = false;
  const size_t size = bytes > 0 ? device_bytes(bytes) : 0;
  if (size == scratch_size_) return;
  if (size > 0) return replace_scratch(size, size);
  synchronize();
  drop_scratch();
}

// A piece that cannot be had costs nobody the one that is there: sequences run that count on it.
void Queue::replace_scratch(size_t bytes, size_t size) {
  synchronize();  // launches before this one may still use what is freed here
  const size_t least = device_bytes(bytes), before = scratch_size_;
  void* memory = memory_.allocate(size);
  if (!memory && give_back_) {
    give_back_();
    memory = memory_.allocate(size);
  }
  drop_scratch();
  if (!memory) memory = memory_.allocate(size);
  if (!memory) memory = memory_.allocate(size = least);
  if (!memory && before > 0) memory = memory_.allocate(size = before);
  scratch_ = static_cast<unsigned char*>(memory);
  scratch_size_ = memory ? size : 0;
  if (scratch_size_ < least) memory_.refuse(least, "an operation's scratch", scratch_size_);
}

void Queue::drop_scratch() noexcept {
  memory_.release(scratch_, scratch_size_);
  scratch_ = nullptr;
  scratch_size_ = 0;
}

void* Queue::scratch_bytes(size_t bytes) {
  if (scratch_used_ == 0) reserve_scratch(bytes);
  const size_t at = scratch_used_;
  if (at + bytes > scratch_size_)
    throw Error(error_code::kInternal, "an operation takes more scratch than it reserved");
  scratch_used_ = at + piece_bytes(bytes);
  return scratch_ + at;
}

void Queue::push_argument(const void* value, size_t size, size_t alignment) {
  const size_t at = rounded_up(arguments_.size(), std::max<size_t>(alignment, 8));
  arguments_.resize(at + size);
  std::memcpy(arguments_.data() + at, value, size);
  offsets_.push_back(static_cast<uint32_t>(at));
}

int Queue::resident_clusters_of([[maybe_unused]] const void* kernel, unsigned size,
                                [[maybe_unused]] int threads, [[maybe_unused]] size_t shared) {
#ifdef UNIFLUID_SIMT
  return std::max(1, limits_.processors / static_cast<int>(size));
#else
  allow_shared(kernel, shared);
  allow_clusters(kernel);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {size, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(size);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // such as of a part of a GPU that has no room for one
  return 0;
#endif
}

// More than 48 KiB of dynamic shared memory must be asked for. All that a block can have, since the
// kernel is every queue's of this device, and the latest value counts; no kernel has other shared
// memory.
void Queue::allow_shared(const void* kernel, size_t shared) {
  constexpr size_t kAlwaysAllowed = size_t{48} << 10;
  if (shared <= kAlwaysAllowed || shared_allowed_.count(kernel)) return;
  fault_.check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(limits_.shared_bytes)),
               "setting a kernel's shared memory");
  shared_allowed_.insert(kernel);
}

// Clusters of more than eight blocks must be asked for.
void Queue::allow_clusters([[maybe_unused]] const void* kernel) {
#ifndef UNIFLUID_SIMT
  if (clusters_allowed_.count(kernel)) return;
  fault_.check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               "allowing a kernel large clusters");
  clusters_allowed_.insert(kernel);
#endif
}

// Of the lowest priority. A graph begins its branches in any order: launches whose blocks take
// whole processors, those of a cluster at once, would wait for blocks that could as well come
// later.
void Queue::open_side() {
  if (forking_) throw Error(error_code::kInternal, "together() must not be nested");
  if (!side_) {
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "reading the device's properties");
    for (cudaEvent_t* event : {&forked_, &joined_})
      if (!*event)
        check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "creating an event");
    check(cudaStreamCreateWithPriority(&side_, cudaStreamNonBlocking, least), "creating a stream");
  }
  forking_ = true;
}

void Queue::flush() {
  fault_.expect_none();
  if (forking_) throw Error(error_code::kInternal, "flush() called inside together()");
  if (commands_.empty()) return;
  const bool staged = staged_ > 0;
  try {
    if (staged) {
      fault_.check(cudaMemcpyAsync(staging_device_, staging_host_ + segment_ * kStagingBytes,
                                   staged_, cudaMemcpyHostToDevice, stream_),
                   "copying a step's arrays");
      fault_.check(cudaEventRecord(free_[segment_], stream_), "recording an event");
    }
    if (launch_graph()) {
      ++graph_launches_;
    } else {
      issue();
      ++plain_launches_;
    }
    fork_launches_ += static_cast<int64_t>(forks_.size());
  } catch (const std::exception& error) {
    if (lacks_memory(error))
      keep_rest();
    else
      fault_.mark();
    throw;
  }
  commands_.clear();
  issued_ = 0;
  kept_ = false;
  forks_.clear();
  offsets_.clear();
  arguments_.clear();
  staged_ = 0;
  if (!staged) return;
  segment_ = (segment_ + 1) % kSegments;
  fault_.check(cudaEventSynchronize(free_[segment_]), "running a step");
}

// All one stream again: of a pair of `together` one half may have been issued.
void Queue::keep_rest() noexcept {
  settle();
  commands_.erase(commands_.begin(), commands_.begin() + static_cast<ptrdiff_t>(issued_));
  issued_ = 0;
  kept_ = true;
  forks_.clear();
}

void Queue::synchronize() {
  flush();
  fault_.check(cudaStreamSynchronize(stream_), "running a step");
}

// Kernels of different divisions of a processor's memory into cache and shared memory do not run on
// it together: all that may overlap ask for the same.
void Queue::prepare(const Command& c) {
  allow_shared(c.kernel, c.shared);
  if (c.kind.way == Way::clusters) allow_clusters(c.kernel);
  if (!c.overlaps || made_alike_.count(c.kernel)) return;
  fault_.check(cudaFuncSetAttribute(c.kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                    cudaSharedmemCarveoutMaxShared),
               "setting a kernel's shared memory carveout");
  made_alike_.insert(c.kernel);
}

// What a list begins with comes after copies and other lists, and what follows a launch of another
// kind after all of it: that may have written what dependent launches take for constant. So does
// what waits for another stream.
void Queue::issue() {
  size_t next = 0;
  for (const Fork& fork : forks_) {
    issue(next, fork.first, stream_);
    wait_for(stream_, forked_, side_);
    issue(fork.first, fork.beside, stream_);
    issue(fork.beside, fork.end, side_);
    wait_for(side_, joined_, stream_);
    next = fork.end;
  }
  issue(next, commands_.size(), stream_);
}

void Queue::issue(size_t first, size_t end, cudaStream_t stream) {
  Way before = Way::plain;
  for (size_t i = first; i < end; ++i) {
    const Way way = commands_[i].kind.way;
    const bool early = way != Way::dependent || before == Way::dependent;
    issue(commands_[i], early ? way : Way::plain, stream);
    ++issued_;
    before = way;
  }
}

// What `stream` is given from now on comes after all that `other` has been given.
void Queue::wait_for(cudaStream_t other, cudaEvent_t event, cudaStream_t stream) {
  fault_.check(cudaEventRecord(event, other), "recording an event");
  fault_.check(cudaStreamWaitEvent(stream, event, 0), "waiting for an event");
}

void Queue::issue(const Command& c, Way way, cudaStream_t stream) {
  prepare(c);
#ifdef UNIFLUID_SIMT
  const uint32_t* offsets = offsets_.data() + c.first;
  fault_.check(simt::launch(c.kernel, c.invoke, c.grid, c.block, c.shared,
                            way == Way::cooperative || way == Way::clusters, way == Way::dependent,
                            arguments_.data(), arguments_.size(), offsets, c.count, stream),
               "launching a kernel");
#else
  void* arguments[kMostArguments];
  for (uint32_t i = 0; i < c.count; ++i) arguments[i] = arguments_.data() + offsets_[c.first + i];
  cudaLaunchAttribute attribute{};
  if (way == Way::cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else if (way == Way::clusters) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {c.kind.cluster, 1, 1};
  } else {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = c.grid;
  config.blockDim = c.block;
  config.dynamicSmemBytes = c.shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = way == Way::plain ? 0 : 1;
  fault_.check(cudaLaunchKernelExC(&config, c.kernel, arguments), "launching a kernel");
#endif
}

std::vector<unsigned char> Queue::identity() const {
  std::vector<unsigned char> bytes;
  bytes.reserve(commands_.size() * 64 + arguments_.size());
  for (const Command& c : commands_) {
    put(bytes, c.kernel);
    for (unsigned n : {c.grid.x, c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z})
      put(bytes, n);
    put(bytes, c.shared);
    put(bytes, c.kind.way);
    put(bytes, c.kind.cluster);
  }
  for (const Fork& fork : forks_)
    for (size_t at : {fork.first, fork.beside, fork.end}) put(bytes, at);
  bytes.insert(bytes.end(), arguments_.begin(), arguments_.end());
  return bytes;
}

cudaGraph_t Queue::captured() {
  cudaGraph_t graph = nullptr;
  fault_.check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
               "beginning a capture");
  try {
    issue();
  } catch (...) {
    // While a thread captures it can free no memory. This ends what the second stream captures too.
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    issued_ = 0;
    throw;
  }
  issued_ = 0;
  fault_.check(cudaStreamEndCapture(stream_, &graph), "ending a capture");
  return graph;
}

// A list is captured when it comes the second time: many come only once, such as those of prompts.
bool Queue::launch_graph() {
  if (commands_.size() < kGraphLaunches) return false;
  std::vector<unsigned char> bytes = identity();
  const uint64_t key = hash(bytes);
  const auto found = std::find_if(graphs_.begin(), graphs_.end(), [&](const Graph& g) {
    return g.key == key && g.identity == bytes;
  });
  if (found != graphs_.end()) {
    graphs_.splice(graphs_.begin(), graphs_, found);
  } else {
    constexpr size_t kMostSeen = 4096;
    if (seen_.size() > kMostSeen) seen_.clear();
    if (seen_.insert(key).second) return false;
    if (lists_without_graph_ > 0) {
      --lists_without_graph_;
      return false;
    }
    for (const Command& c : commands_) prepare(c);
    cudaGraph_t graph = captured();
    cudaGraphExec_t executable = nullptr;
    // With priorities: those of the streams that were captured.
    const cudaError_t status = cudaGraphInstantiate(
        &executable, graph, forks_.empty() ? 0 : cudaGraphInstantiateFlagUseNodePriority);
    cudaGraphDestroy(graph);
    if (status == cudaErrorMemoryAllocation) return do_without_graph();
    fault_.check(status, "instantiating a graph");
    graphs_.push_front({key, std::move(bytes), executable});
    if (graphs_.size() > kMostGraphs) {
      cudaGraphExecDestroy(graphs_.back().executable);
      graphs_.pop_back();
    }
  }
  const cudaError_t status = cudaGraphLaunch(graphs_.front().executable, stream_);
  if (status == cudaErrorMemoryAllocation) {
    cudaGraphExecDestroy(graphs_.front().executable);
    graphs_.pop_front();
    return do_without_graph();
  }
  fault_.check(status, "launching a graph");
  return true;
}

// A graph takes device memory, when it is made and when it is first launched.
bool Queue::do_without_graph() noexcept {
  cudaGetLastError();
  lists_without_graph_ = kListsWithoutGraph;
  return false;
}

}  // namespace unifluid::cuda
