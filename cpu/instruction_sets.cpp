// Which instruction sets were compiled in, and which of them this processor has.
#include "cpu/kernels.h"

namespace unifluid::cpu {

#define UNIFLUID_DECLARE(isa)                    \
  namespace isa {                                \
  extern const Kernels kKernels;                 \
  extern const TrainingKernels kTrainingKernels; \
  }

#if defined(__x86_64__) || defined(_M_X64)

UNIFLUID_DECLARE(baseline)
UNIFLUID_DECLARE(avx2)
UNIFLUID_DECLARE(avx512)

InstructionSets instruction_sets() {
  // __builtin_cpu_supports asks the operating system, too, whether it saves the wide registers.
  static const InstructionSet sets[] = {
      {"baseline", true, false, &baseline::kKernels, &baseline::kTrainingKernels},
      {"avx2",
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c"),
       false, &avx2::kKernels, &avx2::kTrainingKernels},
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
       __builtin_cpu_supports("avx512bf16") != 0, &avx512::kKernels, &avx512::kTrainingKernels},
  };
  return {sets, 3};
}

#elif defined(__aarch64__)

UNIFLUID_DECLARE(neon)

InstructionSets instruction_sets() {
  static const InstructionSet sets[] = {
      {"neon", true, false, &neon::kKernels, &neon::kTrainingKernels}};
  return {sets, 1};
}

#else
#error "no kernels for this processor"
#endif

}  // namespace unifluid::cpu
