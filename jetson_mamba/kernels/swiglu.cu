// The gate of a gated MLP, silu(a) * b for the halves a and b of each row, forward and backward.
//
// xy and dxy are (rows, 2 dim), out and dout (rows, dim), each row a whole number of elements after
// the one before, columns contiguous. A thread has one run of VECTOR columns of a row.
// Definitions: NUMBER, VECTOR, OUTPUT (backward: the output is written once more).
// Grid: (rows, runs of a row / threads); block: threads.
#include "numbers.cuh"

using Run = Packed<NUMBER, VECTOR>;

extern "C" __global__ void swiglu_forward(const NUMBER* __restrict__ xy, NUMBER* __restrict__ out,
                                          long long dim, long long xy_row, long long out_row) {
    wait_for_the_kernel_before();
    const long long column = (blockIdx.y * static_cast<long long>(blockDim.x) + threadIdx.x) * VECTOR;
    if (column >= dim) return;
    const NUMBER* row = xy + blockIdx.x * xy_row + column;
    Run first, second;
    first.load(row), second.load(row + dim);
    float result[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const float a = first.number(i);
        result[i] = a * sigmoid(a) * second.number(i);
    }
    first.pack(result);
    first.store(out + blockIdx.x * out_row + column);
}

extern "C" __global__ void swiglu_backward(const NUMBER* __restrict__ xy,
                                           const NUMBER* __restrict__ dout,
                                           NUMBER* __restrict__ dxy, NUMBER* __restrict__ out,
                                           long long dim, long long xy_row, long long dout_row,
                                           long long dxy_row, long long out_row) {
    wait_for_the_kernel_before();
    const long long column = (blockIdx.y * static_cast<long long>(blockDim.x) + threadIdx.x) * VECTOR;
    if (column >= dim) return;
    const NUMBER* row = xy + blockIdx.x * xy_row + column;
    Run first, second, upper;
    first.load(row), second.load(row + dim), upper.load(dout + blockIdx.x * dout_row + column);
    float da[VECTOR], db[VECTOR], result[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const float a = first.number(i), b = second.number(i), gradient = upper.number(i);
        const float open = sigmoid(a), silu = a * open;
        da[i] = gradient * b * (open + silu * (1.0f - open));
        db[i] = gradient * silu;
        result[i] = silu * b;
    }
    NUMBER* target = dxy + blockIdx.x * dxy_row + column;
    first.pack(da), second.pack(db);
    first.store(target), second.store(target + dim);
    if constexpr (OUTPUT) {
        upper.pack(result);
        upper.store(out + blockIdx.x * out_row + column);
    }
}
