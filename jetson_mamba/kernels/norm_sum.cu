// Adds the gradients of a norm's weight and bias that the blocks of its backward pass left, in a
// fixed order.
//
// partial is (parts, columns) in float: the weight's columns, then the bias's if there is one.
// Thirty-two threads share a column, each summing every thirty-second part.
// Definitions: WEIGHT. Grid: (columns / 32); block: (32, 32).
#include "numbers.cuh"

constexpr int SHARES = 32;

extern "C" __global__ void __launch_bounds__(32 * SHARES) norm_sum(
    const float* __restrict__ partial, WEIGHT* __restrict__ dweight, WEIGHT* __restrict__ dbias,
    long long parts, long long columns, long long dim) {
    __shared__ float sums[SHARES][33];
    wait_for_the_kernel_before();
    const long long column = blockIdx.x * 32LL + threadIdx.x;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (long long part = threadIdx.y; part < parts; part += SHARES)
            sum += partial[part * columns + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    // Each warp adds one column.
    sum = sums[threadIdx.x][threadIdx.y];
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    const long long own = blockIdx.x * 32LL + threadIdx.y;
    if (threadIdx.x || own >= columns) return;
    if (own < dim)
        dweight[own] = from_float<WEIGHT>(sum);
    else
        dbias[own - dim] = from_float<WEIGHT>(sum);
}
