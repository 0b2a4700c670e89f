// The runtime of the simulated CUDA. What it simulates is set by `simt_set`, or in the environment
// before the library is loaded:
//   UNIFLUID_SIMT_DEVICES     devices there are; default 1. 0: as a machine without a GPU
//   UNIFLUID_SIMT_MEMORY      bytes of device memory; default 2 GiB
//   UNIFLUID_SIMT_SEED        of the order of threads; default 1
//   UNIFLUID_SIMT_FAIL        1: launches fail, as by a device fault; 2: they are refused while
//                             they are captured; 3: there is no memory for graphs; 4: kernels
//                             fault, and the host hears of it when it waits for them; 5: there
//                             is no code for the device; default 0
//   UNIFLUID_SIMT_SHORTAGE    every so manieth launch from now on finds no memory for its kernel;
//                             default 0: none
//   UNIFLUID_SIMT_TAKEN       bytes that others have taken since free memory was told; default 0
//   UNIFLUID_SIMT_GREED       1: where some is freed, others take all there is; default 0
//   UNIFLUID_SIMT_CAPABILITY  compute capability, as 86 or 90; default 86
//   UNIFLUID_SIMT_PROCESSORS  multiprocessors; default 4
//   UNIFLUID_SIMT_ROUNDING    1: products of warpgroups round otherwise than those of warps;
//                             default 0
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <unordered_map>
#include <utility>

namespace {

constexpr size_t kDefaultMemory = size_t{2} << 30;
// Of a block, by compute capability: the least of those supported, and Hopper's.
constexpr size_t kLeastShared = 99 << 10, kHopperShared = 227 << 10;

struct Setting {
  const char* name;
  std::atomic<uint64_t> value;

  Setting(const char* name_, uint64_t otherwise) : name(name_), value(otherwise) {
    const char* text = std::getenv(name_);
    if (text && *text) value = std::strtoull(text, nullptr, 10);
  }
};
Setting devices("UNIFLUID_SIMT_DEVICES", 1), memory_size("UNIFLUID_SIMT_MEMORY", kDefaultMemory),
    order_seed("UNIFLUID_SIMT_SEED", 1), failing("UNIFLUID_SIMT_FAIL", 0),
    shortage("UNIFLUID_SIMT_SHORTAGE", 0), taken("UNIFLUID_SIMT_TAKEN", 0),
    greed("UNIFLUID_SIMT_GREED", 0), capability("UNIFLUID_SIMT_CAPABILITY", 86),
    rounding("UNIFLUID_SIMT_ROUNDING", 0), processors("UNIFLUID_SIMT_PROCESSORS", 4);

size_t shared_bytes() { return capability.value / 10 == 9 ? kHopperShared : kLeastShared; }

std::mutex mutex;
std::unordered_map<void*, size_t> allocations;
std::unordered_map<const void*, size_t>
    dynamic_shared;  // that kernels were allowed, by the latest call
size_t allocated = 0;
std::atomic<uint64_t> launches{0};
std::atomic<uint64_t> asked{0};     // for launches and graphs, where memory may lack for them
std::atomic<uint64_t> captured{0};  // lists of launches
std::atomic<uint64_t> waits{0};     // of the host for all that a stream had to do

thread_local int current_device = 0;  // of this thread, as on CUDA
thread_local int captures = 0;        // under way; they keep the thread from some calls
thread_local std::string message;     // of the last fault

struct Recorded {
  const void* kernel;
  void (*invoke)(const void*, void**);
  dim3 grid, block;
  size_t shared;
  bool cooperative, dependent;
  std::vector<unsigned char> arguments;
  std::vector<uint32_t> offsets;
  std::set<size_t> behind;  // launches of its graph that it comes after
};

// A capture under way: of one stream, and of those that wait for what it or another of them was
// given.
struct Capture {
  std::vector<Recorded> launches;
  std::set<SimtStream*> streams;
  bool over = false;
};

}  // namespace

// A fault stays with the stream in which it happened: to the others it is as if it had been in
// another process. On a GPU the whole context may be lost.
struct SimtStream {
  int device;
  cudaError_t fault = cudaSuccess;
  cudaError_t untold = cudaSuccess;  // a fault that the host has not heard of
  std::shared_ptr<Capture> capture = {};
  std::set<size_t> latest = {};  // of its launches: what the next one here comes after
};
struct SimtEvent {
  cudaStream_t stream = nullptr;     // where it was recorded
  cudaError_t before = cudaSuccess;  // a fault there that a wait for it would tell of
  std::shared_ptr<Capture> capture = {};
  std::set<size_t> latest = {};
};
struct SimtGraph {
  std::vector<Recorded> launches;
};

namespace {

struct Call {
  const Recorded* launch;
  void** arguments;
};

// A stream is used with its own device chosen.
cudaError_t usable(cudaStream_t stream) {
  if (stream->fault != cudaSuccess) return stream->fault;
  return stream->device == current_device ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

size_t allowed_shared(const void* kernel) {
  constexpr size_t kAlways = 48 << 10;
  std::lock_guard lock(mutex);
  const auto found = dynamic_shared.find(kernel);
  return found == dynamic_shared.end() ? kAlways : std::max(kAlways, found->second);
}

// Whether memory lacks for the launch that is asked for: that of its kernel, which a device gets
// when it is launched for the first time.
bool lacks_memory() { return shortage.value != 0 && ++asked % shortage.value == 0; }

// What a wait for the stream's work comes to.
cudaError_t waited(cudaStream_t stream) {
  if (stream->fault == cudaSuccess) stream->fault = stream->untold;
  return stream->fault;
}

cudaError_t run(const Recorded& r, cudaStream_t stream) {
  const size_t threads = size_t{r.block.x} * r.block.y * r.block.z;
  if (threads == 0 || threads > 1024 || r.grid.x == 0 || r.grid.y == 0 || r.grid.z == 0 ||
      r.grid.y > 65535 || r.grid.z > 65535 || r.shared > shared_bytes() ||
      r.shared > allowed_shared(r.kernel))
    return cudaErrorInvalidValue;
  if (failing.value == 4) {
    message = "the late fault that UNIFLUID_SIMT_FAIL asks for";
    stream->untold = cudaErrorLaunchFailure;
  }
  if (stream->untold != cudaSuccess) return cudaSuccess;  // nothing runs behind a fault
  const uint64_t number = ++launches;
  std::vector<unsigned char> copy = r.arguments;
  std::vector<void*> pointers;
  for (uint32_t offset : r.offsets) pointers.push_back(copy.data() + offset);
  Call call{&r, pointers.data()};
  const std::string error = failing.value == 1
                                ? "the fault that UNIFLUID_SIMT_FAIL asks for"
                                : simt::run_grid(
                                      r.grid, r.block, r.shared, r.cooperative, r.dependent,
                                      order_seed.value * 0x9E3779B97F4A7C15u + number,
                                      [](void* context) {
                                        const Call& c = *static_cast<Call*>(context);
                                        c.launch->invoke(c.launch->kernel, c.arguments);
                                      },
                                      &call);
  if (error.empty()) return cudaSuccess;
  message = error;
  return stream->fault = cudaErrorLaunchFailure;
}

}  // namespace

namespace simt {

cudaError_t launch(const void* kernel, void (*invoke)(const void*, void**), dim3 grid, dim3 block,
                   size_t shared, bool cooperative, bool dependent, const unsigned char* arguments,
                   size_t bytes, const uint32_t* offsets, size_t count, cudaStream_t stream) {
  Recorded r{kernel, invoke, grid, block, shared, cooperative, dependent, {}, {}, {}};
  r.arguments.assign(arguments, arguments + bytes);
  r.offsets.assign(offsets, offsets + count);
  if (const cudaError_t status = usable(stream); status != cudaSuccess) return status;
  if (lacks_memory()) return cudaErrorMemoryAllocation;
  if (stream->capture) {
    if (failing.value == 2) return cudaErrorInvalidValue;
    r.behind = std::exchange(stream->latest, {stream->capture->launches.size()});
    stream->capture->launches.push_back(std::move(r));
    return cudaSuccess;
  }
  return run(r, stream);
}

const char* last_error() { return message.c_str(); }

bool rounds_otherwise() { return rounding.value != 0; }

}  // namespace simt

// Sets what is named as in the environment; false where there is no such thing.
extern "C" __attribute__((visibility("default"))) bool simt_set(const char* name, uint64_t value) {
  for (Setting* setting : {&devices, &memory_size, &order_seed, &failing, &shortage, &taken, &greed,
                           &capability, &rounding, &processors})
    if (std::strcmp(setting->name, name) == 0) {
      setting->value = value;
      if (setting == &shortage) asked = 0;
      return true;
    }
  return false;
}

extern "C" __attribute__((visibility("default"))) uint64_t simt_waits() { return waits; }
extern "C" __attribute__((visibility("default"))) uint64_t simt_captures() { return captured; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorLaunchFailure:
      return message.c_str();
    default:
      return "unknown error";
  }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(devices.value.load());
  return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return cudaErrorNoDevice;
  if (device < 0 || device >= count) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return cudaErrorNoDevice;
  if (device < 0 || device >= count) return cudaErrorInvalidDevice;
  const int version = static_cast<int>(capability.value);
  *properties = {"simulated",
                 version / 10,
                 version % 10,
                 static_cast<int>(processors.value),
                 memory_size.value.load(),
                 shared_bytes()};
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  std::lock_guard lock(mutex);
  *total = memory_size.value.load();
  *free = *total - std::min(*total, allocated);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = nullptr;
  if (captures > 0) return cudaErrorStreamCaptureUnsupported;
  std::lock_guard lock(mutex);
  if (bytes == 0) return cudaSuccess;
  // As the driver: pieces of more than half a page of 2 MiB take whole ones.
  constexpr size_t kPage = size_t{2} << 20;
  const size_t unit = bytes > kPage / 2 ? kPage : 256;
  const size_t rounded = (bytes + unit - 1) / unit * unit;
  if (rounded < bytes || allocated + rounded + taken.value.load() > memory_size.value.load())
    return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, rounded);
  if (!*memory) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, rounded);
  allocations[*memory] = rounded;
  allocated += rounded;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  if (captures > 0) return cudaErrorStreamCaptureUnsupported;
  std::lock_guard lock(mutex);
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  allocated -= found->second;
  if (greed.value) taken.value = memory_size.value - std::min<size_t>(memory_size.value, allocated);
  allocations.erase(found);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (const cudaError_t status = usable(stream); status != cudaSuccess) return status;
  if (stream->capture) return cudaErrorUnknown;  // graphs here hold launches only
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t status = usable(stream); status != cudaSuccess) return status;
  if (stream->capture) return cudaErrorUnknown;
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new SimtStream{current_device};
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
// Launches that are not captured run at once, and so in an order that waits allow.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const cudaError_t status = usable(stream); status != cudaSuccess) return status;
  if (event->before != cudaSuccess) stream->untold = event->before;
  if (stream->capture != event->capture && (stream->capture || event->capture->over))
    return cudaErrorStreamCaptureIsolation;
  if (!event->capture) return cudaSuccess;
  stream->capture = event->capture;
  stream->capture->streams.insert(stream);
  stream->latest.insert(event->latest.begin(), event->latest.end());
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ++waits;
  return waited(stream);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  ++captured;
  stream->capture = std::make_shared<Capture>();
  stream->capture->streams.insert(stream);
  ++captures;
  return stream->fault;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  --captures;
  // Of what was given to all streams nothing is left that this one does not come after.
  const std::shared_ptr<Capture> capture = stream->capture;
  std::set<size_t> closed = stream->latest;
  for (const Recorded& r : capture->launches) closed.insert(r.behind.begin(), r.behind.end());
  capture->over = true;
  for (SimtStream* each : capture->streams) {
    each->capture.reset();
    each->latest.clear();
  }
  *graph = nullptr;
  if (closed.size() < capture->launches.size()) return cudaErrorStreamCaptureUnjoined;
  *graph = new SimtGraph{std::move(capture->launches)};
  return stream->fault;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  if (failing.value == 3) return cudaErrorMemoryAllocation;
  *executable = new SimtGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (const cudaError_t status = usable(stream); status != cudaSuccess) return status;
  if (lacks_memory()) return cudaErrorMemoryAllocation;
  // In any order that they allow.
  std::mt19937_64 random(order_seed.value * 0x9E3779B97F4A7C15u + launches);
  const size_t count = graph->launches.size();
  std::vector<size_t> waited_for(count), ready;
  std::vector<std::vector<size_t>> next(count);
  for (size_t i = 0; i < count; ++i) {
    waited_for[i] = graph->launches[i].behind.size();
    for (size_t before : graph->launches[i].behind) next[before].push_back(i);
    if (waited_for[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[random() % ready.size()], ready.back());
    const size_t i = ready.back();
    ready.pop_back();
    if (const cudaError_t status = run(graph->launches[i], stream); status != cudaSuccess)
      return status;
    for (size_t behind : next[i])
      if (--waited_for[behind] == 0) ready.push_back(behind);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new SimtEvent();
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  event->before = stream->untold;
  event->capture = stream->capture;
  event->latest = stream->latest;
  return stream->fault;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->before == cudaSuccess ? cudaSuccess : waited(event->stream);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {static_cast<int>(capability.value.load())};
  return failing.value == 5 ? cudaErrorNoKernelImageForDevice : cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > shared_bytes()) return cudaErrorInvalidValue;
  std::lock_guard lock(mutex);
  dynamic_shared[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
