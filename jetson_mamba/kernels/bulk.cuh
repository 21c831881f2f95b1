// Copies of many bytes between shared and device memory in one instruction, of sm_90 and later, which
// the copy engine makes while threads go on. Addresses and sizes are multiples of 16 bytes.
#pragma once

#include "matrices.cuh"

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

// A barrier in shared memory, in rounds: each ends when so many have arrived, and the bytes are there
// that some of them expect.
struct alignas(8) Arrivals {
    unsigned long long bits;
};
__device__ __forceinline__ void begin_arrivals(Arrivals& barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :
                 : "r"(shared_address(&barrier)), "r"(count)
                 : "memory");
}
__device__ __forceinline__ void arrive(Arrivals& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
                 :
                 : "r"(shared_address(&barrier))
                 : "memory");
}
// What begin_arrivals wrote is seen by the copy engine.
__device__ __forceinline__ void show_arrivals() {
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
// Arrives, too.
__device__ __forceinline__ void expect_bytes(Arrivals& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void load_bulk(unsigned shared, const void* from, int bytes,
                                          Arrivals& barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :
        : "r"(shared), "l"(from), "r"(bytes), "r"(shared_address(&barrier))
        : "memory");
}
// Waits for the end of the round of this parity: 0 is the first.
__device__ __forceinline__ void wait_for_bytes(Arrivals& barrier, int parity) {
    asm volatile(
        "{.reg .pred there; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1; "
        "@!there bra AGAIN;}"
        :
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
}

// The same, for a round of a number.
__device__ __forceinline__ void wait_for_round(Arrivals& barrier, int round) {
    wait_for_bytes(barrier, round % 2);
}
// After all that its lanes did, a warp arrives, as one.
__device__ __forceinline__ void arrive_as_warp(Arrivals& barrier, int lane) {
    __syncwarp();
    if (lane == 0) arrive(barrier);
}
