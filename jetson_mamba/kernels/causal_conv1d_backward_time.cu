// Backward pass where time is contiguous: dx, and sums over time of the gradients of the weight
// and the bias, with g = dout * act'(convolution) recomputed on the way.
//
// A warp walks right to left over `rounds` x 32 vectors of 16 bytes of one row. Taps before a
// vector come from the lane to the left, the g after it (dx needs WIDTH - 1 of them) from the lane
// to the right, both by shuffle: at the warp's edges from the round to the left, whose loads are
// already under way, and the round to the right, already computed. Only the span's right edge
// computes g twice. Weight gradients stay in registers to the end; each block leaves one sum, and
// causal_conv1d_sum.cu adds the blocks' sums in a fixed order, so that results are deterministic.
//
// Grid: (blocks along a row, dim, batch or fewer).
#include "causal_conv1d_time.cuh"

extern "C" __global__ void __launch_bounds__(128, RESIDENT) causal_conv1d_backward_time(
    const INPUT* __restrict__ x, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, const int* __restrict__ seq_idx,
    const INPUT* __restrict__ dout, INPUT* __restrict__ dx, float* __restrict__ partial,
#if STATES
    const INPUT* __restrict__ initial, const INPUT* __restrict__ dfinal,
    INPUT* __restrict__ dinitial,
#endif
    long long batch, long long length64, long long rounds, long long x_batch,
    long long x_channel, long long dout_batch, long long dout_channel, long long dx_batch,
    long long dx_channel
#if STATES
    ,
    long long initial_batch, long long initial_channel, long long initial_tap,
    long long dfinal_batch, long long dfinal_channel, long long dfinal_tap,
    long long dinitial_batch, long long dinitial_channel, long long dinitial_tap
#endif
) {
    __shared__ float sums[4][WIDTH + 1];
    const int length = static_cast<int>(length64);
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int warps = blockDim.x >> 5;
    const int channel = blockIdx.y;
    const int span = static_cast<int>(rounds) * 32 * N;
    const int start = (blockIdx.x * warps + warp) * span;
    const int end = min(start + span, length);
    const Filter filter = load_filter(weight, bias, channel);
    // The gradients of the taps, then of the bias.
    float total[WIDTH + 1] = {};

    for (long long b = blockIdx.z; b < batch && start < length; b += gridDim.z) {
        const INPUT* row = settled(x + b * x_batch + channel * x_channel);
        const INPUT* dout_row = settled(dout + b * dout_batch + channel * dout_channel);
        INPUT* dx_row = settled(dx + b * dx_batch + channel * dx_channel);
        const int* sequences = SEQ_IDX ? seq_idx + b * length64 : nullptr;

        int c = (end - start + 32 * N - 1) / (32 * N) - 1;
        Chunk x_next, dout_next;
        load_chunk(x_next, row, start + (c * 32 + lane) * N, length);
        load_chunk(dout_next, dout_row, start + (c * 32 + lane) * N, length);

        // In lane 0, after[j] is g at j steps past the round in hand. Past the span, lane j
        // computes g at step end + j.
        float after[HALO];
        {
            float g = 0.0f;
            const int t = end + lane;
            if (lane < HALO && t < length) {
                float window[WIDTH];
                int sequence[WIDTH];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    window[k] = to_float(row[t - HALO + k]);
                    sequence[k] = sequence_at(sequences, t - HALO + k, length);
                }
                g = to_float(dout_row[t]) * activation_slope(convolve(filter, window, sequence));
#if SEQ_IDX
                if (sequence[HALO] < 0) g = 0.0f;
#endif
            }
#pragma unroll
            for (int j = 0; j < HALO; ++j) after[j] = __shfl_sync(ALL, g, j);
        }

#pragma unroll 1
        for (; c >= 0; --c) {
            const int t = start + (c * 32 + lane) * N;
            const Chunk x_chunk = x_next, dout_chunk = dout_next;
            // Of the vector left of the span only lane 31 is needed, for its last taps.
            if (c > 0 || lane == 31) load_chunk(x_next, row, t - 32 * N, length);
            if (c > 0) load_chunk(dout_next, dout_row, t - 32 * N, length);

            float window[HALO + N];
#pragma unroll
            for (int i = 0; i < N; ++i) window[HALO + i] = x_chunk.number(i);

            float g[N + HALO];
            int sequence[HALO + N + HALO];
#if SEQ_IDX
#pragma unroll
            for (int i = 0; i < HALO + N + HALO; ++i)
                sequence[i] = sequence_at(sequences, t - HALO + i, length);
#endif
            // The words that hold the taps before: lane 31 hands lane 0 those left of the round.
            Chunk left;
#pragma unroll
            for (int w = Chunk::count - EDGE_WORDS; w < Chunk::count; ++w)
                left.words[w] = __shfl_sync(
                    ALL, lane == 31 ? x_next.words[w] : x_chunk.words[w], (lane + 31) & 31);
#pragma unroll
            for (int j = 0; j < HALO; ++j) window[j] = left.number(N - HALO + j);
#if STATES
            if (t == 0 && initial) {
#pragma unroll
                for (int j = 0; j < HALO; ++j)
                    window[j] = to_float(
                        initial[b * initial_batch + channel * initial_channel + j * initial_tap]);
            }
#endif
#pragma unroll
            for (int i = 0; i < N; ++i) {
                g[i] = dout_chunk.number(i) *
                       activation_slope(convolve(filter, window + i, sequence + i));
#if SEQ_IDX
                if (sequence[HALO + i] < 0) g[i] = 0.0f;
#endif
                total[WIDTH] += g[i];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
#if SEQ_IDX
                    if (sequence[i + k] == sequence[i + HALO])
#endif
                        total[k] = fmaf(window[i + k], g[i], total[k]);
                }
            }
#pragma unroll
            for (int j = 0; j < HALO; ++j) {
                const float handed = lane == 0 ? after[j] : g[j];
                after[j] = g[j];
                g[N + j] = __shfl_sync(ALL, handed, (lane + 1) & 31);
            }

            float gradient[N];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                gradient[i] = 0.0f;
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) {
#if SEQ_IDX
                    if (sequence[HALO + i] == sequence[HALO + i + j])
#endif
                        gradient[i] = fmaf(filter.weight[HALO - j], g[i + j], gradient[i]);
                }
            }
#if STATES
            // Final state j is step length - HALO + j, or an initial state if that is negative.
            if (dfinal && t + N > length - HALO) {
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const int j = t + i - (length - HALO);
                    if (j >= 0 && j < HALO)
                        gradient[i] += to_float(
                            dfinal[b * dfinal_batch + channel * dfinal_channel + j * dfinal_tap]);
                }
            }
            if (dinitial && t == 0) {
#pragma unroll
                for (int m = 0; m < HALO; ++m) {
                    float sum = 0.0f;
                    // Initial state m is step m - HALO, a tap of the steps to m.
#pragma unroll
                    for (int i = 0; i <= m; ++i) {
#if SEQ_IDX
                        if (sequence[m] == sequence[HALO + i])
#endif
                            sum = fmaf(filter.weight[m - i], g[i], sum);
                    }
                    if (dfinal && m >= length)
                        sum += to_float(dfinal[b * dfinal_batch + channel * dfinal_channel +
                                               (m - length) * dfinal_tap]);
                    dinitial[b * dinitial_batch + channel * dinitial_channel + m * dinitial_tap] =
                        from_float<INPUT>(sum);
                }
            }
#endif
            Chunk result;
            result.pack(gradient);
            if (!ALIGNED)
                result.store_some(dx_row + t, length - t);
            else if (t < length)
                result.store(dx_row + t);
        }
    }

    let_the_next_kernel_start();
#pragma unroll
    for (int k = 0; k <= WIDTH; ++k) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            total[k] += __shfl_xor_sync(ALL, total[k], distance);
        if (lane == 0) sums[warp][k] = total[k];
    }
    __syncthreads();
    if (threadIdx.x <= WIDTH) {
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += sums[w][threadIdx.x];
        const long long part = blockIdx.z * gridDim.x + blockIdx.x;
        partial[(part * gridDim.y + channel) * (WIDTH + 1) + threadIdx.x] = sum;
    }
}
