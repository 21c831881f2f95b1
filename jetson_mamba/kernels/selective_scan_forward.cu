// The selective scan's forward pass, and the first of its two passes where time is cut.
#include "selective_scan.cuh"

constexpr bool VARIABLE_B = !CONSTANT_B, VARIABLE_C = !CONSTANT_C;

struct Arguments {
    const number *u, *delta, *B, *C, *z;
    const state *A, *constant_B, *constant_C;
    const float *D, *bias;
    number *out, *out_z;
    state* x;
    state* carry;        // (batch, dim, segments, PADDED): a segment's end state, begun from zero
    float* carry_time;   // (batch, dim, segments): the sum of its delta
    long long dim, group_channels, seqlen, segment_length, segments;
    long long u_batch, u_dim, delta_batch, delta_dim, z_batch, z_dim;
    long long out_batch, out_dim, out_z_batch, out_z_dim;
    long long B_batch, B_group, B_state, C_batch, C_group, C_state;
};

// A lane's states in a row of x, those of the middle and the end side by side; `count` are left.
__device__ __forceinline__ void put_x(state* row, const state* middle, const state* end,
                                      int count) {
    if constexpr (DSTATE % STATES == 0) {
        // Whole vectors: a warp's stores fill their sectors.
        state pairs[2 * STATES];
#pragma unroll
        for (int i = 0; i < STATES; ++i) pairs[2 * i] = middle[i], pairs[2 * i + 1] = end[i];
        if (count > 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                put_states(reinterpret_cast<float*>(row + i * STATES), pairs + i * STATES);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < STATES; ++i) {
            if (i < count) row[2 * i] = middle[i], row[2 * i + 1] = end[i];
        }
    }
}

// CARRY: only what the next segments need, the state at the end.
template <bool CARRY>
__device__ __forceinline__ void scan(const Arguments& p) {
    constexpr bool with_C = VARIABLE_C && !CARRY;
    constexpr int matrices = VARIABLE_B + with_C;
    using Stage = Staging<most(1, matrices)>;
    __shared__ __align__(16) float shared_matrices[2][matrices ? Stage::floats : 4];
    __shared__ __align__(16) float shared_steps[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_inputs[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_outputs[CARRY ? 1 : WARPS][CHANNELS][PITCH];

    const Place place;
    const int lane = place.lane, part = place.part;
    const long long batch = blockIdx.y, segment = SEGMENTED ? blockIdx.z : 0;
    const int group_blocks = (p.group_channels + BLOCK_CHANNELS - 1) / BLOCK_CHANNELS;
    const long long group = blockIdx.x / group_blocks;
    const long long in_group = static_cast<long long>(blockIdx.x % group_blocks) * BLOCK_CHANNELS +
                               place.warp * CHANNELS + place.channel;
    const bool valid = in_group < p.group_channels;
    const long long d = group * p.group_channels + (valid ? in_group : p.group_channels - 1);
    const int begin = segment * p.segment_length;
    const int end = SEGMENTED && begin + p.segment_length < p.seqlen
                        ? static_cast<int>(begin + p.segment_length)
                        : static_cast<int>(p.seqlen);
    const int readable = valid ? end : 0;

    float* steps = shared_steps[place.warp][place.channel];
    float* inputs = shared_inputs[place.warp][place.channel];
    float* outputs = shared_outputs[CARRY ? 0 : place.warp][place.channel];

    const number* u_row = p.u + batch * p.u_batch + d * p.u_dim;
    const number* delta_row = p.delta + batch * p.delta_batch + d * p.delta_dim;
    const number* z_row = HAS_Z ? p.z + batch * p.z_batch + d * p.z_dim : nullptr;
    number* out_row = p.out + batch * p.out_batch + d * p.out_dim;
    number* out_z_row = HAS_Z ? p.out_z + batch * p.out_z_batch + d * p.out_z_dim : nullptr;
    const float bias = HAS_BIAS ? p.bias[d] : 0.0f;
    const float skip = HAS_D && !CARRY ? p.D[d] : 0.0f;
    Matrix sources[2];
    if (VARIABLE_B) {
        sources[0] = {p.B + batch * p.B_batch + group * p.B_group, p.B_state};
    }
    if (with_C) {
        sources[VARIABLE_B] = {p.C + batch * p.C_batch + group * p.C_group, p.C_state};
    }

    rate a[STATES];
    state h[STATES], middle[STATES], b[STATES], c[STATES];
    load_weights(p.A, d, part, h);
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
        a[i] = to_rate(h[i]);
        h[i] = middle[i] = b[i] = c[i] = zero();
    }
    if (CONSTANT_B) load_weights(p.constant_B, d, part, b);
    if (CONSTANT_C && !CARRY) load_weights(p.constant_C, d, part, c);
    const long long carry_row = (batch * p.dim + d) * p.segments;
    if (SEGMENTED && !CARRY) {
        for (int before = 0; before < segment; ++before) {
            const float time = p.carry_time[carry_row + before];
#pragma unroll
            for (int i = 0; i < STATES; ++i) {
                h[i] = decay(time, a[i]) * h[i] +
                       p.carry[(carry_row + before) * PADDED + part * STATES + i];
            }
        }
    }
    const long long rows = (p.seqlen + 2 * INTERVAL - 1) / (2 * INTERVAL);
    state* x_row = p.x + (batch * p.dim + d) * rows * 2 * DSTATE;

    float time = 0.0f;
    Stage stage;
    if (matrices) stage.fetch(sources, begin, end);
    Run<OWNED> u_next, delta_next, u_here, z_here;
    const int own = part * OWNED;
    u_next.load(u_row, begin + own, end);
    delta_next.load(delta_row, begin + own, end);
    int half = 0;

    for (int tile = begin; tile < end; tile += TILE) {
        float values[OWNED], products[OWNED];
        u_here = u_next;
#pragma unroll
        for (int i = 0; i < OWNED; ++i) {
            const float step = to_step(delta_next.at(i), bias);
            values[i] = Run<OWNED>::masked(step, tile + own, i, readable);
            products[i] = values[i] * u_here.at(i);
            if (CARRY) time += values[i];
        }
        put_steps(steps + own, values);
        put_steps(inputs + own, products);
        if (HAS_Z && !CARRY) z_here.load(z_row, tile + own, end);
        u_next.load(u_row, tile + TILE + own, end);
        delta_next.load(delta_row, tile + TILE + own, end);

#pragma unroll 1
        for (int first = 0; first < TILE; first += PART) {
            if (matrices) {
                // The other half may still be read by slower warps; this half's readers are past
                // the barrier of the part before.
                stage.put(shared_matrices[half]);
                __syncthreads();
                if (tile + first + PART < end) stage.fetch(sources, tile + first + PART, end);
            } else {
                __syncwarp();
            }
            const float* matrix = shared_matrices[half] + part * FLOATS;
            half ^= 1;
            // Four times four steps are in flight; more of them overflow the instruction cache.
#pragma unroll 4
            for (int t = 0; t < PART; t += 4) {
                float dt[4], du[4], y[4];
                get_four(steps + first + t, dt);
                get_four(inputs + first + t, du);
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    if (VARIABLE_B) get_states(matrix + (t + s) * WIDTH, b);
                    if (with_C) get_states(matrix + (VARIABLE_B * PART + t + s) * WIDTH, c);
                    y[s] = 0.0f;
#pragma unroll
                    for (int i = 0; i < STATES; ++i) {
                        h[i] = decay(dt[s], a[i]) * h[i] + du[s] * b[i];
                        if (!CARRY) y[s] += output(c[i], h[i]);
                    }
                }
                if (!CARRY) {
                    sum_over_states<4>(y, lane);
                    if (LANES <= 4 || part < 4) {
#pragma unroll
                        for (int s = 0; s < most(1, 4 / LANES); ++s) {
                            outputs[first + t + index_over_states<4>(lane) + s] = y[s];
                        }
                    }
                }
            }
        }
        __syncwarp();
        if (!CARRY) {
            get_steps(outputs + own, values);
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                values[i] = HAS_D ? fmaf(skip, u_here.at(i), values[i]) : values[i];
            }
            Run<OWNED> packed;
            if (KEPT || !HAS_Z) {
                packed.pack(values);
                packed.store(out_row, tile + own, readable);
            }
            if (HAS_Z) {
#pragma unroll
                for (int i = 0; i < OWNED; ++i) {
                    const float gate = z_here.at(i);
                    values[i] *= gate * sigmoid(gate);
                }
                packed.pack(values);
                packed.store(out_z_row, tile + own, readable);
            }
            const int next = tile + TILE;
            if (KEPT && next % (2 * INTERVAL) == INTERVAL) {
#pragma unroll
                for (int i = 0; i < STATES; ++i) middle[i] = h[i];
            }
            if (KEPT && (next % (2 * INTERVAL) == 0 || next >= p.seqlen)) {
                state* row = x_row + static_cast<long long>(tile / (2 * INTERVAL)) * 2 * DSTATE;
                if (valid) put_x(row + 2 * part * STATES, middle, h, DSTATE - part * STATES);
            }
        }
    }
    if (CARRY) {
#pragma unroll
        for (int bit = 1; bit < LANES; bit *= 2) {
            time += __shfl_xor_sync(0xffffffffu, time, bit << LANE_SHIFT);
        }
        if (!valid) return;
        if (part == 0) p.carry_time[carry_row + segment] = time;
#pragma unroll
        for (int i = 0; i < STATES; ++i) {
            p.carry[(carry_row + segment) * PADDED + part * STATES + i] = h[i];
        }
    }
}

#define PARAMETERS                                                                                \
    const number *u, const number *delta, const state *A, const void *B, const void *C,           \
        const float *D, const number *z, const float *bias, number *out, number *out_z, state *x, \
        state *carry, float *carry_time, long long dim, long long group_channels,                 \
        long long seqlen, long long segment_length, long long segments, long long u_batch,        \
        long long u_dim, long long delta_batch, long long delta_dim, long long z_batch,           \
        long long z_dim, long long out_batch, long long out_dim, long long out_z_batch,           \
        long long out_z_dim, long long B_batch, long long B_group, long long B_state,             \
        long long C_batch, long long C_group, long long C_state
#define ARGUMENTS                                                                                 \
    Arguments {                                                                                   \
        u, delta, static_cast<const number*>(B), static_cast<const number*>(C), z, A,             \
            static_cast<const state*>(B), static_cast<const state*>(C), D, bias, out, out_z, x,   \
            carry, carry_time, dim, group_channels, seqlen, segment_length, segments, u_batch,    \
            u_dim, delta_batch, delta_dim, z_batch, z_dim, out_batch, out_dim, out_z_batch,       \
            out_z_dim, B_batch, B_group, B_state, C_batch, C_group, C_state                       \
    }

extern "C" {

// Grid: (channel blocks of all groups, batch, segments).
__global__ void __launch_bounds__(THREADS) selective_scan_forward(PARAMETERS) {
    scan<false>(ARGUMENTS);
}

#if SEGMENTED
// Grid: (channel blocks of all groups, batch, segments - 1): the last end state is no carry.
__global__ void __launch_bounds__(THREADS) selective_scan_forward_carry(PARAMETERS) {
    scan<true>(ARGUMENTS);
}
#endif
}
