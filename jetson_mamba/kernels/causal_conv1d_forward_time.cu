// Forward pass where time is contiguous: (batch, dim, seqlen), as Mamba-1 calls it.
//
// A thread takes one vector of 16 bytes. The taps before it come from the lane to the left by
// shuffle; only lane 0 reads them from memory, under way together with its vector. No shared
// memory, no barrier.
//
// Further definitions: ALIGNED (rows are whole vectors at multiples of 16 bytes), BLOCKS.
// Grid: (blocks along a row, dim, batch or fewer).
#include "causal_conv1d.cuh"

constexpr int N = 16 / sizeof(INPUT);
using Chunk = Packed<INPUT, N>;

extern "C" __global__ void __launch_bounds__(128, RESIDENT) causal_conv1d_forward_time(
    const INPUT* __restrict__ x, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, const int* __restrict__ seq_idx, INPUT* __restrict__ out,
    long long batch, long long length64, long long x_batch, long long x_channel,
    long long out_batch, long long out_channel
#if STATES
    ,
    const INPUT* __restrict__ initial, INPUT* __restrict__ final, long long initial_batch,
    long long initial_channel, long long initial_tap, long long final_batch,
    long long final_channel, long long final_tap
#endif
) {
    const int length = static_cast<int>(length64);
    const int lane = threadIdx.x & 31;
    const int channel = blockIdx.y;
    const int t = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
        const INPUT* row = x + b * x_batch + channel * x_channel;
        INPUT* out_row = out + b * out_batch + channel * out_channel;
        Chunk chunk = {};
        if (!ALIGNED)
            chunk.load_some(row + t, length - t);
        else if (t < length)
            chunk.load(row + t);
        float before[HALO] = {};
        if (lane == 0 && t < length) {
#pragma unroll
            for (int j = 0; j < HALO; ++j) {
                if (t > 0) before[j] = to_float(row[t - HALO + j]);
#if STATES
                else if (initial)
                    before[j] = to_float(
                        initial[b * initial_batch + channel * initial_channel + j * initial_tap]);
#endif
            }
        }
        const Filter filter = load_filter(weight, bias, channel);
        float window[HALO + N];
#pragma unroll
        for (int i = 0; i < N; ++i) window[HALO + i] = chunk.number(i);
#pragma unroll
        for (int j = 0; j < HALO; ++j) {
            const float left = __shfl_up_sync(0xffffffffu, window[N + j], 1);
            window[j] = lane == 0 ? before[j] : left;
        }
        int sequence[HALO + N];
#if SEQ_IDX
#pragma unroll
        for (int i = 0; i < HALO + N; ++i)
            sequence[i] = sequence_at(seq_idx + b * length64, t - HALO + i, length);
#endif
        float value[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            value[i] = activate(convolve(filter, window + i, sequence + i));
#if SEQ_IDX
            if (sequence[HALO + i] < 0) value[i] = 0.0f;
#endif
        }
        Chunk result;
        result.pack(value);
        if (!ALIGNED)
            result.store_some(out_row + t, length - t);
        else if (t < length)
            result.store(out_row + t);
#if STATES
        // Step length - HALO + j is final state j; those before step 0 are initial states.
        if (final && t + N > length - HALO && t < length) {
            INPUT* state = final + b * final_batch + channel * final_channel;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const int j = t + i - (length - HALO);
                if (j >= 0 && j < HALO) state[j * final_tap] = chunk.at(i);
            }
            if (t == 0) {
                for (int j = 0; j < HALO - length; ++j)
                    state[j * final_tap] =
                        initial ? initial[b * initial_batch + channel * initial_channel +
                                          (j + length) * initial_tap]
                                : from_float<INPUT>(0.0f);
            }
        }
#endif
    }
}
