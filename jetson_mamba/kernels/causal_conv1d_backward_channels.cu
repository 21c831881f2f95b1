// Backward pass where channels are contiguous (channel-last), and, with VECTOR = 1, for any
// strides: dx, and sums of the gradients of the weight and the bias.
//
// A thread owns VECTOR neighbouring channels and walks over `steps` time steps, with the last
// taps and the last g = dout * act'(convolution) in registers: at step t, dx of step t - (WIDTH-1)
// is complete. Rows come through shared memory, 16 bytes a lane where VECTOR is 2: a warp's lanes
// share out UNROLL rows. The WIDTH - 1 steps after a tile are computed twice, by its owner and for this
// tile's dx. The tiles of a block add their weight gradients in shared memory and leave one sum,
// and causal_conv1d_sum.cu adds the blocks' sums in a fixed order: results are deterministic.
//
// Further definitions: VECTOR, UNROLL (at least WIDTH - 1), STAGES (of UNROLL rows, in flight or in
// use), TILES (= blockDim.y), BLOCKS.
// Grid: (blocks of channels, blocks of tiles, batch or fewer).
#include "causal_conv1d.cuh"

using Row = Packed<INPUT, VECTOR>;
// A copy brings COPIED lanes' numbers of one row; ACROSS lanes bring a row, the others the next.
constexpr int COPIED = VECTOR > 1 ? 16 / sizeof(Row) : 1;
constexpr int ACROSS = 32 / COPIED;
using Copy = Packed<INPUT, COPIED * VECTOR>;

extern "C" __global__ void __launch_bounds__(32 * TILES, RESIDENT) causal_conv1d_backward_channels(
    const INPUT* __restrict__ x, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, const int* __restrict__ seq_idx,
    const INPUT* __restrict__ dout, INPUT* __restrict__ dx, float* __restrict__ partial,
#if STATES
    const INPUT* __restrict__ initial, const INPUT* __restrict__ dfinal,
    INPUT* __restrict__ dinitial,
#endif
    long long batch, long long dim, long long length64, long long steps, long long x_batch,
    long long x_channel, long long x_step, long long dout_batch, long long dout_channel,
    long long dout_step, long long dx_batch, long long dx_channel, long long dx_step
#if STATES
    ,
    long long initial_batch, long long initial_channel, long long initial_tap,
    long long dfinal_batch, long long dfinal_channel, long long dfinal_tap,
    long long dinitial_batch, long long dinitial_channel, long long dinitial_tap
#endif
) {
    __shared__ float sums[TILES][VECTOR][WIDTH + 1][32];
    // Rows on their way, those of a warp side by side.
    __shared__ __align__(16) Row ring[STAGES][UNROLL][2][32 * TILES];
    const int thread = threadIdx.y * 32 + threadIdx.x;
    const int length = static_cast<int>(length64);
    const int channel = (blockIdx.x * 32 + threadIdx.x) * VECTOR;
    const int start = (blockIdx.y * TILES + threadIdx.y) * static_cast<int>(steps);
    const int end = min(start + static_cast<int>(steps), length);
    // The gradients of the taps, then of the bias.
    float total[VECTOR][WIDTH + 1] = {};

    if (start < length) {
        // Lanes past the last channel copy with the others, and work on what nobody reads.
        const bool exists = channel < dim;
        const int readable = exists ? channel : static_cast<int>(dim) - VECTOR;
        const int copied = (blockIdx.x * 32 + threadIdx.x % ACROSS * COPIED) * VECTOR;
        Filter filter[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) filter[v] = load_filter(weight, bias, readable + v);
        for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
            const INPUT* column = x + b * x_batch + readable * x_channel;
            const int* sequences = SEQ_IDX ? seq_idx + b * length64 : nullptr;
            const int below = start + threadIdx.x / ACROSS;
            const INPUT* x_from = x + b * x_batch + copied * x_channel + below * x_step;
            const INPUT* dout_from =
                dout + b * dout_batch + copied * dout_channel + below * dout_step;
            INPUT* to = dx + b * dx_batch + channel * dx_channel + (start - HALO) * dx_step;
            const int limit = copied < dim ? min(end + HALO, length) : 0;
            // Asks for the UNROLL steps from t0 and names the group, whether or not any is left.
            const auto fetch = [&](int t0, int stage) {
#pragma unroll
                for (int u = 0; u < UNROLL; u += COPIED) {
                    const int row = u + threadIdx.x / ACROSS;
                    const int place = threadIdx.y * 32 + threadIdx.x % ACROSS * COPIED;
                    if (t0 + row < limit) {
                        copy_async(reinterpret_cast<Copy*>(&ring[stage][row][0][place]), x_from);
                        copy_async(reinterpret_cast<Copy*>(&ring[stage][row][1][place]), dout_from);
                    }
                    x_from += COPIED * x_step;
                    dout_from += COPIED * dout_step;
                }
                commit_copies();
            };
            // The first rows are under way before the taps before them are waited for.
#pragma unroll
            for (int s = 0; s < STAGES - 1; ++s) fetch(start + s * UNROLL, s);
            // window[v][k], g[v][k] and sequence[k] belong to step t - HALO + k.
            float window[VECTOR][WIDTH];
            float g[VECTOR][WIDTH];
            int sequence[WIDTH];
#pragma unroll
            for (int j = 0; j < HALO; ++j) {
                const int t = start - HALO + j;
                Row row = {};
                if (t >= 0) row.load(column + t * x_step);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    g[v][j + 1] = 0.0f;
                    window[v][j + 1] = row.number(v);
#if STATES
                    if (t < 0 && initial)
                        window[v][j + 1] = to_float(initial[b * initial_batch +
                                                            (readable + v) * initial_channel +
                                                            j * initial_tap]);
#endif
                }
                sequence[j + 1] = sequence_at(sequences, t, length);
            }
            // UNROLL steps from t0. EDGE: some may lie past the tile, where g still feeds this
            // tile's dx, or dx before the tile, which belongs to another.
            const auto advance = [&](int t0, int stage, auto edge) {
#pragma unroll
                for (int u = 0; u < UNROLL; ++u, to += dx_step) {
                    const int t = t0 + u;
#pragma unroll
                    for (int k = 0; k < HALO; ++k) {
                        sequence[k] = sequence[k + 1];
#pragma unroll
                        for (int v = 0; v < VECTOR; ++v) {
                            window[v][k] = window[v][k + 1];
                            g[v][k] = g[v][k + 1];
                        }
                    }
                    sequence[HALO] = sequence_at(sequences, t, length);
                    const Row x_row = ring[stage][u][0][thread];
                    const Row dout_row = ring[stage][u][1][thread];
                    const int done = t - HALO;
                    float gradient[VECTOR];
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) {
                        window[v][HALO] = x_row.number(v);
                        float slope = activation_slope(convolve(filter[v], window[v], sequence));
#if SEQ_IDX
                        if (sequence[HALO] < 0) slope = 0.0f;
#endif
                        g[v][HALO] = dout_row.number(v) * slope;
                        if (edge.value && t >= length) g[v][HALO] = 0.0f;
                        if (!edge.value || t < end) {
                            total[v][WIDTH] += g[v][HALO];
#pragma unroll
                            for (int k = 0; k < WIDTH; ++k) {
#if SEQ_IDX
                                if (sequence[k] == sequence[HALO])
#endif
                                    total[v][k] = fmaf(window[v][k], g[v][HALO], total[v][k]);
                            }
                        }
                        gradient[v] = 0.0f;
#pragma unroll
                        for (int k = 0; k < WIDTH; ++k) {
#if SEQ_IDX
                            if (sequence[k] == sequence[0])
#endif
                                gradient[v] =
                                    fmaf(filter[v].weight[HALO - k], g[v][k], gradient[v]);
                        }
                    }
#if STATES
                    // Final state j is step length - HALO + j, or an initial state before step 0.
                    const int j = done - (length - HALO);
                    if (dfinal && j >= 0 && j < HALO) {
#pragma unroll
                        for (int v = 0; v < VECTOR; ++v)
                            gradient[v] +=
                                to_float(dfinal[b * dfinal_batch + (readable + v) * dfinal_channel +
                                                j * dfinal_tap]);
                    }
                    if (dinitial && done < 0 && exists) {
#pragma unroll
                        for (int v = 0; v < VECTOR; ++v)
                            dinitial[b * dinitial_batch + (channel + v) * dinitial_channel +
                                     (done + HALO) * dinitial_tap] = from_float<INPUT>(gradient[v]);
                    }
#endif
                    Row result;
                    result.pack(gradient);
                    if (exists && (!edge.value || (done >= start && done < end))) result.store(to);
                }
            };
            int stage = 0;
#pragma unroll 1
            for (int t0 = start; t0 < end + HALO; t0 += UNROLL) {
                wait_for_copies<STAGES - 2>();
                // The rows here are those of all lanes; and all are done with the rows before.
                __syncwarp();
                fetch(t0 + (STAGES - 1) * UNROLL, stage == 0 ? STAGES - 1 : stage - 1);
                if (t0 > start && t0 + UNROLL <= end)
                    advance(t0, stage, Flag<false>());
                else
                    advance(t0, stage, Flag<true>());
                stage = stage == STAGES - 1 ? 0 : stage + 1;
            }
            wait_for_copies<0>();
            __syncwarp();
        }
    }

    let_the_next_kernel_start();
#pragma unroll
    for (int v = 0; v < VECTOR; ++v)
#pragma unroll
        for (int k = 0; k <= WIDTH; ++k) sums[threadIdx.y][v][k][threadIdx.x] = total[v][k];
    __syncthreads();
    const long long part = blockIdx.z * gridDim.y + blockIdx.y;
    for (int i = thread; i < 32 * VECTOR * (WIDTH + 1); i += 32 * TILES) {
        const int k = i % (WIDTH + 1), v = i / (WIDTH + 1) % VECTOR;
        const int lane = i / (WIDTH + 1) / VECTOR;
        const int target = (blockIdx.x * 32 + lane) * VECTOR + v;
        if (target >= dim) break;
        float sum = 0.0f;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) sum += sums[tile][v][k][lane];
        partial[(part * dim + target) * (WIDTH + 1) + k] = sum;
    }
}
