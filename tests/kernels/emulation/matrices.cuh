// kernels/matrices.cuh for a CPU.
#pragma once

#include "numbers.cuh"

extern char* shared_begin;
extern char* shared_end;

inline unsigned shared_address(const void* place) {
    return static_cast<unsigned>(static_cast<const char*>(place) - shared_begin);
}
inline void load_eight_by_eight(unsigned (&to)[4], unsigned place, bool transposed) {
    const char* address = shared_begin + place;
    const unsigned short* row = reinterpret_cast<const unsigned short*>(address);
    if (address < shared_begin || address + 16 > shared_end ||
        reinterpret_cast<uintptr_t>(address) % 16) {
        std::fprintf(stderr, "a row of ldmatrix lies outside or is not aligned\n");
        std::abort();
    }
    std::memcpy(fibres[running].slots, &row, sizeof row);
    meet_warp();
    const int lane = running % 32, g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) {
        unsigned short pair[2];
        for (int e = 0; e < 2; ++e) {
            const unsigned short* from;
            std::memcpy(&from, slots_of(8 * i + (transposed ? 2 * q + e : g)), sizeof from);
            pair[e] = from[transposed ? g : 2 * q + e];
        }
        to[i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
    meet_warp();
}
inline void load_matrices(unsigned (&to)[4], unsigned row) {
    load_eight_by_eight(to, row, false);
}
inline void load_matrices_transposed(unsigned (&to)[4], unsigned row) {
    load_eight_by_eight(to, row, true);
}

template <typename E>
void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                  unsigned b1, E) {
    unsigned* mine = fibres[running].slots;
    mine[0] = a0, mine[1] = a1, mine[2] = a2, mine[3] = a3, mine[4] = b0, mine[5] = b1;
    meet_warp();
    const int lane = running % 32, g = lane / 4, q = lane % 4;
    const auto half = [](unsigned word, int high) {
        return to_float(E{static_cast<unsigned short>(word >> (16 * high))});
    };
    for (int i = 0; i < 4; ++i) {
        const int row = i / 2, column = 2 * q + i % 2;
        double sum = 0;
        for (int k = 0; k < 16; ++k) {
            const float a = half(slots_of(4 * g + k % 8 / 2)[row + k / 8 * 2], k % 2);
            const float b = half(slots_of(4 * column + k % 8 / 2)[4 + k / 8], k % 2);
            sum += static_cast<double>(a) * b;
        }
        c[i] += static_cast<float>(sum);
    }
    meet_warp();
}

template <typename E>
unsigned packed_pair(float low, float high, E) {
    return from_float<E>(low).bits | static_cast<unsigned>(from_float<E>(high).bits) << 16;
}
inline void copy_16_async(unsigned place, const void* global, bool there) {
    if (there && reinterpret_cast<uintptr_t>(global) % 16) {
        std::fprintf(stderr, "a copy of 16 bytes is not aligned\n");
        std::abort();
    }
    char* shared = shared_begin + place;
    fibres[running].copies.push_back([=] {
        if (there)
            std::memcpy(shared, global, 16);
        else
            std::memset(shared, 0, 16);
    });
}
template <int COUNT>
void meet_first() {
    meet(first_threads, COUNT);
}
