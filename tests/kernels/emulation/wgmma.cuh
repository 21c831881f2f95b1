// kernels/wgmma.cuh for a CPU: a product is made when it is begun, of what then lies in shared memory.
#pragma once

#include "matrices.cuh"

inline void begin_products() {}
inline void commit_products() {}
template <int COUNT>
void wait_for_products() {}
template <int COUNT>
void settle(float (&)[COUNT][4]) {}
inline void show_to_products() {}
template <int COUNT>
void leave_registers() {}
template <int COUNT>
void take_registers() {}

inline Group& numbered(int number) {
    if (number < 0 || number > 15) {
        std::fprintf(stderr, "there is no barrier of the number %d\n", number);
        std::abort();
    }
    return barriers[number];
}
template <int COUNT>
void meet_at(int number) {
    meet(numbered(number), COUNT);
}
template <int COUNT>
void arrive_at(int number) {
    Group& group = numbered(number);
    if (++group.waiting == COUNT) {
        group.waiting = 0;
        ++group.generation;
    }
}

inline unsigned fused(unsigned a, unsigned b, unsigned c, bfloat16_t) {
    unsigned result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto of = [=](unsigned word) {
            return to_float(bfloat16_t{static_cast<unsigned short>(word >> shift)});
        };
        const double sum = static_cast<double>(of(a)) * of(b) + of(c);
        result |= from_float<bfloat16_t>(static_cast<float>(sum)).bits << shift;
    }
    return result;
}
inline void store_matrices(unsigned place, const unsigned (&from)[4]) {
    std::memcpy(fibres[running].slots, &place, sizeof place);
    meet_warp();
    const int lane = running % 32, g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) {
        char* row = shared_begin + slots_of(8 * i + g)[0] + 4 * q;
        if (row < shared_begin || row + 4 > shared_end) {
            std::fprintf(stderr, "a row of stmatrix lies outside\n");
            std::abort();
        }
        std::memcpy(row, &from[i], 4);
    }
    meet_warp();
}

// A number of a matrix in shared memory: of the axis that is summed over `k`, of the other `i`.
template <typename E>
float described(unsigned long long matrix, bool sums_over_rows, int i, int k, E) {
    const unsigned address = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4,
                   stride = (matrix >> 32 & 0x3fff) << 4;
    unsigned place = sums_over_rows
                         ? address + i / 64 * leading + i % 64 * 2 + k % 8 * 128 + k / 8 * stride
                         : address + i / 8 * stride + i % 8 * 128 + k * 2;
    place ^= (place >> 7 & 7) << 4;
    E value;
    const char* from = shared_begin + place;
    if (matrix >> 62 != 1 || from + 2 > shared_end) {
        std::fprintf(stderr, "a factor of a product lies outside or is not exchanged\n");
        std::abort();
    }
    std::memcpy(&value, from, 2);
    return to_float(value);
}
template <int COUNT, typename Left, typename Right>
void add_group(float (&c)[COUNT][4], Left left, Right right) {
    const int g = running % 32 / 4, q = running % 4;
    for (int j = 0; j < COUNT; ++j)
        for (int e = 0; e < 4; ++e) {
            double sum = 0;
            for (int k = 0; k < 16; ++k)
                sum += static_cast<double>(left(g + e / 2 * 8, k)) * right(8 * j + 2 * q + e % 2, k);
            c[j][e] += static_cast<float>(sum);
        }
}
template <int COUNT, typename E>
void multiply_groups(float (&c)[COUNT][4], unsigned long long a, unsigned long long b, bool add,
                     E) {
    if (!add)
        for (auto& numbers : c)
            for (float& number : numbers) number = 0;
    const int first_row = running / 32 % 4 * 16;
    add_group(
        c, [=](int i, int k) { return described(a, false, first_row + i, k, E{}); },
        [=](int i, int k) { return described(b, false, i, k, E{}); });
}
template <typename Right, int COUNT, typename E>
void add_group_of_words(float (&c)[COUNT][4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                        Right right, E) {
    unsigned* mine = fibres[running].slots;
    mine[0] = a0, mine[1] = a1, mine[2] = a2, mine[3] = a3;
    meet_warp();
    add_group(
        c,
        [=](int i, int k) {
            const unsigned word = slots_of(i % 8 * 4 + k % 8 / 2)[i / 8 + k / 8 * 2];
            return to_float(E{static_cast<unsigned short>(word >> (16 * (k % 2)))});
        },
        right);
    meet_warp();
}
template <int COUNT, typename E>
void multiply_groups(float (&c)[COUNT][4], const unsigned (&a)[4], unsigned long long b, bool add,
                     E) {
    if (!add)
        for (auto& numbers : c)
            for (float& number : numbers) number = 0;
    add_group_of_words(c, a[0], a[1], a[2], a[3],
                       [=](int i, int k) { return described(b, false, i, k, E{}); }, E{});
}
template <int COUNT, typename E>
void add_groups(float (&c)[COUNT][4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                unsigned long long b, E) {
    add_group_of_words(c, a0, a1, a2, a3,
                       [=](int i, int k) { return described(b, true, i, k, E{}); }, E{});
}
