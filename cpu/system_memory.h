// How much memory the system can still give this process.
#pragma once

#include <cstddef>

namespace unifluid::cpu {

// Bytes: the least of the kernel's MemAvailable and what the limits of our control group and of those
// above it leave (cgroup v2 and v1). The largest size_t where the system does not tell.
size_t system_available_memory();

}  // namespace unifluid::cpu
