// Forward pass where time is contiguous: (batch, dim, seqlen), as Mamba-1 calls it.
//
// A warp walks left to right over `rounds` x 32 vectors of 16 bytes of one row, the next round's
// under way while one is worked on. Taps before a vector come from the lane to the left by shuffle,
// at the warp's left edge from the round before. No shared memory, no barrier.
//
// Grid: (blocks along a row, dim, batch or fewer).
#include "causal_conv1d_time.cuh"

extern "C" __global__ void __launch_bounds__(128, RESIDENT) causal_conv1d_forward_time(
    const INPUT* __restrict__ x, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, const int* __restrict__ seq_idx, INPUT* __restrict__ out,
#if STATES
    const INPUT* __restrict__ initial, INPUT* __restrict__ final,
#endif
    long long batch, long long length64, long long rounds, long long x_batch,
    long long x_channel, long long out_batch, long long out_channel
#if STATES
    ,
    long long initial_batch, long long initial_channel, long long initial_tap,
    long long final_batch, long long final_channel, long long final_tap
#endif
) {
    const int length = static_cast<int>(length64);
    const int lane = threadIdx.x & 31;
    const int channel = blockIdx.y;
    const int span = static_cast<int>(rounds) * 32 * N;
    const int start = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * span;
    const int end = min(start + span, length);
    for (long long b = blockIdx.z; b < batch && start < length; b += gridDim.z) {
        const INPUT* row = x + b * x_batch + channel * x_channel;
        INPUT* out_row = out + b * out_batch + channel * out_channel;
        Chunk next, before = {};
        load_chunk(next, row, start + lane * N, length);
        // Of the vector left of the span only its last taps are needed.
        if (lane == 31) load_chunk(before, row, start - N, length);
        const Filter filter = load_filter(weight, bias, channel);
#pragma unroll 1
        for (int first = start; first < end; first += 32 * N) {
            const int t = first + lane * N;
            const Chunk chunk = next;
            if (first + 32 * N < end) load_chunk(next, row, t + 32 * N, length);
            float window[HALO + N];
#pragma unroll
            for (int i = 0; i < N; ++i) window[HALO + i] = chunk.number(i);
            // The words that hold the taps before: lane 31 hands lane 0 those left of the round.
            Chunk left;
#pragma unroll
            for (int w = Chunk::count - EDGE_WORDS; w < Chunk::count; ++w) {
                left.words[w] = __shfl_sync(
                    ALL, lane == 31 ? before.words[w] : chunk.words[w], (lane + 31) & 31);
                before.words[w] = chunk.words[w];
            }
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
}
