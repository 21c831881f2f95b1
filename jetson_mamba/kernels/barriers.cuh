// Barriers in shared memory, of sm_90 and later, in rounds that follow one another: each ends when so
// many have arrived, and the bytes are there that some of them expect. Who waits for a round tells its
// parity, 0 for the first, and waits for nobody's sake but its own.
#pragma once

#include "matrices.cuh"

struct Barrier {
    unsigned long long word;

    // By one thread, before a block's others use it.
    __device__ __forceinline__ void begin(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                     :
                     : "r"(shared_address(&word)), "r"(arrivals)
                     : "memory");
    }
    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
                     :
                     : "r"(shared_address(&word))
                     : "memory");
    }
    // After all that its lanes did, a warp arrives, as one.
    __device__ __forceinline__ void arrive_as_warp(int lane) {
        __syncwarp();
        if (lane == 0) arrive();
    }
    // When the copies that this thread has begun are there; it goes on at once.
    __device__ __forceinline__ void arrive_when_copied() {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
                     :
                     : "r"(shared_address(&word))
                     : "memory");
    }
    // Arrives, and the round does not end before so many bytes have come.
    __device__ __forceinline__ void arrive_expecting(int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                     :
                     : "r"(shared_address(&word)), "r"(bytes)
                     : "memory");
    }
    __device__ __forceinline__ void wait(int parity) {
        asm volatile(
            "{.reg .pred p; WAITING: "
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; "
            "@!p bra WAITING;}"
            :
            : "r"(shared_address(&word)), "r"(parity)
            : "memory");
    }
    // For the round of a number.
    __device__ __forceinline__ void wait_for_round(int round) { wait(round % 2); }
};

// What `begin` wrote is seen by the copy engine.
__device__ __forceinline__ void show_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
