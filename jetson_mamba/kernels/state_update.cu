// One step of the selective scan with its state, for generation: h = exp(dt A) h + dt x B^T in
// place, out = C h + D x, times silu(z).
//
// LANES threads of a warp share a row of the state, dstate long: each has ROUNDS runs of VECTOR
// neighbouring states, and B and C of these, which serve all of its rows. A warp takes ROWS rows at
// a time for each of its 32 / LANES parts, loading all before any is used. With TIED, dt and A are
// one for all rows and states of a head (as Mamba-2 expands them), and so is the decay.
//
// With indices, batch element b uses state indices[b]; a negative one marks padding, whose output
// is zero. Definitions: STATE, INPUT (x, z, B, C, out), STEP (dt), WEIGHT (A, D, dt_bias),
// INDEX; SOFTPLUS, TIED, VECTOR, LANES, ROUNDS, ROWS, WARPS. Any strides; states of a row are
// contiguous, as are those of B and C where VECTOR > 1.
// Grid: (dim / rows of a block, nheads, batch).
#include "numbers.cuh"

constexpr int PARTS = 32 / LANES;
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float step_of(float raw) {
    if constexpr (SOFTPLUS) return raw > 20.0f ? raw : log1pf(expf(raw));
    return raw;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) state_update(
    STATE* __restrict__ state, const INPUT* __restrict__ x, const STEP* __restrict__ dt,
    const WEIGHT* __restrict__ A, const INPUT* __restrict__ B, const INPUT* __restrict__ C,
    const WEIGHT* __restrict__ D, const INPUT* __restrict__ z,
    const WEIGHT* __restrict__ dt_bias, const INDEX* __restrict__ indices,
    INPUT* __restrict__ out, long long batch, long long dim64, long long dstate64,
    long long heads_of_a_group, long long state_batch, long long state_head, long long state_row,
    long long x_batch, long long x_head, long long x_row, long long dt_batch, long long dt_head,
    long long dt_row, long long A_head, long long A_row, long long A_state, long long B_batch,
    long long B_group, long long B_state, long long C_batch, long long C_group, long long C_state,
    long long D_head, long long D_row, long long z_batch, long long z_head, long long z_row,
    long long bias_head, long long bias_row, long long out_batch, long long out_head) {
    const int dim = static_cast<int>(dim64), dstate = static_cast<int>(dstate64);
    const int head = blockIdx.y, group = head / static_cast<int>(heads_of_a_group);
    const int lane = threadIdx.x % LANES, part = threadIdx.x / LANES;
    // Rows of a warp's parts lie side by side, those of a part PARTS apart.
    const int first = (blockIdx.x * WARPS + threadIdx.y) * PARTS * ROWS + part;
    for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
        const long long held = indices ? static_cast<long long>(indices[b]) : b;
        if (held < 0) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int row = first + r * PARTS;
                if (lane == 0 && row < dim)
                    out[b * out_batch + head * out_head + row] = from_float<INPUT>(0.0f);
            }
            continue;
        }
        STATE* rows = state + held * state_batch + head * state_head;
        Packed<STATE, VECTOR> before[ROWS][ROUNDS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = first + r * PARTS;
#pragma unroll
            for (int k = 0; k < ROUNDS; ++k) {
                const int n = (k * LANES + lane) * VECTOR;
                if (row < dim && n < dstate) before[r][k].load(rows + row * state_row + n);
            }
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
        float tied_step = 0.0f, tied_decay = 0.0f;
        if constexpr (TIED) {
            tied_step = to_float(dt[b * dt_batch + head * dt_head]);
            if (dt_bias) tied_step += to_float(dt_bias[head * bias_head]);
            tied_step = step_of(tied_step);
            tied_decay = expf(tied_step * to_float(A[head * A_head]));
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = first + r * PARTS;
            const bool is_row = row < dim;
            float sum = 0.0f, input = 0.0f;
            if (is_row) {
                input = to_float(x[b * x_batch + head * x_head + row * x_row]);
                float step = tied_step;
                if constexpr (!TIED) {
                    step = to_float(dt[b * dt_batch + head * dt_head + row * dt_row]);
                    if (dt_bias) step += to_float(dt_bias[head * bias_head + row * bias_row]);
                    step = step_of(step);
                }
                const float scaled = step * input;
#pragma unroll
                for (int k = 0; k < ROUNDS; ++k) {
                    const int n = (k * LANES + lane) * VECTOR;
                    if (n >= dstate) continue;
                    float after[VECTOR];
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        float decay = tied_decay;
                        if constexpr (!TIED)
                            decay = expf(step * to_float(A[head * A_head + row * A_row +
                                                           (n + i) * A_state]));
                        after[i] = decay * before[r][k].number(i) + scaled * entering[k][i];
                        sum += after[i] * reading[k][i];
                    }
                    Packed<STATE, VECTOR> written;
                    written.pack(after);
                    written.store(rows + row * state_row + n);
                }
            }
#pragma unroll
            for (int lanes = LANES / 2; lanes; lanes /= 2)
                sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
            if (!is_row || lane) continue;
            if (D) sum += to_float(D[head * D_head + row * D_row]) * input;
            if (z) {
                const float gate = to_float(z[b * z_batch + head * z_head + row * z_row]);
                sum *= gate * sigmoid(gate);
            }
            out[b * out_batch + head * out_head + row] = from_float<INPUT>(sum);
        }
    }
}
