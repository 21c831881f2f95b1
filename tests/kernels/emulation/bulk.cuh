// kernels/bulk.cuh for a CPU: a copy is made as late as may be, when its reads are waited for.
#pragma once

#include "matrices.cuh"

inline void store_bulk(void* to, unsigned place, int bytes) {
    const char* from = shared_begin + place;
    if ((reinterpret_cast<uintptr_t>(to) | place | bytes) % 16 || from + bytes > shared_end) {
        std::fprintf(stderr, "a bulk copy lies outside or is not aligned\n");
        std::abort();
    }
    fibres[running].bulk_copies.push_back([=] { std::memcpy(to, from, bytes); });
}
inline void commit_bulk() {
    Fibre& fibre = fibres[running];
    fibre.bulk_committed.push_back(fibre.bulk_copies.size());
}
template <int COUNT>
void wait_for_bulk_reads() {
    Fibre& fibre = fibres[running];
    wait_for_copies_of(fibre.bulk_copies, fibre.bulk_committed, COUNT);
}

struct Arrivals {
    short round, count, left, loads;
};
inline void look_at(Arrivals& barrier) {
    if (barrier.left || barrier.loads) return;
    ++barrier.round;
    barrier.left = barrier.count;
}
inline void begin_arrivals(Arrivals& barrier, int count) {
    const short number = static_cast<short>(count);
    barrier = {0, number, number, 0};
}
inline void show_arrivals() {}
inline void arrive(Arrivals& barrier) {
    if (--barrier.left < 0) {
        std::fprintf(stderr, "more arrive at a barrier than it counts\n");
        std::abort();
    }
    look_at(barrier);
}
// Vectors of 16 bytes are counted.
inline void expect_bytes(Arrivals& barrier, int bytes) {
    barrier.loads += bytes / 16;
    arrive(barrier);
}
inline void load_bulk(unsigned place, const void* from, int bytes, Arrivals& barrier) {
    char* to = shared_begin + place;
    if ((reinterpret_cast<uintptr_t>(from) | place | bytes) % 16 || to + bytes > shared_end) {
        std::fprintf(stderr, "a bulk copy lies outside or is not aligned\n");
        std::abort();
    }
    std::memcpy(to, from, bytes);
    barrier.loads -= bytes / 16;
    look_at(barrier);
}
inline void wait_for_bytes(Arrivals& barrier, int parity) {
    while (barrier.round % 2 == parity) give_way();
}
inline void wait_for_round(Arrivals& barrier, int round) { wait_for_bytes(barrier, round % 2); }
inline void arrive_as_warp(Arrivals& barrier, int lane) {
    __syncwarp();
    if (lane == 0) arrive(barrier);
}
