// What kernels/numbers.cuh and CUDA itself offer to the kernels, for a CPU: every thread of a block
// is a fibre, which gives way wherever a warp or the block acts together.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __CUDA_ARCH__ 800
#define __host__
#define __device__
#define __global__
// Blocks run one after the other, so what one of them shares may be there once.
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
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
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
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
    bool done;
};
struct Group {
    int waiting, generation;
};
extern Index blockIdx, blockDim, gridDim;
extern std::vector<Fibre> fibres;
extern std::vector<Group> warps;
extern Group block, first_threads, barriers[16];
// The fibre that runs.
extern int running;
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
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = static_cast<float>(std::sin(x * 3.14159265358979323846));
    *cosine = static_cast<float>(std::cos(x * 3.14159265358979323846));
}
template <typename T>
T __ldg(const T* address) {
    return *address;
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
struct alignas(COUNT * sizeof(T) < 4 ? 4 : COUNT * sizeof(T)) Packed {
    static constexpr int bytes = COUNT * sizeof(T);
    static constexpr int count = (bytes + 3) / 4;
    unsigned words[count];

    static void check(const T* address) {
        if (reinterpret_cast<uintptr_t>(address) % bytes) {
            std::fprintf(stderr, "an access of %d bytes is not aligned\n", bytes);
            std::abort();
        }
    }
    void load(const T* address) {
        check(address);
        std::memcpy(words, address, bytes);
    }
    void store(T* address) const {
        check(address);
        std::memcpy(address, words, bytes);
    }
    void load_some(const T* address, int limit) {
        std::memset(words, 0, sizeof words);
        if (limit > 0) std::memcpy(words, address, min(limit, COUNT) * sizeof(T));
    }
    void store_some(T* address, int limit) const {
        if (limit > 0) std::memcpy(address, words, min(limit, COUNT) * sizeof(T));
    }
    T at(int i) const {
        T number;
        std::memcpy(&number, reinterpret_cast<const char*>(words) + i * sizeof(T), sizeof(T));
        return number;
    }
    float number(int i) const { return to_float(at(i)); }
    void pack(const float (&from)[COUNT]) {
        for (int i = 0; i < COUNT; ++i) {
            const T number = from_float<T>(from[i]);
            std::memcpy(reinterpret_cast<char*>(words) + i * sizeof(T), &number, sizeof(T));
        }
    }
    void set_words(unsigned first, unsigned second) { words[0] = first, words[1] = second; }
};

template <typename T, int COUNT>
void load_once(Packed<T, COUNT>& packed, const T* address) {
    packed.load(address);
}
template <int COUNT, typename T>
void fetch_ahead(const T*, int) {}
template <typename T>
T* settled(T* address) {
    return address;
}
inline long long hidden(int value) { return value; }
template <typename T, int COUNT>
void copy_async(Packed<T, COUNT>* shared, const T* global) {
    Packed<T, COUNT>::check(global);
    // Smaller ones a GPU makes at once.
    if (Packed<T, COUNT>::bytes < 4)
        shared->load(global);
    else
        fibres[running].copies.push_back([=] { shared->load(global); });
}
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
inline float log2_fast(float x) { return std::log2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// kernels/selective_scan.cuh says which numbers of which matrix a lane has.
inline void multiply(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1,
                     const float (&c)[4]) {
    const float given[6] = {a0, a1, a2, a3, b0, b1};
    for (int i = 0; i < 6; ++i)
        fibres[running].slots[i] = __float_as_uint(given[i]) & 0xffffe000u;
    meet_warp();
    const int lane = running % 32, row = lane / 4, column = lane % 4;
    for (int i = 0; i < 4; ++i) {
        double sum = c[i];
        for (int k = 0; k < 8; ++k)
            sum += static_cast<double>(
                       __uint_as_float(slots_of(4 * row + k % 4)[i / 2 + k / 4 * 2])) *
                   __uint_as_float(slots_of(4 * (2 * column + i % 2) + k % 4)[4 + k / 4]);
        d[i] = static_cast<float>(sum);
    }
    meet_warp();
}
