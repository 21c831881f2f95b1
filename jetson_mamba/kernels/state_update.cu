// One step of the selective scan with its state, for generation: h = exp(dt A) h + dt x B^T in
// place, out = C h + D x, times silu(z).
//
// LANES threads of a warp share a row of the state, dstate long: each has ROUNDS runs of VECTOR
// neighbouring states, and B and C of these, which serve all of its rows. A warp takes TILES times
// ROWS rows for each of its 32 / LANES parts, at most 32 in all; those of the next tile are on
// their way while one is worked on. With TIED, dt and A are one for all rows and states of a head
// (as Mamba-2 expands them), and so is the decay.
//
// With indices, batch element b uses state indices[b]; a negative one marks padding, whose output
// is zero. With LOGARITHM, A is -exp of what is given for it. With EARLY there are no indices, and
// the kernel before writes no state and has itself waited: states are loaded while it drains.
// Definitions: STATE, INPUT (x, z, B, C, out), STEP (dt), WEIGHT (A), SKIP (D), BIAS (dt_bias),
// INDEX; SOFTPLUS, LOGARITHM, EARLY, TIED, VECTOR, LANES, ROUNDS, ROWS, TILES, WARPS. Any strides;
// states of a row are contiguous, as are those of B and C where VECTOR > 1. Within a batch element
// and head, offsets are of 32 bits.
// Grid: (dim / rows of a block, nheads, batch).
#include "numbers.cuh"

constexpr int PARTS = 32 / LANES;

__device__ __forceinline__ float step_of(float raw) {
    if constexpr (SOFTPLUS) return raw > 20.0f ? raw : log1pf(expf(raw));
    return raw;
}

__device__ __forceinline__ float rate_of(WEIGHT given) {
    if constexpr (LOGARITHM) return -expf(to_float(given));
    return to_float(given);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) state_update(
    STATE* __restrict__ state, const INPUT* __restrict__ x, const STEP* __restrict__ dt,
    const WEIGHT* __restrict__ A, const INPUT* __restrict__ B, const INPUT* __restrict__ C,
    const SKIP* __restrict__ D, const INPUT* __restrict__ z,
    const BIAS* __restrict__ dt_bias, const INDEX* __restrict__ indices,
    INPUT* __restrict__ out, long long batch, long long dim64, long long dstate64,
    long long heads_of_a_group, long long state_batch, long long state_head, long long state_row,
    long long x_batch, long long x_head, long long x_row, long long dt_batch, long long dt_head,
    long long dt_row, long long A_head, long long A_row, long long A_state, long long B_batch,
    long long B_group, long long B_state, long long C_batch, long long C_group, long long C_state,
    long long D_head, long long D_row, long long z_batch, long long z_head, long long z_row,
    long long bias_head, long long bias_row, long long out_batch, long long out_head) {
    constexpr int OWN = PARTS * ROWS * TILES;
    const int dim = static_cast<int>(dim64), dstate = static_cast<int>(dstate64);
    const int head = blockIdx.y, group = head / static_cast<int>(heads_of_a_group);
    const int thread = threadIdx.x, lane = thread % LANES, part = thread / LANES;
    // Rows of a warp's parts lie side by side, those of a part PARTS apart. What a row has one of
    // each thread reads for one of the warp's rows.
    const int top = (blockIdx.x * WARPS + threadIdx.y) * OWN, own = top + thread;
    const bool has_own = thread < OWN && own < dim;
    const int row_stride = static_cast<int>(state_row);
    if constexpr (!EARLY) wait_for_the_kernel_before();
    for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
        INPUT* results = out + b * out_batch + head * out_head;
        const long long held = indices ? static_cast<long long>(indices[b]) : b;
        if (held < 0) {
            if (has_own) results[own] = from_float<INPUT>(0.0f);
            continue;
        }
        STATE* rows = state + held * state_batch + head * state_head;
        struct Tile {
            Packed<STATE, VECTOR> runs[ROWS][ROUNDS];
        };
        const auto load = [&](Tile& before, int tile) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int row = top + (tile * ROWS + r) * PARTS + part;
#pragma unroll
                for (int k = 0; k < ROUNDS; ++k) {
                    const int n = (k * LANES + lane) * VECTOR;
                    if (row < dim && n < dstate)
                        before.runs[r][k].load(rows + row * row_stride + n);
                }
            }
        };
        Tile before, coming;
        load(before, 0);
        if constexpr (EARLY) {
            wait_for_the_kernel_before();
            let_the_next_kernel_start();
        }
        float input = 0.0f, gate = 0.0f, skip = 0.0f, step = 0.0f, rate = 0.0f;
        if (TIED || has_own) {
            const int row = TIED ? 0 : own;
            step = to_float(dt[b * dt_batch + head * dt_head + row * dt_row]);
            if (dt_bias) step += to_float(dt_bias[head * bias_head + row * bias_row]);
            if constexpr (TIED) rate = rate_of(A[head * A_head]);
        }
        if (has_own) {
            input = to_float(x[b * x_batch + head * x_head + own * x_row]);
            if (D) skip = to_float(D[head * D_head + own * D_row]);
            if (z) gate = to_float(z[b * z_batch + head * z_head + own * z_row]);
        }
        float entering[ROUNDS][VECTOR], reading[ROUNDS][VECTOR];
#pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const int n = (k * LANES + lane) * VECTOR;
            const INPUT* from = B + b * B_batch + group * B_group;
            const INPUT* to = C + b * C_batch + group * C_group;
            if constexpr (VECTOR > 1) {
                if (n < dstate) {
                    Packed<INPUT, VECTOR> written, read;
                    written.load(from + n), read.load(to + n);
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i)
                        entering[k][i] = written.number(i), reading[k][i] = read.number(i);
                }
            } else if (n < dstate) {
                entering[k][0] = to_float(from[n * B_state]);
                reading[k][0] = to_float(to[n * C_state]);
            }
        }
        step = step_of(step);
        const float tied_decay = TIED ? expf(step * rate) : 0.0f, scaled = step * input;
        float result = 0.0f;
        // As a loop: unrolled it would take the registers of other warps.
#pragma unroll 1
        for (int tile = 0; tile < TILES; ++tile) {
            if (TILES > 1 && tile + 1 < TILES) load(coming, tile + 1);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int from = (tile * ROWS + r) * PARTS + part, row = top + from;
                const float written = __shfl_sync(0xffffffffu, scaled, from);
                float step_here = step;
                if constexpr (!TIED) step_here = __shfl_sync(0xffffffffu, step, from);
                float sum = 0.0f;
#pragma unroll
                for (int k = 0; k < ROUNDS; ++k) {
                    const int n = (k * LANES + lane) * VECTOR;
                    if (row >= dim || n >= dstate) continue;
                    float after[VECTOR];
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        float decay = tied_decay;
                        if constexpr (!TIED)
                            decay = expf(step_here * rate_of(A[head * A_head + row * A_row +
                                                               (n + i) * A_state]));
                        after[i] = decay * before.runs[r][k].number(i) +
                                   written * entering[k][i];
                        sum += after[i] * reading[k][i];
                    }
                    Packed<STATE, VECTOR> packed;
                    packed.pack(after);
                    packed.store(rows + row * row_stride + n);
                }
#pragma unroll
                for (int lanes = LANES / 2; lanes; lanes /= 2)
                    sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
                const float found = __shfl_sync(0xffffffffu, sum, thread % PARTS * LANES);
                if (thread / PARTS == tile * ROWS + r) result = found;
            }
            if constexpr (TILES > 1) before = coming;
        }
        if (!has_own) continue;
        result += skip * input;
        if (z) result *= gate * sigmoid(gate);
        results[own] = from_float<INPUT>(result);
    }
}
