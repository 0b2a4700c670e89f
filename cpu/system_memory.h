// How much memory the system can still give this process.
#pragma once

#include <cstddef>
#include <string>

namespace unifluid::cpu {

// Bytes: the least of the kernel's MemAvailable and what the limits of our control group and of
// those above it leave (cgroup v2 and v1; page cache that can be dropped counts as free, as in
// MemAvailable, because mapped weights are page cache). The largest size_t where the system does
// not tell. `root` stands before the paths of /proc and /sys, for tests.
size_t system_available_memory(const std::string& root = "");

}  // namespace unifluid::cpu
