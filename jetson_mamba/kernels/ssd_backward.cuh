// What both kernels of the gradients of Mamba-2's scan share: sums over lanes.
#pragma once

#define WITH_SLOPES
#include "ssd.cuh"

// What a row of four lanes has, together; all four get it.
__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// What eight lanes of a column have.
__device__ __forceinline__ float sum_of_column(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 4);
    value += __shfl_xor_sync(0xffffffffu, value, 8);
    return value + __shfl_xor_sync(0xffffffffu, value, 16);
}
__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}
// Of what all lanes have, what lies behind a lane and what before it.
__device__ __forceinline__ void sums_around(float& behind, float& before, int lane) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const float later = __shfl_down_sync(0xffffffffu, behind, offset);
        const float earlier = __shfl_up_sync(0xffffffffu, before, offset);
        if (lane + offset < 32) behind += later;
        if (lane >= offset) before += earlier;
    }
    behind = __shfl_down_sync(0xffffffffu, behind, 1);
    before = __shfl_up_sync(0xffffffffu, before, 1);
    if (lane == 31) behind = 0.0f;
    if (lane == 0) before = 0.0f;
}
