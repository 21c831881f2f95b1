// What the passes of a norm share: which elements a thread has of a row, and sums over a row.
//
// THREADS threads take a row of `group` elements, ROWS rows stand in a block. A thread has ROUNDS
// runs of VECTOR neighbouring elements, THREADS runs apart, so that each access of a warp is one
// stretch of memory, and keeps them in registers between the passes over the row.
#pragma once
#include "numbers.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int ELEMENTS = ROUNDS * VECTOR;

// Neighbouring elements of any dtype, in as many accesses as their bytes take.
template <typename T>
struct Run {
    static constexpr int size = VECTOR * sizeof(T) > 16 ? 16 / sizeof(T) : VECTOR;
    static constexpr int count = VECTOR / size;
    Packed<T, size> parts[count];

    __device__ __forceinline__ void load(const T* address) {
#pragma unroll
        for (int i = 0; i < count; ++i) parts[i].load(address + i * size);
    }
    __device__ __forceinline__ float number(int i) const {
        return parts[i / size].number(i % size);
    }
};

template <typename T>
__device__ __forceinline__ void store_run(T* address, const float* numbers) {
    constexpr int size = Run<T>::size;
#pragma unroll
    for (int i = 0; i < Run<T>::count; ++i) {
        float part[size];
        Packed<T, size> packed;
#pragma unroll
        for (int j = 0; j < size; ++j) part[j] = numbers[i * size + j];
        packed.pack(part);
        packed.store(address + i * size);
    }
}

// Where the run of a round stands in the row.
__device__ __forceinline__ int place(int round) {
    return (round * THREADS + static_cast<int>(threadIdx.x)) * VECTOR;
}

// Sums over the threads of a row, in an order that depends on nothing. All threads of the block
// call it alike; `turn` differs from one call to the next, so that a sum is read before the place
// that it stands in is written again.
__device__ __forceinline__ float row_sum(float value, int turn) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    if constexpr (WARPS > 1) {
        __shared__ float sums[2][ROWS][WARPS];
        if (threadIdx.x % 32 == 0) sums[turn & 1][threadIdx.y][threadIdx.x / 32] = value;
        __syncthreads();
        value = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) value += sums[turn & 1][threadIdx.y][warp];
    }
    return value;
}

template <typename T>
__device__ __forceinline__ void fetch(const T* address) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
}

__device__ __forceinline__ float silu(float z) { return z * sigmoid(z); }

struct Stats {
    float mean, rstd;
};

// Of the elements of a row; those past its end are 0.
__device__ __forceinline__ Stats stats_of(const float (&values)[ELEMENTS], int group, float eps,
                                          int& turn) {
    float mean = 0.0f, squares = 0.0f;
    if constexpr (!RMS) {
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) mean += values[i];
        mean = row_sum(mean, turn++) / group;
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        if (place(round) < group) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                const float apart = values[round * VECTOR + i] - mean;
                squares += apart * apart;
            }
        }
    }
    return {mean, 1.0f / sqrtf(row_sum(squares, turn++) / group + eps)};
}
