// What Hopper adds (test/simt/execution.h for the rest): barriers in shared memory that count
// arrivals and bytes, bulk copies of tensors that complete on them, and products of warpgroups,
// groups of four warps, whose operands lie in shared memory.
//
// Copies and products are asynchronous: here they happen as late as the program allows, a copy when
// somebody waits at its barrier, a product at its wait. Found besides:
//
//  - shared memory read by a product before its copy was waited for, or written by ordinary stores
//    (cp.async too) without a fence of the asynchronous proxy and a barrier
//  - shared memory written while a product that reads it may still run
//  - products without a fence before them, or that nobody waited for
//  - threads of a warpgroup that do not issue the same products
//  - arrivals and bytes that do not add up to a phase
#pragma once

#include <initializer_list>

#include "test/simt/cuda.h"
#include "test/simt/execution.h"

namespace simt {

void mbarrier_init(void* barrier, uint32_t arrivals);
// Arrives, after `bytes` more were expected in this phase.
void mbarrier_arrive(void* barrier, uint32_t bytes);
// Arrives once the calling thread's cp.async so far are done, which then count as waited for.
void cp_async_arrive(void* barrier);
// Returns when the phase of this parity is over.
void mbarrier_wait(void* barrier, uint32_t parity, Place place);
// The box whose first element has these coordinates, from the innermost on: rows of 128 bytes,
// swizzled, zeros outside.
void tensor_copy(void* to, const CUtensorMap* map, std::initializer_list<int> first, void* barrier);

// This thread's writes to shared memory so far become visible to copies and products.
void fence_proxy_async();

// d [64, n] += a [64, 16] b [16, n] of the calling thread's warpgroup. `a` are four registers, or
// null: then a_descriptor says where it is. a_columns, b_columns: what lies together are neighbours
// of a row or column of the product, not of its k.
void warpgroup_product(float* d, int n, const uint32_t* a, uint64_t a_descriptor, bool a_columns,
                       uint64_t b_descriptor, bool b_columns);
void warpgroup_fence();
void warpgroup_commit();
// Until at most `pending` of the latest groups are unfinished.
void warpgroup_wait(size_t pending, Place place);

// Whether the order of a product's sums is another than that of a warp's: a setting.
bool rounds_otherwise();

// The start-address field of a descriptor.
uint64_t shared_address(const void* data);

}  // namespace simt
