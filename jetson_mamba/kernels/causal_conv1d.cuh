// What the convolution's kernels share. For each channel on its own,
//     out[t] = act(bias + sum_k weight[k] * x[t - (WIDTH-1) + k]),
// with x[t] = initial state for -(WIDTH-1) <= t < 0 (zero if none).
//
// The host defines WIDTH (2 to 4), SILU, SEQ_IDX, STATES (0 or 1), INPUT and WEIGHT (types).
// With SEQ_IDX a tap counts only where both ends carry the same index, and steps with a negative
// index give zero. The initial states belong to the sequence of step 0.
#pragma once
#include "numbers.cuh"

constexpr int HALO = WIDTH - 1;

// BLOCKS, those resident on a multiprocessor, bounds the registers of a thread. Chosen for sm_80 to
// sm_90; the same code needs more registers on what came before, and a few more on what came after.
#if __CUDA_ARCH__ < 800
#define RESIDENT 1
#elif __CUDA_ARCH__ > 900 && BLOCKS > 1
#define RESIDENT (BLOCKS - 1)
#else
#define RESIDENT BLOCKS
#endif

struct Filter {
    float weight[WIDTH];
    float bias;
};

__device__ __forceinline__ Filter load_filter(const WEIGHT* weight, const WEIGHT* bias,
                                              int channel) {
    Filter filter;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) filter.weight[k] = to_float(weight[channel * WIDTH + k]);
    filter.bias = bias ? to_float(bias[channel]) : 0.0f;
    return filter;
}

// The convolution before the activation; window[k] is x[t - HALO + k] and sequence[k] its index.
__device__ __forceinline__ float convolve(const Filter& filter, const float* window,
                                          const int* sequence) {
    float sum = filter.bias;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
#if SEQ_IDX
        if (sequence[k] == sequence[HALO]) sum = fmaf(filter.weight[k], window[k], sum);
#else
        sum = fmaf(filter.weight[k], window[k], sum);
#endif
    }
    return sum;
}

__device__ __forceinline__ float activate(float sum) {
#if SILU
    return sum * sigmoid(sum);
#else
    return sum;
#endif
}

// The derivative of the activation at the convolution's value.
__device__ __forceinline__ float activation_slope(float sum) {
#if SILU
    const float s = sigmoid(sum);
    return s * fmaf(sum, 1.0f - s, 1.0f);
#else
    return 1.0f;
#endif
}

// The index of step t, where row holds those of one batch element.
__device__ __forceinline__ int sequence_at(const int* row, int t, int length) {
#if SEQ_IDX
    return t < length ? row[t < 0 ? 0 : t] : -1;
#else
    return 0;
#endif
}
