// Adds the weight and bias gradients that the blocks of a backward pass left, in a fixed order.
//
// partial is (parts, dim, WIDTH + 1) in float: a channel's taps, then its bias. Eight threads share
// a column, each summing every eighth part. Definitions: WIDTH, WEIGHT. Grid: (columns / 32).
#include "numbers.cuh"

constexpr int SHARES = 8;

extern "C" __global__ void __launch_bounds__(32 * SHARES) causal_conv1d_sum(
    const float* __restrict__ partial, WEIGHT* __restrict__ dweight, WEIGHT* __restrict__ dbias,
    long long parts, long long columns) {
    __shared__ float sums[SHARES][32];
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
    if (threadIdx.y || column >= columns) return;
#pragma unroll
    for (int share = 1; share < SHARES; ++share) sum += sums[share][threadIdx.x];
    const long long channel = column / (WIDTH + 1);
    const int k = static_cast<int>(column % (WIDTH + 1));
    if (k < WIDTH)
        dweight[channel * WIDTH + k] = from_float<WEIGHT>(sum);
    else if (dbias)
        dbias[channel] = from_float<WEIGHT>(sum);
}
