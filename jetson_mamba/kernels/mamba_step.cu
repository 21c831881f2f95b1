// What a step of a layer of Mamba does between its projections, for generation: the projection of
// the step size, h = exp(dt A) h + dt x B in place, out = (C h + D x) silu(z); A = -exp(A_log).
//
// LANES threads have a channel: four neighbouring states each, and every LANES-th run of VECTOR
// columns of the channel's row of the step size's weight, ROUNDS of them.
//
// With EARLY, the kernel before writes no weights or states and has itself waited: they are loaded
// while it drains.
//
// Definitions: INPUT (x, z, dt, B, C, out and W), STATE, RATE (A_log), SKIP (D), BIAS (dt_bias);
// VECTOR, LANES, ROUNDS, THREADS, EARLY. States of a channel are neighbours, as are the columns of all.
// Grid: (dim / (THREADS / LANES), batch).
#include "numbers.cuh"

constexpr int CHANNELS = THREADS / LANES, STATES = 4;

extern "C" __global__ void __launch_bounds__(THREADS) mamba_step(
    STATE* __restrict__ state, const INPUT* __restrict__ x, const INPUT* __restrict__ z,
    const INPUT* __restrict__ dt, const INPUT* __restrict__ W, const RATE* __restrict__ A_log,
    const INPUT* __restrict__ B, const INPUT* __restrict__ C, const SKIP* __restrict__ D,
    const BIAS* __restrict__ dt_bias, INPUT* __restrict__ out, long long dim64, long long rank64,
    long long state_batch, long long x_batch, long long z_batch, long long dt_batch,
    long long B_batch, long long C_batch, long long out_batch) {
    const int dim = static_cast<int>(dim64), vectors = static_cast<int>(rank64) / VECTOR;
    const int lane = threadIdx.x % LANES, b = blockIdx.y;
    const int channel = blockIdx.x * CHANNELS + threadIdx.x / LANES;
    // Threads beyond the last channel work on it too, and write nothing.
    const int own = min(channel, dim - 1);
    STATE* states = state + b * state_batch + (static_cast<long long>(own) * LANES + lane) * STATES;
    if constexpr (!EARLY) wait_for_the_kernel_before();
    Packed<STATE, STATES> before;
    Packed<RATE, STATES> logs;
    Packed<INPUT, VECTOR> weights[ROUNDS];
    before.load(states);
    logs.load(A_log + (static_cast<long long>(own) * LANES + lane) * STATES);
#pragma unroll
    for (int k = 0; k < ROUNDS; ++k) {
        const int v = k * LANES + lane;
        if (v < vectors) weights[k].load(W + static_cast<long long>(own) * rank64 + v * VECTOR);
    }
    const float skip = D ? to_float(D[own]) : 0.0f, bias = dt_bias ? to_float(dt_bias[own]) : 0.0f;
    if constexpr (EARLY) wait_for_the_kernel_before();
    let_the_next_kernel_start();
    Packed<INPUT, STATES> written, read;
    written.load(B + b * B_batch + lane * STATES), read.load(C + b * C_batch + lane * STATES);
    const float input = to_float(x[b * x_batch + own]), gate = to_float(z[b * z_batch + own]);
    float step = 0.0f;
#pragma unroll
    for (int k = 0; k < ROUNDS; ++k) {
        const int v = k * LANES + lane;
        if (v >= vectors) continue;
        Packed<INPUT, VECTOR> low;
        low.load(dt + b * dt_batch + v * VECTOR);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) step += weights[k].number(i) * low.number(i);
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes; lanes /= 2)
        step += __shfl_xor_sync(0xffffffffu, step, lanes);
    // As the product of its own leaves it: rounded.
    step = to_float(from_float<INPUT>(step)) + bias;
    step = step > 20.0f ? step : log1pf(expf(step));
    const float entering = step * input;
    float after[STATES], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
        after[i] = expf(-step * expf(logs.number(i))) * before.number(i) +
                   entering * written.number(i);
        sum += after[i] * read.number(i);
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes; lanes /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (channel >= dim) return;
    Packed<STATE, STATES> packed;
    packed.pack(after);
    packed.store(states);
    if (lane == 0)
        out[b * out_batch + own] = from_float<INPUT>((sum + skip * input) * gate * sigmoid(gate));
}
