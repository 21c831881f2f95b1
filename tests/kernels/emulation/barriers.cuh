// kernels/barriers.cuh for a CPU.
#pragma once

#include "matrices.cuh"

struct alignas(8) Barrier {
    // Vectors of 16 bytes are counted.
    short round, count, left, loads;

    void begin(int arrivals) {
        count = left = static_cast<short>(arrivals);
        round = loads = 0;
    }
    void arrive() {
        if (--left < 0) {
            std::fprintf(stderr, "more arrive at a barrier than it counts\n");
            std::abort();
        }
        end_if_all_are_there();
    }
    void arrive_as_warp(int lane) {
        __syncwarp();
        if (lane == 0) arrive();
    }
    void arrive_when_copied() {
        commit_copies();
        wait_for_copies<0>();
        arrive();
    }
    void arrive_expecting(int bytes) {
        loads += bytes / 16;
        arrive();
    }
    void come(int bytes) {
        loads -= bytes / 16;
        end_if_all_are_there();
    }
    void wait(int parity) {
        while (round % 2 == parity) give_way();
    }
    void wait_for_round(int number) { wait(number % 2); }

   private:
    void end_if_all_are_there() {
        if (left || loads) return;
        ++round;
        left = count;
    }
};
inline void show_barriers() {}
