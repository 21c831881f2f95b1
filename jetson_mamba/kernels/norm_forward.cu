// A norm of each row, or of each group of its columns: of x, of x plus a residual, or with a gate.
//
// Definitions: INPUT, RESIDUAL, TOTAL, OUTPUT, WEIGHT; RMS; GATE (1: out is times silu(z), 2: x
// is, 0: there is no z); ADD: there is a residual; KEEP: the sum is written; those of norm.cuh.
// Any row stride, columns contiguous. rstd, where it is wanted, is (groups, rows).
// Grid: (rows / ROWS, groups); block: (THREADS, ROWS).
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS* ROWS) norm_forward(
    const INPUT* __restrict__ x, const RESIDUAL* __restrict__ residual,
    const INPUT* __restrict__ z, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, OUTPUT* __restrict__ out, TOTAL* __restrict__ total,
    float* __restrict__ rstd, long long rows, long long group64, long long x_row,
    long long residual_row, long long z_row, long long out_row, long long total_row,
    long long eps_bits) {
    const int group = static_cast<int>(group64);
    const float eps = __int_as_float(static_cast<int>(eps_bits));
    const long long row = blockIdx.x * static_cast<long long>(ROWS) + threadIdx.y;
    const long long first = blockIdx.y * group64;
    const bool is_row = row < rows;
    wait_for_the_kernel_before();
    let_the_next_kernel_start();
    float values[ELEMENTS] = {};
    Run<INPUT> gates[GATE == 1 ? ROUNDS : 1];
    if (is_row) {
        Run<INPUT> inputs[ROUNDS];
        Run<INPUT> before[GATE == 2 ? ROUNDS : 1];
        Run<RESIDUAL> residuals[ADD ? ROUNDS : 1];
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int column = place(round);
            if (column >= group) continue;
            inputs[round].load(x + row * x_row + first + column);
            if constexpr (GATE == 1) gates[round].load(z + row * z_row + first + column);
            if constexpr (GATE == 2) before[round].load(z + row * z_row + first + column);
            if constexpr (ADD)
                residuals[round].load(residual + row * residual_row + first + column);
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            if (place(round) >= group) continue;
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                float value = inputs[round].number(i);
                if constexpr (GATE == 2) value *= silu(before[round].number(i));
                if constexpr (ADD) value += residuals[round].number(i);
                values[round * VECTOR + i] = value;
            }
        }
        if constexpr (KEEP) {
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                const int column = place(round);
                if (column < group)
                    store_run(total + row * total_row + first + column, values + round * VECTOR);
            }
        }
    }
    int turn = 0;
    const Stats stats = stats_of(values, group, eps, turn);
    if (!is_row) return;
    if (rstd && threadIdx.x == 0) rstd[blockIdx.y * rows + row] = stats.rstd;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int column = place(round);
        if (column >= group) continue;
        Run<WEIGHT> scale, offset;
        scale.load(weight + first + column);
        if (bias) offset.load(bias + first + column);
        float normed[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            normed[i] = (values[round * VECTOR + i] - stats.mean) * stats.rstd * scale.number(i);
            if (bias) normed[i] += offset.number(i);
            if constexpr (GATE == 1) normed[i] *= silu(gates[round].number(i));
        }
        store_run(out + row * out_row + first + column, normed);
    }
}
