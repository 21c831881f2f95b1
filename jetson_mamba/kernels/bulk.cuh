// Copies of many bytes between shared and device memory in one instruction, of sm_90 and later, which
// the copy engine makes while threads go on. Addresses and sizes are multiples of 16 bytes.
#pragma once

#include "barriers.cuh"

// From shared memory; what was written there is shown first (`show_to_products`), and a barrier.
// The thread that starts a copy is the one that commits it and waits for it.
__device__ __forceinline__ void store_bulk(void* to, unsigned shared, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 :
                 : "l"(to), "r"(shared), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void commit_bulk() {
    asm volatile("cp.async.bulk.commit_group;" : : : "memory");
}
// Waits until of all but the last COUNT groups the bytes in shared memory have been read.
template <int COUNT>
__device__ __forceinline__ void wait_for_bulk_reads() {
    asm volatile("cp.async.bulk.wait_group.read %0;" : : "n"(COUNT) : "memory");
}

// To shared memory; the barrier's round ends when the bytes are there.
__device__ __forceinline__ void load_bulk(unsigned shared, const void* from, int bytes,
                                          Barrier& barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :
        : "r"(shared), "l"(from), "r"(bytes), "r"(shared_address(&barrier))
        : "memory");
}
