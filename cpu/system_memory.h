// Memory of the system: getting it, and how much of it there still is.
#pragma once

#include <cstddef>
#include <string>

namespace unifluid::cpu {

// Bytes: the least of the kernel's MemAvailable and what the limits of our control group and of
// those above it leave (cgroup v2 and v1; page cache that can be dropped counts as free, as in
// MemAvailable, because mapped weights are page cache). The largest size_t where the system does
// not tell. `root` stands before the paths of /proc and /sys, for tests.
size_t system_available_memory(const std::string& root = "");

// At least `bytes` of memory aligned to 64, for std::free; null where there is none. Much of it
// lies on the system's large pages where it has some: what goes through hundreds of megabytes, as a
// step of training does, then waits less for the addresses of pages (2 % of such a step).
void* allocate_aligned(size_t bytes);

}  // namespace unifluid::cpu
