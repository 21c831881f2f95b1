// Forward pass where channels are contiguous (channel-last, as Mamba-2 calls it), and, with
// VECTOR = 1, for any strides.
//
// A thread owns VECTOR neighbouring channels and walks over `steps` time steps; the last taps stay
// in registers, and the next UNROLL rows are in flight while the last UNROLL are worked on. A
// block is 32 lanes wide in channels and TILES deep in time.
//
// Further definitions: VECTOR, UNROLL, TILES (= blockDim.y), BLOCKS.
// Grid: (blocks of channels, blocks of tiles, batch or fewer).
#include "causal_conv1d.cuh"

using Row = Packed<INPUT, VECTOR>;

extern "C" __global__ void __launch_bounds__(32 * TILES, RESIDENT) causal_conv1d_forward_channels(
    const INPUT* __restrict__ x, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, const int* __restrict__ seq_idx, INPUT* __restrict__ out,
#if STATES
    const INPUT* __restrict__ initial, INPUT* __restrict__ final,
#endif
    long long batch, long long dim, long long length64, long long steps, long long x_batch,
    long long x_channel, long long x_step, long long out_batch, long long out_channel,
    long long out_step
#if STATES
    ,
    long long initial_batch, long long initial_channel, long long initial_tap,
    long long final_batch, long long final_channel, long long final_tap
#endif
) {
    const int length = static_cast<int>(length64);
    const int channel = (blockIdx.x * 32 + threadIdx.x) * VECTOR;
    const int start = (blockIdx.y * TILES + threadIdx.y) * static_cast<int>(steps);
    const int end = min(start + static_cast<int>(steps), length);
    if (channel >= dim || start >= length) return;
    Filter filter[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) filter[v] = load_filter(weight, bias, channel + v);
    for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
        const INPUT* column = x + b * x_batch + channel * x_channel;
        INPUT* out_column = out + b * out_batch + channel * out_channel;
        const int* sequences = SEQ_IDX ? seq_idx + b * length64 : nullptr;
        // window[v][k] and sequence[k] belong to step t - HALO + k.
        float window[VECTOR][WIDTH];
        int sequence[WIDTH];
#pragma unroll
        for (int j = 0; j < HALO; ++j) {
            const int t = start - HALO + j;
            Row row = {};
            if (t >= 0) row.load(column + t * x_step);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                window[v][j + 1] = row.number(v);
#if STATES
                if (t < 0 && initial)
                    window[v][j + 1] = to_float(initial[b * initial_batch +
                                                        (channel + v) * initial_channel +
                                                        j * initial_tap]);
#endif
            }
            sequence[j + 1] = sequence_at(sequences, t, length);
        }
        const INPUT* from = column + start * x_step;
        INPUT* to = out_column + start * out_step;
        Row rows[UNROLL];
        const auto fetch = [&](int t0, auto edge) {
#pragma unroll
            for (int u = 0; u < UNROLL; ++u, from += x_step)
                if (!edge.value || t0 + u < end) rows[u].load(from);
        };
        // UNROLL steps from t0; those from `end` on are left out only where EDGE says to look.
        const auto advance = [&](int t0, auto edge) {
            float x_numbers[UNROLL][VECTOR];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u)
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) x_numbers[u][v] = rows[u].number(v);
            if (t0 + 2 * UNROLL <= end)
                fetch(t0 + UNROLL, Flag<false>());
            else
                fetch(t0 + UNROLL, Flag<true>());
#pragma unroll
            for (int u = 0; u < UNROLL; ++u, to += out_step) {
                const int t = t0 + u;
#pragma unroll
                for (int k = 0; k < HALO; ++k) {
                    sequence[k] = sequence[k + 1];
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) window[v][k] = window[v][k + 1];
                }
                sequence[HALO] = sequence_at(sequences, t, length);
                float value[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    window[v][HALO] = x_numbers[u][v];
                    value[v] = activate(convolve(filter[v], window[v], sequence));
#if SEQ_IDX
                    if (sequence[HALO] < 0) value[v] = 0.0f;
#endif
                }
                Row result;
                result.pack(value);
                if (!edge.value || t < end) result.store(to);
            }
        };
        int t0 = start;
        fetch(t0, Flag<true>());
#pragma unroll 1
        for (; t0 + UNROLL <= end; t0 += UNROLL) advance(t0, Flag<false>());
        if (t0 < end) advance(t0, Flag<true>());
#if STATES
        // Final state j is step length - HALO + j; those before step 0 are initial states.
        if (final && end == length) {
            for (int j = 0; j < HALO; ++j) {
                const int t = length - HALO + j;
                for (int v = 0; v < VECTOR; ++v) {
                    INPUT value = from_float<INPUT>(0.0f);
                    if (t >= 0)
                        value = column[v * x_channel + t * x_step];
                    else if (initial)
                        value = initial[b * initial_batch + (channel + v) * initial_channel +
                                        (t + HALO) * initial_tap];
                    final[b * final_batch + (channel + v) * final_channel + j * final_tap] = value;
                }
            }
        }
#endif
    }
}
