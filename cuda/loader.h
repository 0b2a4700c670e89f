// The addon's side of cuda/boundary.h: opens the CUDA library and makes backends of it. Nothing
// here needs a CUDA toolkit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cuda/boundary.h"

namespace unifluid::cuda {

// Whether this machine has NVIDIA's driver library, without which no GPU can be used.
bool driver_present();

// Stays open once it was: threads of the driver may be in it. Any thread. Throws DEVICE_ERROR where
// the file cannot be opened or belongs to another version of the addon.
const Boundary& open_library(const std::string& path);

// The devices that the library at `path` can use; empty where there are none. Throws DEVICE_ERROR.
std::vector<DeviceInfo> list_devices(const std::string& path);
// The memory of one of them; opens a context on it. Throws DEVICE_ERROR, and INSUFFICIENT_MEMORY
// where it has none for that.
DeviceRoom device_room(const std::string& path, int32_t device);

// Throws DEVICE_ERROR and INSUFFICIENT_MEMORY.
std::unique_ptr<Backend> make_cuda_backend(const std::string& path, const OpenOptions& options);

}  // namespace unifluid::cuda
