// The gradients of a norm, of what it was taken of: x, or the sum with a residual, or x and z.
//
// Statistics and gates are computed once more of what stands in registers anyway. A block goes
// through rows that lie the grid apart, and each of its threads adds up the gradients of weight and
// bias for the columns that it has; what the blocks leave of them is added by norm_sum.
//
// Definitions: SOURCE, INPUT, RESIDUAL, OUTPUT, WEIGHT; RMS, GATE as in norm_forward.cu (with
// a gate SOURCE is INPUT); BIAS; DTOTAL: there is a gradient of the sum, in the dtype of SOURCE;
// DRESIDUAL: dx is also written as RESIDUAL; those of norm.cuh. partial is (blocks * ROWS,
// 1 + BIAS, groups * group) in float. Grid: (blocks, groups); block: (THREADS, ROWS).
#include "norm.cuh"

// Whether the registers have room for the weight from row to row.
constexpr bool HELD = ELEMENTS <= 8;

extern "C" __global__ void __launch_bounds__(THREADS* ROWS) norm_backward(
    const SOURCE* __restrict__ source, const INPUT* __restrict__ z,
    const WEIGHT* __restrict__ weight, const WEIGHT* __restrict__ bias,
    const OUTPUT* __restrict__ dout, const SOURCE* __restrict__ dtotal, INPUT* __restrict__ dx,
    RESIDUAL* __restrict__ dresidual, INPUT* __restrict__ dz, float* __restrict__ partial,
    long long rows, long long group64, long long source_row, long long z_row, long long dout_row,
    long long dtotal_row, long long dx_row, long long dresidual_row, long long dz_row,
    long long eps_bits) {
    const int group = static_cast<int>(group64);
    const float eps = __int_as_float(static_cast<int>(eps_bits));
    const long long first = blockIdx.y * group64;
    const long long stride = gridDim.x * static_cast<long long>(ROWS);
    float dweight[ELEMENTS] = {}, dbias[BIAS ? ELEMENTS : 1] = {};
    Run<WEIGHT> scale[HELD ? ROUNDS : 1];
    if constexpr (HELD) {
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round)
            if (place(round) < group) scale[round].load(weight + first + place(round));
    }
    int turn = 0;
    // All rows of a block go round together, for the sake of the sums.
    for (long long top = blockIdx.x * static_cast<long long>(ROWS); top < rows; top += stride) {
        const long long row = top + threadIdx.y;
        const bool is_row = row < rows;
        Run<SOURCE> sources[ROUNDS];
        Run<INPUT> gates[GATE ? ROUNDS : 1];
        Run<OUTPUT> gradients[ROUNDS];
        Run<SOURCE> added[DTOTAL ? ROUNDS : 1];
        float values[ELEMENTS] = {};
        if (is_row) {
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                const int column = place(round);
                if (column >= group) continue;
                sources[round].load(source + row * source_row + first + column);
                if constexpr (GATE) gates[round].load(z + row * z_row + first + column);
                gradients[round].load(dout + row * dout_row + first + column);
                if constexpr (DTOTAL)
                    added[round].load(dtotal + row * dtotal_row + first + column);
            }
            if (row + stride < rows) {
                // Into the cache, while the sums over this row are waited for.
#pragma unroll
                for (int round = 0; round < ROUNDS; ++round) {
                    const int column = place(round);
                    if (column >= group) continue;
                    const long long next = row + stride;
                    fetch(source + next * source_row + first + column);
                    if constexpr (GATE) fetch(z + next * z_row + first + column);
                    fetch(dout + next * dout_row + first + column);
                    if constexpr (DTOTAL) fetch(dtotal + next * dtotal_row + first + column);
                }
            }
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                if (place(round) >= group) continue;
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    float value = sources[round].number(i);
                    if constexpr (GATE == 2) value *= silu(gates[round].number(i));
                    values[round * VECTOR + i] = value;
                }
            }
        }
        const Stats stats = stats_of(values, group, eps, turn);
        float along = 0.0f, straight = 0.0f;
        float scaled[ELEMENTS] = {};
        if (is_row) {
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                if (place(round) >= group) continue;
                if constexpr (!HELD) scale[0].load(weight + first + place(round));
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    const int j = round * VECTOR + i;
                    const float normed = (values[j] - stats.mean) * stats.rstd;
                    float gradient = gradients[round].number(i);
                    if constexpr (GATE == 1) gradient *= silu(gates[round].number(i));
                    dweight[j] += gradient * normed;
                    if constexpr (BIAS) dbias[j] += gradient;
                    scaled[j] = gradient * scale[HELD ? round : 0].number(i);
                    along += scaled[j] * normed;
                    straight += scaled[j];
                }
            }
        }
        along = row_sum(along, turn++) / group;
        straight = RMS ? 0.0f : row_sum(straight, turn++) / group;
        if (!is_row) continue;
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int column = place(round);
            if (column >= group) continue;
            Run<WEIGHT> offset;
            if constexpr (GATE == 1 && !HELD) scale[0].load(weight + first + column);
            if constexpr (GATE == 1 && BIAS) offset.load(bias + first + column);
            float result[VECTOR], gate_result[VECTOR];
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                const int j = round * VECTOR + i;
                const float normed = (values[j] - stats.mean) * stats.rstd;
                result[i] = (scaled[j] - normed * along - straight) * stats.rstd;
                if constexpr (DTOTAL) result[i] += added[round].number(i);
                if constexpr (GATE) {
                    const float gate = gates[round].number(i), open = sigmoid(gate);
                    const float slope = open * (1.0f + gate * (1.0f - open));
                    if constexpr (GATE == 1) {
                        float ungated = normed * scale[HELD ? round : 0].number(i);
                        if constexpr (BIAS) ungated += offset.number(i);
                        gate_result[i] = gradients[round].number(i) * ungated * slope;
                    } else {
                        gate_result[i] = result[i] * sources[round].number(i) * slope;
                        result[i] *= gate * open;
                    }
                }
            }
            store_run(dx + row * dx_row + first + column, result);
            if constexpr (DRESIDUAL)
                store_run(dresidual + row * dresidual_row + first + column, result);
            if constexpr (GATE) store_run(dz + row * dz_row + first + column, gate_result);
        }
    }
    const long long dim = gridDim.y * group64;
    float* left = partial + (blockIdx.x * static_cast<long long>(ROWS) + threadIdx.y) *
                                (1 + BIAS) * dim + first;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int column = place(round);
        if (column >= group) continue;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            left[column + i] = dweight[round * VECTOR + i];
            if constexpr (BIAS) left[dim + column + i] = dbias[round * VECTOR + i];
        }
    }
}
