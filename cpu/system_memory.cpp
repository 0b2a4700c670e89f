#include "cpu/system_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace unifluid::cpu {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();
// Bytes of a large page on most systems that have them.
constexpr size_t kLargePage = size_t{2} << 20;

// The number alone in a file; nothing for a missing file or the word "max".
std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value;
  if (file >> value) return value;
  return std::nullopt;
}

// The number after `key` in a file of "key number" or "key: number kB" lines.
std::optional<uint64_t> read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// The names of one cgroup version's files.
struct Version {
  const char* limit;
  const char* usage;
  const char* inactive_file;
  const char* active_file;
};
constexpr Version kV2{"memory.max", "memory.current", "inactive_file", "active_file"};
constexpr Version kV1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                      "total_active_file"};

size_t left_in_group(const std::string& directory, const Version& version) {
  const auto limit = read_number(directory + version.limit);
  const auto usage = read_number(directory + version.usage);
  if (!limit || !usage) return kUnlimited;
  const std::string stat = directory + "memory.stat";
  const uint64_t cache = read_field(stat, version.inactive_file).value_or(0) +
                         read_field(stat, version.active_file).value_or(0);
  const uint64_t used = *usage - std::min(*usage, cache);
  return *limit - std::min(*limit, used);
}

// The least that is left in the group at `path` or in one above it. Within a container the path may
// be the host's, which is not visible; the container's own group is then the root of the mount.
size_t left_in_hierarchy(const std::string& mount, std::string path, const Version& version) {
  size_t left = kUnlimited;
  while (true) {
    if (path.empty() || path.back() != '/') path += '/';
    left = std::min(left, left_in_group(mount + path, version));
    if (path == "/") return left;
    path.resize(path.find_last_of('/', path.size() - 2) + 1);
  }
}

size_t left_in_control_groups(const std::string& root) {
  // Lines of "hierarchy:controllers:path"; version 2 is hierarchy 0 without controllers.
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  size_t left = kUnlimited;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos || line.compare(second + 1, 1, "/") != 0) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,")
      left = std::min(left, left_in_hierarchy(root + "/sys/fs/cgroup", path, kV2));
    else if (controllers.find(",memory,") != std::string::npos)
      left = std::min(left, left_in_hierarchy(root + "/sys/fs/cgroup/memory", path, kV1));
  }
  return left;
}

}  // namespace

size_t system_available_memory(const std::string& root) {
  // Of the last answer: a process without a file descriptor left cannot ask, but its memory is not
  // without a limit for that.
  static std::atomic<size_t> last{kUnlimited};
  const auto kibibytes = read_field(root + "/proc/meminfo", "MemAvailable:");
  if (!kibibytes && root.empty()) return last;
  const size_t system = kibibytes ? static_cast<size_t>(*kibibytes) * 1024 : kUnlimited;
  const size_t available = std::min(system, left_in_control_groups(root));
  if (root.empty()) last = available;
  return available;
}

void* allocate_aligned(size_t bytes) {
  if (bytes > kUnlimited / 2) return nullptr;  // nor may rounding up wrap around
  const bool large = bytes >= 4 * kLargePage;
  const size_t alignment = large ? kLargePage : 64;
  const size_t rounded = std::max<size_t>((bytes + 63) / 64, 1) * 64;
  void* memory = nullptr;
  if (::posix_memalign(&memory, alignment, rounded) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
  // A request: the system may have no such pages.
  if (large) ::madvise(memory, rounded / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace unifluid::cpu
