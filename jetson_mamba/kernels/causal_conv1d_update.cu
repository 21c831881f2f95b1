// One or a few steps of the convolution with its state, for generation: reads the state, writes
// the outputs, and updates the state in place. A thread owns one channel of one batch element.
//
// The state holds the latest inputs, `state_length` >= WIDTH - 1 of them. Without cache_seqlens the
// last entry is the latest, and the state shifts; with it the state is circular, and step s of the
// sequence stands at s mod state_length. With indices, batch element b uses row indices[b] of the
// state; a negative row marks padding, whose output is zero.
//
// Grid: (dim / blockDim.x, batch).
#include "causal_conv1d.cuh"

extern "C" __global__ void __launch_bounds__(128, 1) causal_conv1d_update(
    const INPUT* __restrict__ x, INPUT* __restrict__ state, const WEIGHT* __restrict__ weight,
    const WEIGHT* __restrict__ bias, const int* __restrict__ cache_seqlens,
    const int* __restrict__ indices, INPUT* __restrict__ out, long long batch, long long dim,
    long long length64, long long state_length64, long long x_batch, long long x_channel,
    long long x_step, long long state_batch, long long state_channel, long long state_step,
    long long out_batch, long long out_channel, long long out_step) {
    const int length = static_cast<int>(length64);
    const int state_length = static_cast<int>(state_length64);
    const int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= dim) return;
    const Filter filter = load_filter(weight, bias, channel);
    for (long long b = blockIdx.y; b < batch; b += gridDim.y) {
        const INPUT* column = x + b * x_batch + channel * x_channel;
        INPUT* out_column = out + b * out_batch + channel * out_channel;
        const long long held = indices ? indices[b] : b;
        if (held < 0) {
            for (int t = 0; t < length; ++t) out_column[t * out_step] = from_float<INPUT>(0.0f);
            continue;
        }
        INPUT* history = state + held * state_batch + channel * state_channel;
        // Where the state is circular, `next` is the place of the coming step.
        int next = 0;
        if (cache_seqlens) {
            next = cache_seqlens[b] % state_length;
            if (next < 0) next += state_length;
        }
        float window[WIDTH];
#pragma unroll
        for (int j = 0; j < HALO; ++j) {
            int place = (cache_seqlens ? next : state_length) - HALO + j;
            if (place < 0) place += state_length;
            window[j + 1] = to_float(history[place * state_step]);
        }
        if (!cache_seqlens) {
            for (int i = 0; i + length < state_length; ++i)
                history[i * state_step] = history[(i + length) * state_step];
        }
        for (int t = 0; t < length; ++t) {
            const float value = to_float(column[t * x_step]);
            // A shifted state keeps the last steps only.
            const int place = cache_seqlens ? next : state_length - length + t;
            if (place >= 0) history[place * state_step] = from_float<INPUT>(value);
            if (++next == state_length) next = 0;
#pragma unroll
            for (int k = 0; k < HALO; ++k) window[k] = window[k + 1];
            window[HALO] = value;
            out_column[t * out_step] =
                from_float<INPUT>(activate(convolve(filter, window, nullptr)));
        }
    }
}
