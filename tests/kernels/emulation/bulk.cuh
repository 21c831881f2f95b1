// kernels/bulk.cuh for a CPU: a copy is made as late as may be, when its reads are waited for.
#pragma once

#include "barriers.cuh"

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

inline void load_bulk(unsigned place, const void* from, int bytes, Barrier& barrier) {
    char* to = shared_begin + place;
    if ((reinterpret_cast<uintptr_t>(from) | place | bytes) % 16 || to + bytes > shared_end) {
        std::fprintf(stderr, "a bulk copy lies outside or is not aligned\n");
        std::abort();
    }
    std::memcpy(to, from, bytes);
    barrier.come(bytes);
}
