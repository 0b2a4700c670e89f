// Products of a warpgroup, four warps beginning at a multiple of four (sm_90a): wgmma m64nNk16 with
// bf16 operands and float accumulators.
//
// b, and a where it is not in registers, are in shared memory, named by descriptors. A tile lies
// there in panels of 64 columns: a row of a panel is 128 bytes, and its pieces of 16 bytes are
// permuted (`swizzled`), so that the 8 rows that are read at once lie in different banks. Panels
// begin at multiples of 1024 bytes. (PTX ISA, "Asynchronous warpgroup level matrix shared memory
// layout"; "Matrix descriptor format".)
//
// Products run on while the warpgroup goes on. Before the first of a batch `warpgroup_fence` orders
// the registers, after the last `warpgroup_commit` closes the batch; accumulators, and what was
// read, are free after `warpgroup_wait`. Accumulators are as those of mma.m16n8k16 (mma.h): warp w
// has rows 16 w on, piece j columns 8 j on.
//
// Shared memory that threads wrote, by cp.async too, is seen by products after
// `fence_async_proxy` in the writer and a barrier behind it.
#pragma once

#include "cuda/device/mma.h"

// Whether the code being compiled may use these: not in the passes for other architectures.
#if defined(UNIFLUID_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define UNIFLUID_WARPGROUPS 1
#endif

namespace unifluid::cuda {

inline constexpr int kWarpgroup = 128;
inline constexpr int kPanelColumns = 64;
// Elements of the 8 rows after which the permutation repeats, and its alignment.
inline constexpr uint32_t kSwizzleUnit = 8 * kPanelColumns;

// Where in a panel an element is; panels of `rows` rows lie one after another.
UNIFLUID_DEVICE uint32_t swizzled(uint32_t row, uint32_t column) {
  return row * kPanelColumns + ((column / 8 ^ row % 8) * 8) + column % 8;
}

#ifdef UNIFLUID_WARPGROUPS

namespace descriptor {

UNIFLUID_DEVICE uint64_t make(const Shared<bf16>& tile, uint32_t index, uint32_t leading_bytes,
                              uint32_t stride_bytes, uint64_t swizzle) {
#ifdef UNIFLUID_SIMT
  const uint64_t address = simt::shared_address(tile.address(index));
#else
  const uint64_t address = __cvta_generic_to_shared(tile.address(index));
#endif
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | swizzle << 62;
}

inline constexpr uint32_t kUnitBytes = kSwizzleUnit * sizeof(bf16);

// 16 columns, from a multiple of 16, of the rows of a panel; the columns are the product's k.
UNIFLUID_DEVICE uint64_t of_rows(const Shared<bf16>& tile, uint32_t index) {
  return make(tile, index, 16, kUnitBytes, 1);
}
// 16 rows, from a multiple of 8, of panels that are `panel` elements apart; the rows are k.
UNIFLUID_DEVICE uint64_t of_columns(const Shared<bf16>& tile, uint32_t index, uint32_t panel) {
  return make(tile, index, panel * static_cast<uint32_t>(sizeof(bf16)), kUnitBytes, 1);
}
// What lies so many elements, a multiple of 8, behind what `d` describes. The address is in the low
// bits, which all of shared memory does not exhaust: one addition, where `make` is a handful.
UNIFLUID_DEVICE uint64_t further(uint64_t d, uint32_t elements) {
  const uint32_t low =
      static_cast<uint32_t>(d) + elements * static_cast<uint32_t>(sizeof(bf16)) / 16;
  return d >> 32 << 32 | low;
}
// Eight rows of 16 columns, in two blocks of 8 columns, without permutation.
UNIFLUID_DEVICE uint64_t of_eight_rows(const Shared<bf16>& tile) {
  return make(tile, 0, 128, 256, 0);
}

}  // namespace descriptor

// By all threads of the warpgroup.
UNIFLUID_DEVICE void warpgroup_fence() {
#ifdef UNIFLUID_SIMT
  simt::warpgroup_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

UNIFLUID_DEVICE void warpgroup_commit() {
#ifdef UNIFLUID_SIMT
  simt::warpgroup_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most kPending of the latest batches are unfinished.
#ifdef UNIFLUID_SIMT
template <int kPending>
void warpgroup_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::warpgroup_wait(kPending, {file, line});
}
#else
template <int kPending>
UNIFLUID_DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
#endif

// The compiler does not know that products write accumulators after their instruction: it must not
// move accesses to them across a fence or a wait, and this stands beside both.
template <int kPieces>
UNIFLUID_DEVICE void keep_in_place(FragmentC (&d)[kPieces]) {
#ifndef UNIFLUID_SIMT
#pragma unroll
  for (int j = 0; j < kPieces; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[j].x[e])::"memory");
#else
  (void)d;
#endif
}

// Likewise of operands in registers, which must be there before the first product of a batch.
template <int kCount>
UNIFLUID_DEVICE void keep_in_place(FragmentA (&a)[kCount]) {
#ifndef UNIFLUID_SIMT
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[j].x[i])::"memory");
#else
  (void)a;
#endif
}

UNIFLUID_DEVICE void fence_async_proxy() {
#ifdef UNIFLUID_SIMT
  simt::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Registers of a thread of this warpgroup, from here on; multiples of 8. The kernel's launch bounds
// say how many each has before, and all warpgroups together must keep within that.
template <int kCount>
UNIFLUID_DEVICE void take_registers() {
#ifndef UNIFLUID_SIMT
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
UNIFLUID_DEVICE void give_registers() {
#ifndef UNIFLUID_SIMT
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

#ifdef UNIFLUID_SIMT

// d [64, 8 kPieces] += a [64, 16] b [16, 8 kPieces], each operand a descriptor of rows or of
// columns.
template <bool kColumnsA, bool kColumnsB, int kPieces>
void warpgroup_mma(FragmentC (&d)[kPieces], uint64_t a, uint64_t b) {
  simt::warpgroup_product(d[0].x, 8 * kPieces, nullptr, a, kColumnsA, b, kColumnsB);
}
// a in registers, b a descriptor of rows or of columns.
template <bool kColumns, int kPieces>
void warpgroup_mma(FragmentC (&d)[kPieces], const FragmentA& a, uint64_t b) {
  simt::warpgroup_product(d[0].x, 8 * kPieces, a.x, 0, false, b, kColumns);
}

#else

#define UNIFLUID_D1(j) "+f"(d[j].x[0]), "+f"(d[j].x[1]), "+f"(d[j].x[2]), "+f"(d[j].x[3])
#define UNIFLUID_D8(j)                                                                            \
  UNIFLUID_D1(j), UNIFLUID_D1(j + 1), UNIFLUID_D1(j + 2), UNIFLUID_D1(j + 3), UNIFLUID_D1(j + 4), \
      UNIFLUID_D1(j + 5), UNIFLUID_D1(j + 6), UNIFLUID_D1(j + 7)
#define UNIFLUID_D5(j) \
  UNIFLUID_D1(j), UNIFLUID_D1(j + 1), UNIFLUID_D1(j + 2), UNIFLUID_D1(j + 3), UNIFLUID_D1(j + 4)
#define UNIFLUID_D16(j) UNIFLUID_D8(j), UNIFLUID_D8(j + 8)
#define UNIFLUID_D18(j) UNIFLUID_D16(j), UNIFLUID_D1(j + 16), UNIFLUID_D1(j + 17)
#define UNIFLUID_D32(j) UNIFLUID_D16(j), UNIFLUID_D16(j + 16)
#define UNIFLUID_R5 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19"
#define UNIFLUID_R8                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define UNIFLUID_R16                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define UNIFLUID_R18                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71"
#define UNIFLUID_R32                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d [64, 8 kPieces] += a [64, 16] b [16, 8 kPieces], each operand a descriptor of rows or of
// columns.
template <bool kColumnsA, bool kColumnsB, int kPieces>
UNIFLUID_DEVICE void warpgroup_mma(FragmentC (&d)[kPieces], uint64_t a, uint64_t b) {
  static_assert(kPieces == 5 || kPieces == 8 || kPieces == 16 || kPieces == 18 || kPieces == 32);
  if constexpr (kPieces == 5)
    asm volatile("wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {" UNIFLUID_R5
                 "}, %20, %21, 1, 1, 1, %22, %23;"
                 : UNIFLUID_D5(0)
                 : "l"(a), "l"(b), "n"(kColumnsA ? 1 : 0), "n"(kColumnsB ? 1 : 0));
  else if constexpr (kPieces == 18)
    asm volatile("wgmma.mma_async.sync.aligned.m64n144k16.f32.bf16.bf16 {" UNIFLUID_R18
                 "}, %72, %73, 1, 1, 1, %74, %75;"
                 : UNIFLUID_D18(0)
                 : "l"(a), "l"(b), "n"(kColumnsA ? 1 : 0), "n"(kColumnsB ? 1 : 0));
  else if constexpr (kPieces == 8)
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" UNIFLUID_R8
                 "}, %32, %33, 1, 1, 1, %34, %35;"
                 : UNIFLUID_D8(0)
                 : "l"(a), "l"(b), "n"(kColumnsA ? 1 : 0), "n"(kColumnsB ? 1 : 0));
  else if constexpr (kPieces == 16)
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" UNIFLUID_R16
                 "}, %64, %65, 1, 1, 1, %66, %67;"
                 : UNIFLUID_D16(0)
                 : "l"(a), "l"(b), "n"(kColumnsA ? 1 : 0), "n"(kColumnsB ? 1 : 0));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" UNIFLUID_R32
                 "}, %128, %129, 1, 1, 1, %130, %131;"
                 : UNIFLUID_D32(0)
                 : "l"(a), "l"(b), "n"(kColumnsA ? 1 : 0), "n"(kColumnsB ? 1 : 0));
}

// a in registers, b a descriptor of rows or of columns.
template <bool kColumns, int kPieces>
UNIFLUID_DEVICE void warpgroup_mma(FragmentC (&d)[kPieces], const FragmentA& a, uint64_t b) {
  static_assert(kPieces == 1 || kPieces == 8 || kPieces == 16 || kPieces == 32);
  if constexpr (kPieces == 1)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "%8, 1, 1, 1, %9;"
        : UNIFLUID_D1(0)
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "n"(kColumns ? 1 : 0));
  else if constexpr (kPieces == 8)
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" UNIFLUID_R8
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                 : UNIFLUID_D8(0)
                 : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b),
                   "n"(kColumns ? 1 : 0));
  else if constexpr (kPieces == 16)
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" UNIFLUID_R16
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, %69;"
                 : UNIFLUID_D16(0)
                 : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b),
                   "n"(kColumns ? 1 : 0));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" UNIFLUID_R32
                 "}, {%128, %129, %130, %131}, %132, 1, 1, 1, %133;"
                 : UNIFLUID_D32(0)
                 : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b),
                   "n"(kColumns ? 1 : 0));
}

#undef UNIFLUID_D1
#undef UNIFLUID_D5
#undef UNIFLUID_D8
#undef UNIFLUID_D16
#undef UNIFLUID_D18
#undef UNIFLUID_D32
#undef UNIFLUID_R5
#undef UNIFLUID_R8
#undef UNIFLUID_R16
#undef UNIFLUID_R18
#undef UNIFLUID_R32
#endif
#endif

}  // namespace unifluid::cuda
