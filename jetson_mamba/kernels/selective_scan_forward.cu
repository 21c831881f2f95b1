// The selective scan's forward pass, and the first of its two passes where time is cut.
#include "selective_scan.cuh"

constexpr bool VARIABLE_B = !CONSTANT_B, VARIABLE_C = !CONSTANT_C;
// 168 registers, so that three blocks fit a multiprocessor.
constexpr int MINIMUM_BLOCKS = COMPLEX || FLOATS != 4 || LANES != 4 ? 1 : 3;

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

// Each lane leaves the sums over its own states in shared memory, where the lane that owns a step
// adds them: [channel][part][step]. The pitches put both accesses of a quarter-warp, 16 bytes a
// lane, into different banks. A row begins with four places for what precedes the tile.
constexpr int LEAD = 4;
constexpr int SUM_ROW = TILE + (PIECE == 4 ? 3 : 2) * LEAD;
constexpr int SUM_CHANNEL = LANES * SUM_ROW + (PIECE == 4 ? 0 : 4);

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
    using Stage = SettledStaging<most(1, matrices)>;
    __shared__ __align__(16) float shared_matrices[2][matrices ? Stage::floats : 4];
    __shared__ __align__(16) float shared_steps[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_inputs[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_sums[CARRY ? 4 : WARPS * CHANNELS * SUM_CHANNEL];
    __shared__ __align__(16) float shared_middle[CARRY || !KEPT ? 4 : THREADS * FLOATS];

    const Place place;
    const int part = place.part, own = part * PIECE;
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
    float* sums = shared_sums +
                  (CARRY ? 0 : (place.warp * CHANNELS + place.channel) * SUM_CHANNEL);
    float* shared_own = shared_middle + (CARRY || !KEPT ? 0 : threadIdx.x * FLOATS);

    const number* u_row = settled(p.u + batch * p.u_batch + d * p.u_dim);
    const number* delta_row = settled(p.delta + batch * p.delta_batch + d * p.delta_dim);
    const number* z_row =
        HAS_Z && !CARRY ? settled(p.z + batch * p.z_batch + d * p.z_dim) : nullptr;
    number* out_row = (KEPT || !HAS_Z) && !CARRY
                          ? settled(p.out + batch * p.out_batch + d * p.out_dim)
                          : nullptr;
    number* out_z_row =
        HAS_Z && !CARRY ? settled(p.out_z + batch * p.out_z_batch + d * p.out_z_dim) : nullptr;
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
    state h[STATES], b[STATES], c[STATES];
    load_weights(p.A, d, part, h);
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
        a[i] = to_rate(h[i]);
        h[i] = b[i] = c[i] = zero();
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
    state* x_row = p.x + ((batch * p.dim + d) * rows * DSTATE + part * STATES) * 2;

    float time = 0.0f;
    Stage stage;
    if (matrices) {
        stage.begin(sources);
        stage.fetch(begin, end);
    }
    Run<OWNED> u_next, delta_next, u_here, z_here;
    u_next.load(u_row, begin + own, end);
    delta_next.load(delta_row, begin + own, end);
    int half = 0;

#pragma unroll 1
    for (int tile = begin; tile < end; tile += TILE) {
        float values[OWNED], products[OWNED];
        u_here = u_next;
#pragma unroll
        for (int i = 0; i < OWNED; ++i) values[i] = to_step(delta_next.at(i), bias);
        if (tile + TILE > end) {
            // Steps past the end have no length and leave the states as they are.
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                values[i] = Run<OWNED>::masked(values[i], tile + own, i, end);
            }
        }
#pragma unroll
        for (int i = 0; i < OWNED; ++i) {
            products[i] = values[i] * u_here.at(i);
            if (CARRY) time += values[i];
        }
        put_steps(steps + own, values);
        put_steps(inputs + own, products);
        if (HAS_Z && !CARRY) z_here.load(z_row, tile + own, end);
        u_next.load(u_row, tile + TILE + own, end);
        delta_next.load(delta_row, tile + TILE + own, end);

        // Of the four steps in hand; those of the next four are read ahead.
        float dt[4], du[4], y[4] = {};
#pragma unroll 1
        for (int first = 0; first < TILE; first += PART) {
            if (matrices) {
                // The other half may still be read by slower warps; this half's readers are past
                // the barrier of the part before.
                stage.put(shared_matrices[half]);
                __syncthreads();
                if (tile + first + PART < end) stage.fetch(tile + first + PART, end);
            } else {
                __syncwarp();
            }
            if (first == 0) {
                get_four(steps, dt);
                get_four(inputs, du);
            }
            const float* matrix = shared_matrices[half] + part * FLOATS;
            half ^= 1;
#pragma unroll 4
            for (int t = 0; t < PART; t += 4) {
                float dt_next[4], du_next[4], y_next[4];
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    if (VARIABLE_B) get_states(matrix + (t + s) * WIDTH, b);
                    if (with_C) get_states(matrix + (VARIABLE_B * PART + t + s) * WIDTH, c);
                    if (s == 1) {
                        // Past the tile's end lie four numbers that nothing is computed from.
                        get_four(steps + first + t + 4, dt_next);
                        get_four(inputs + first + t + 4, du_next);
                        // The sums of the four steps before, which no load has to wait for.
                        if (!CARRY) put_four(sums + part * SUM_ROW + first + t, y);
                    }
                    y_next[s] = 0.0f;
#pragma unroll
                    for (int i = 0; i < STATES; ++i) {
                        h[i] = decay(dt[s], a[i]) * h[i] + du[s] * b[i];
                        if (!CARRY) y_next[s] += output(c[i], h[i]);
                    }
                }
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    dt[s] = dt_next[s], du[s] = du_next[s], y[s] = y_next[s];
                }
            }
        }
        if (!CARRY) put_four(sums + part * SUM_ROW + TILE, y);
        __syncwarp();
        if (!CARRY) {
            get_steps(sums + LEAD + own, values);
#pragma unroll
            for (int other = 1; other < LANES; ++other) {
                float more[OWNED];
                get_steps(sums + other * SUM_ROW + LEAD + own, more);
#pragma unroll
                for (int i = 0; i < OWNED; ++i) values[i] += more[i];
            }
            if (HAS_D) {
#pragma unroll
                for (int i = 0; i < OWNED; ++i) values[i] = fmaf(skip, u_here.at(i), values[i]);
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
            if (KEPT) {
                const int next = tile + TILE, into = next % (2 * INTERVAL);
                if (into > 0 && into <= INTERVAL) put_states(shared_own, h);
                if (into == 0 || next >= p.seqlen) {
                    state middle[STATES];
                    get_states(shared_own, middle);
                    state* row = x_row + static_cast<long long>(tile / (2 * INTERVAL)) * 2 * DSTATE;
                    if (valid) put_x(row, middle, h, DSTATE - part * STATES);
                }
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

#ifndef WITHOUT_ENTRIES
extern "C" {

// Grid: (channel blocks of all groups, batch, segments).
__global__ void __launch_bounds__(THREADS, MINIMUM_BLOCKS) selective_scan_forward(PARAMETERS) {
    if (SEGMENTED) wait_for_the_kernel_before();
    scan<false>(ARGUMENTS);
}

#if SEGMENTED
// Grid: (channel blocks of all groups, batch, segments - 1): the last end state is no carry.
__global__ void __launch_bounds__(THREADS) selective_scan_forward_carry(PARAMETERS) {
    scan<true>(ARGUMENTS);
}
#endif
}
#endif
