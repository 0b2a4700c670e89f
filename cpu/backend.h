// The CPU as a Backend: memory of the process, kernels of one instruction set, one thread pool.
#pragma once

#include <cstddef>
#include <memory>

#include "core/backend.h"

namespace unifluid {

// `threads`: at least 1, the calling thread included; above the processor's count it only wastes
// time. `isa`: a name of cpu::instruction_sets(), or null for the best that this processor has.
// `max_memory`: bytes that may be allocated together (allocate, vector, convolution_weight); 0:
// what the system has free when asked. `bf16`: products with matrices that are stored in bfloat16
// round the other operand, too, where the instruction set multiplies those; sums, activations and
// everything else stay float32. Training (core/training_backend.h) says so product by product.
// Throws INVALID_ARGUMENT for an instruction set that is unknown or that this processor lacks and
// for a number of threads outside 1 to 1024, and DEVICE_ERROR where the system gives fewer threads.
std::unique_ptr<Backend> make_cpu_backend(int threads, const char* isa, size_t max_memory,
                                          bool bf16 = false);

}  // namespace unifluid
