// A matrix times a few vectors, for generation: out = x W^T + bias, each weight read once.
//
// TEAM threads share ROWS rows of W: each has runs of VECTOR neighbouring columns, TEAM runs apart,
// DEPTH of which are on their way at once, and serves all BATCH vectors with them. A thread for each
// row and vector then has the sum, in an order that depends on neither.
//
// With WIDTH, the rows from `conv_first` on, `conv_channels` of them, are a convolution's inputs:
// their state, `WIDTH` inputs long, takes the new one, and out is the convolution, activated where
// SILU says so. With NORM, x is multiplied by silu(z) and by the norm's weight, and the result
// divided by the root of the mean of the squares of x silu(z): each team sums those as it goes.
//
// With EARLY, the weights do not wait for the kernel before; they may when that one is known not to
// write them, and to have waited itself. Elsewhere they are brought as near as the L2 cache.
//
// Definitions: INPUT (x, W, bias, z, out, conv_state), SCALE (norm), FILTER (the convolution's
// weight and bias); VECTOR, TEAM, ROWS, DEPTH, BATCH, THREADS, EARLY, WIDTH, SILU, NORM.
// Rows of W lie one after the other, columns of x, z and out are neighbours.
// Grid: (rows of W / (THREADS / TEAM * ROWS)).
#include "numbers.cuh"

// A vector of the norm's weight, of 16 bytes at most.
constexpr int SCALES = VECTOR * sizeof(SCALE) > 16 ? 16 / sizeof(SCALE) : VECTOR;
constexpr int TEAMS = THREADS / TEAM, WARPS_OF_TEAM = TEAM / 32, RESULTS = ROWS * BATCH;
// With those of the squares.
constexpr int ALL_SUMS = (ROWS + NORM) * BATCH;
static_assert(ALL_SUMS <= 32);

extern "C" __global__ void __launch_bounds__(THREADS) projection(
    const INPUT* __restrict__ x, const INPUT* __restrict__ W, const INPUT* __restrict__ bias,
    INPUT* __restrict__ out, INPUT* __restrict__ conv_state, const FILTER* __restrict__ filter,
    const FILTER* __restrict__ filter_bias, const INPUT* __restrict__ z,
    const SCALE* __restrict__ norm, long long rows64, long long columns64, long long x_batch,
    long long out_batch, long long conv_first, long long conv_channels, long long state_batch,
    long long state_channel, long long state_step, long long z_batch, long long eps_bits) {
    const int rows = static_cast<int>(rows64), columns = static_cast<int>(columns64);
    const int vectors = columns / VECTOR;
    const int thread = threadIdx.x, member = thread % TEAM, lane = thread % 32;
    const int first = (blockIdx.x * TEAMS + thread / TEAM) * ROWS;
    const INPUT* from[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
        from[r] = W + static_cast<long long>(min(first + r, rows - 1)) * columns;
    Packed<INPUT, VECTOR> weights[DEPTH][ROWS];
    const auto load = [&](int start) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int v = start + d * TEAM + member;
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                if (v < vectors) load_once(weights[d][r], from[r] + v * VECTOR);
        }
    };
    if constexpr (EARLY) {
        load(0);
    } else if (member == 0) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) fetch_ahead<VECTOR>(from[r], columns);
    }
    wait_for_the_kernel_before();
    let_the_next_kernel_start();
    // Who has a sum in the end, and what goes with it.
    const int row = first + member / BATCH, b = member % BATCH;
    const bool has_result = member < RESULTS && row < rows;
    const int channel = row - static_cast<int>(conv_first);
    const bool convolves =
        WIDTH && has_result && channel >= 0 && channel < static_cast<int>(conv_channels);
    float window[WIDTH + 1] = {}, taps[WIDTH + 1] = {}, offset = 0.0f, added = 0.0f;
    INPUT* history = conv_state + b * state_batch + channel * state_channel;
    if (convolves) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            if (j) window[j - 1] = to_float(history[j * state_step]);
            taps[j] = to_float(filter[channel * static_cast<long long>(WIDTH) + j]);
        }
        if (filter_bias) offset = to_float(filter_bias[channel]);
    }
    if (bias && has_result) added = to_float(bias[row]);
    float sums[ROWS + NORM][BATCH] = {};
    if constexpr (!EARLY) load(0);
    for (int start = 0; start < vectors; start += DEPTH * TEAM) {
        if (start) load(start);
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int v = start + d * TEAM + member;
            if (v >= vectors) continue;
            Packed<SCALE, SCALES> scales[NORM ? VECTOR / SCALES : 1];
            if constexpr (NORM) {
#pragma unroll
                for (int i = 0; i < VECTOR / SCALES; ++i)
                    scales[i].load(norm + v * VECTOR + i * SCALES);
            }
#pragma unroll
            for (int of = 0; of < BATCH; ++of) {
                Packed<INPUT, VECTOR> inputs, gates;
                inputs.load(x + of * x_batch + v * VECTOR);
                if constexpr (NORM) gates.load(z + of * z_batch + v * VECTOR);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    float value = inputs.number(i);
                    if constexpr (NORM) {
                        const float gate = gates.number(i);
                        value *= gate * sigmoid(gate);
                        sums[ROWS][of] += value * value;
                        value *= scales[i / SCALES].number(i % SCALES);
                    }
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        sums[r][of] += weights[d][r].number(i) * value;
                }
            }
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < ROWS + NORM; ++r) {
#pragma unroll
        for (int of = 0; of < BATCH; ++of) {
            float value = sums[r][of];
#pragma unroll
            for (int lanes = 16; lanes; lanes /= 2)
                value += __shfl_xor_sync(0xffffffffu, value, lanes);
            if (lane == r * BATCH + of) sum = value;
        }
    }
    float squares = NORM ? __shfl_sync(0xffffffffu, sum, RESULTS + member % BATCH) : 0.0f;
    if constexpr (WARPS_OF_TEAM > 1) {
        extern __shared__ uint4 memory[];
        float* parts = reinterpret_cast<float*>(memory);
        if (lane < ALL_SUMS) parts[thread / 32 * ALL_SUMS + lane] = sum;
        __syncthreads();
        if (member < RESULTS) {
            sum = squares = 0.0f;
#pragma unroll
            for (int warp = 0; warp < WARPS_OF_TEAM; ++warp) {
                const float* of_warp = parts + (thread / TEAM * WARPS_OF_TEAM + warp) * ALL_SUMS;
                sum += of_warp[member];
                if constexpr (NORM) squares += of_warp[RESULTS + b];
            }
        }
    }
    if (!has_result) return;
    if constexpr (NORM) {
        const float eps = __uint_as_float(static_cast<unsigned>(eps_bits));
        sum *= 1.0f / sqrtf(squares / columns + eps);
    }
    INPUT result = from_float<INPUT>(sum + added);
    if (convolves) {
        // As the convolution of its own reads it: rounded.
        window[WIDTH ? WIDTH - 1 : 0] = to_float(result);
        float value = offset;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            value += window[j] * taps[j];
            history[j * state_step] = from_float<INPUT>(window[j]);
        }
        if constexpr (SILU) value *= sigmoid(value);
        result = from_float<INPUT>(value);
    }
    out[b * out_batch + row] = result;
}
