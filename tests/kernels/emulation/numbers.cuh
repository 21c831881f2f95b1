// What kernels/numbers.cuh and CUDA itself offer to the kernels of ssd, for a CPU: every thread of
// a block is a fibre, which gives way wherever a warp or the block acts together.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct Index {
    unsigned x, y, z;
};
using std::max;
using std::min;

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    Index threadIdx;
    unsigned slots[16];
    std::vector<std::function<void()>> copies;
    // How many of them each commit ends with.
    std::vector<size_t> committed;
    // The same of bulk copies.
    std::vector<std::function<void()>> bulk_copies;
    std::vector<size_t> bulk_committed;
    bool at_cluster;
    bool done;
};
struct Group {
    int waiting, generation;
};
extern Index blockIdx, gridDim;
extern std::vector<Fibre> fibres;
extern std::vector<Group> warps;
extern Group block, first_threads, barriers[16];
// The fibre that runs, and how many threads have arrived at the barrier of their cluster.
extern int running, at_cluster;
void give_way();
#define threadIdx (fibres[running].threadIdx)

inline void meet(Group& group, int count) {
    const int generation = group.generation;
    if (++group.waiting == count) {
        group.waiting = 0;
        ++group.generation;
    } else {
        while (group.generation == generation) give_way();
    }
}
inline void meet_warp() { meet(warps[running / 32], 32); }
inline void __syncthreads() { meet(block, static_cast<int>(fibres.size())); }
inline void __syncwarp() { meet_warp(); }

// The other lanes' words.
inline unsigned* slots_of(int lane) { return fibres[running / 32 * 32 + lane].slots; }

template <typename T>
T exchanged(T value, int lane) {
    std::memcpy(fibres[running].slots, &value, sizeof(T));
    meet_warp();
    T result;
    std::memcpy(&result, slots_of(lane), sizeof(T));
    meet_warp();
    return result;
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int offset) {
    const int lane = running % 32;
    return exchanged(value, lane >= offset ? lane - offset : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return exchanged(value, running % 32 ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int offset) {
    const int lane = running % 32;
    return exchanged(value, lane + offset < 32 ? lane + offset : lane);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return exchanged(value, lane);
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}

struct alignas(2) half_t {
    unsigned short bits;
};
struct alignas(2) bfloat16_t {
    unsigned short bits;
};
inline float to_float(float value) { return value; }
inline float to_float(bfloat16_t value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
inline float to_float(half_t value) {
    _Float16 half;
    std::memcpy(&half, &value, 2);
    return half;
}
template <typename T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
    return value;
}
template <>
inline half_t from_float<half_t>(float value) {
    const _Float16 half = value;
    half_t result;
    std::memcpy(&result, &half, 2);
    return result;
}
template <>
inline bfloat16_t from_float<bfloat16_t>(float value) {
    const unsigned bits = __float_as_uint(value);
    return {(bits & 0x7fffffffu) > 0x7f800000u
                ? static_cast<unsigned short>(0x7fff)
                : static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};
template <typename A, typename B>
struct IsSame : Flag<false> {};
template <typename A>
struct IsSame<A, A> : Flag<true> {};

template <typename T, int COUNT>
struct Packed {
    T numbers[COUNT];
    static void check(const T* address) {
        if (reinterpret_cast<uintptr_t>(address) % (COUNT * sizeof(T))) {
            std::fprintf(stderr, "an access of %zu bytes is not aligned\n", COUNT * sizeof(T));
            std::abort();
        }
    }
    void load(const T* address) {
        check(address);
        std::memcpy(numbers, address, sizeof numbers);
    }
    void store(T* address) const {
        check(address);
        std::memcpy(address, numbers, sizeof numbers);
    }
    void set_words(unsigned first, unsigned second) {
        std::memcpy(numbers, &first, 4);
        std::memcpy(numbers + 2, &second, 4);
    }
    float number(int i) const { return to_float(numbers[i]); }
    void pack(const float (&from)[COUNT]) {
        for (int i = 0; i < COUNT; ++i) numbers[i] = from_float<T>(from[i]);
    }
};

template <typename T, int COUNT>
void load_once(Packed<T, COUNT>& packed, const T* address) {
    packed.load(address);
}
template <int COUNT, typename T>
void fetch_ahead(const T*, int) {}
inline void wait_for_the_kernel_before() {}
inline void let_the_next_kernel_start() {}
inline void commit_copies() {
    Fibre& fibre = fibres[running];
    fibre.committed.push_back(fibre.copies.size());
}
// Copies are made as late as may be.
inline void wait_for_copies_of(std::vector<std::function<void()>>& copies,
                               std::vector<size_t>& committed, size_t left_over) {
    if (committed.size() <= left_over) return;
    const size_t count = committed[committed.size() - 1 - left_over];
    for (size_t i = 0; i < count; ++i) copies[i]();
    copies.erase(copies.begin(), copies.begin() + count);
    std::vector<size_t> left(committed.end() - left_over, committed.end());
    for (size_t& each : left) each -= count;
    committed = left;
}
template <int LEFT>
void wait_for_copies() {
    Fibre& fibre = fibres[running];
    wait_for_copies_of(fibre.copies, fibre.committed, LEFT);
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
