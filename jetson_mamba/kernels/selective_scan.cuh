// What the selective scan's forward and backward kernels share: how a warp's lanes divide channels
// and states, the staging of a tile of steps in shared memory, and the numbers' arithmetic.
//
//   h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t],   y[t] = C[t] h[t]        (Gu & Dao 2023)
//
// A lane holds STATES states of one channel, LANES lanes hold a channel, CHANNELS channels fill a
// warp. Steps are walked in order, so nothing is scanned across lanes; long sequences with few
// channels are cut into segments of time instead, whose carries a first kernel computes.
// docs/notes-kernels.md has the reasons.
//
// Definitions from the host (jetson_mamba/ops/selective_scan/cuda.py):
//   NUMBER                float, half_t or bfloat16_t: u, delta, z, variable B and C, outputs
//   DSTATE                states per channel
//   COMPLEX               A, B, C and the states are complex
//   CONSTANT_B/C          B/C is (dim, dstate), not (batch, groups, dstate, seqlen)
//   HAS_D, HAS_Z, HAS_BIAS, SOFTPLUS
//   ALIGNED               every row of a tensor with a time axis is made of whole 16-byte vectors
//   INTERVAL              steps between the states that x keeps
//   SEGMENTED             time is cut into segments, whose carries were computed before
//   KEPT                  the forward pass leaves what the backward pass needs: x, and out with z
//   WARPS                 warps in a block
#pragma once

#include "numbers.cuh"

using number = NUMBER;

constexpr int COMPONENTS = COMPLEX ? 2 : 1;
constexpr float LOG2_E = 1.4426950408889634f;

constexpr int power_of_two_above(int n) {
    int result = 1;
    while (result < n) result *= 2;
    return result;
}
constexpr int log2_of(int n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }
__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int most(int a, int b) { return a > b ? a : b; }

// Four floats of state a lane fill one 16-byte access to shared memory; beyond 32 lanes a channel,
// a lane holds more.
constexpr int STATES = most(COMPLEX ? 2 : 4, power_of_two_above((DSTATE + 31) / 32));
constexpr int LANES = power_of_two_above((DSTATE + STATES - 1) / STATES);
constexpr int CHANNELS = 32 / LANES;
constexpr int BLOCK_CHANNELS = CHANNELS * WARPS;
constexpr int THREADS = 32 * WARPS;
constexpr int PADDED = LANES * STATES;         // states of a channel, with those past DSTATE
constexpr int WIDTH = PADDED * COMPONENTS;     // and their floats
constexpr int FLOATS = STATES * COMPONENTS;    // floats of state in a lane

// A warp stages TILE steps of its channels; in that work a lane owns OWNED steps of one channel.
// The block stages the B and C of PART steps.
constexpr int TILE = least(32, 8 * LANES);
static_assert(INTERVAL % TILE == 0, "x keeps states at the ends of tiles");
constexpr int OWNED = TILE / LANES;
// Its steps lie in pieces of up to 16 bytes, those of a channel's lanes side by side: an access of
// a warp is made of whole sectors.
constexpr int PIECE = least(OWNED, 16 / static_cast<int>(sizeof(number)));
// Where owned step i lies, from the lane's first one.
constexpr __host__ __device__ int place_of(int i) { return i / PIECE * LANES * PIECE + i % PIECE; }
constexpr int PITCH = TILE + 4;                // rows 16 bytes apart modulo the banks
constexpr int PART = least(TILE, most(4, (WIDTH >= 64 ? 1024 : 2048) / WIDTH));

// Lanes of a warp: the low LANE_SHIFT bits are the channel's, the next the state's, the rest the
// channel's again. With LANE_SHIFT 1, neighbours (xor 1) read the same B and C, and lanes two apart
// the same delta, which lets the two quarters of a half-warp share a 16-byte access. The backward
// pass wants four channels side by side, for its matrix instructions.
#ifndef CHANNEL_BITS
#define CHANNEL_BITS 1
#endif
constexpr int LANE_SHIFT = least(CHANNEL_BITS, log2_of(CHANNELS));
constexpr int next_bit(int bit) {
    return 2 * bit == 1 << LANE_SHIFT ? LANES << LANE_SHIFT : 2 * bit;
}

#if COMPLEX
struct state {
    float re, im;
};
__device__ __forceinline__ state zero() { return {0.0f, 0.0f}; }
__device__ __forceinline__ state operator*(state a, state b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ state operator*(float a, state b) { return {a * b.re, a * b.im}; }
__device__ __forceinline__ state operator+(state a, state b) {
    return {a.re + b.re, a.im + b.im};
}
__device__ __forceinline__ state conjugate(state a) { return {a.re, -a.im}; }
__device__ __forceinline__ float dot(state a, state b) { return a.re * b.re + a.im * b.im; }
// y sums the states and their conjugates: twice the real part of C h.
__device__ __forceinline__ float output(state c, state h) {
    return 2.0f * (c.re * h.re - c.im * h.im);
}
__device__ __forceinline__ state output_gradient(float g, state h) {
    return {2.0f * g * h.re, -2.0f * g * h.im};
}
// A is kept in turns of pi and powers of two: no slow path for large angles.
struct rate {
    float log2_decay, half_turns;
};
__device__ __forceinline__ rate to_rate(state a) {
    return {a.re * LOG2_E, a.im * 0.31830988618379067f};
}
__device__ __forceinline__ state decay(float dt, rate a) {
    state turn;
    sincospif(dt * a.half_turns, &turn.im, &turn.re);
    return exp2_fast(dt * a.log2_decay) * turn;
}
__device__ __forceinline__ state state_gradient(float g, state c) {
    return {2.0f * g * c.re, -2.0f * g * c.im};
}
constexpr float RATE_UNIT = 1.0f;
__device__ __forceinline__ float rate_gradient(rate a, state p) {
    return a.log2_decay * 0.6931471805599453f * p.re + a.half_turns * 3.141592653589793f * p.im;
}
#else
using state = float;
using rate = float;
__device__ __forceinline__ state zero() { return 0.0f; }
__device__ __forceinline__ state conjugate(state a) { return a; }
__device__ __forceinline__ float dot(state a, state b) { return a * b; }
__device__ __forceinline__ float output(state c, state h) { return c * h; }
__device__ __forceinline__ state output_gradient(float g, state h) { return g * h; }
__device__ __forceinline__ rate to_rate(state a) { return a * LOG2_E; }
__device__ __forceinline__ state decay(float dt, rate a) { return exp2_fast(dt * a); }
__device__ __forceinline__ state state_gradient(float g, state c) { return g * c; }
// The gradient of delta through the decays is summed in A's own unit and scaled once.
constexpr float RATE_UNIT = 0.6931471805599453f;
__device__ __forceinline__ float rate_gradient(rate a, state p) { return a * p; }
#endif

// softplus(x) = max(x, 0) + log(1 + y), y = exp(-|x|). The polynomials are log(1 + y) / y on
// [0, 1], minimax in relative error (8e-6 and 2e-7), so that a small delta keeps its digits; they
// also spare the special function unit a logarithm. Complex A turns an error of delta into one of
// the angle, so it takes the second, which costs it nothing that shows.
__device__ __forceinline__ float softplus(float x) {
    const float y = exp2_fast(-LOG2_E * fabsf(x));
    float p;
    if constexpr (sizeof(number) == 2 && !COMPLEX) {
        p = -2.386913973e-2f;
        p = fmaf(p, y, 1.012222548e-1f);
        p = fmaf(p, y, -2.100486635e-1f);
        p = fmaf(p, y, 3.252066707e-1f);
        p = fmaf(p, y, -4.993613635e-1f);
        p = fmaf(p, y, 9.999915981e-1f);
    } else {
        p = 5.232691458e-3f;
        p = fmaf(p, y, -2.950522753e-2f);
        p = fmaf(p, y, 7.822593356e-2f);
        p = fmaf(p, y, -1.366324424e-1f);
        p = fmaf(p, y, 1.910600603e-1f);
        p = fmaf(p, y, -2.484298203e-1f);
        p = fmaf(p, y, 3.331909678e-1f);
        p = fmaf(p, y, -4.999949314e-1f);
        p = fmaf(p, y, 9.999999699e-1f);
    }
    return fmaf(p, y, fmaxf(x, 0.0f));
}

__device__ __forceinline__ float to_step(float raw, float bias) {
    const float x = raw + bias;
    return SOFTPLUS ? softplus(x) : x;
}

// Sums each of COUNT values over LANE_COUNT lanes and leaves the lanes with one sum each (or
// COUNT / LANE_COUNT): half as many exchanges as summing all of them everywhere. The lanes differ
// in bit BIT and those that follow; `spread_index` says which sums a lane ends with.
template <int COUNT, int LANE_COUNT, int BIT>
__device__ __forceinline__ void spread_sum(float* values, int lane) {
    if constexpr (LANE_COUNT > 1) {
        if constexpr (COUNT > 1) {
            constexpr int half = COUNT / 2;
            const bool upper = lane & BIT;
#pragma unroll
            for (int i = 0; i < half; ++i) {
                const float sent = upper ? values[i] : values[i + half];
                const float kept = upper ? values[i + half] : values[i];
                values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, BIT);
            }
            spread_sum<half, LANE_COUNT / 2, next_bit(BIT)>(values, lane);
        } else {
            values[0] += __shfl_xor_sync(0xffffffffu, values[0], BIT);
            spread_sum<1, LANE_COUNT / 2, next_bit(BIT)>(values, lane);
        }
    }
}
template <int COUNT, int LANE_COUNT, int BIT>
__device__ __forceinline__ int spread_index(int lane) {
    if constexpr (LANE_COUNT > 1 && COUNT > 1) {
        return (lane & BIT ? COUNT / 2 : 0) +
               spread_index<COUNT / 2, LANE_COUNT / 2, next_bit(BIT)>(lane);
    } else {
        return 0;
    }
}
constexpr int FIRST_STATE_BIT = 1 << LANE_SHIFT;
constexpr int FIRST_CHANNEL_BIT = LANE_SHIFT ? 1 : LANES;
template <int COUNT>
__device__ __forceinline__ void sum_over_states(float* values, int lane) {
    spread_sum<COUNT, LANES, FIRST_STATE_BIT>(values, lane);
}
template <int COUNT>
__device__ __forceinline__ int index_over_states(int lane) {
    return spread_index<COUNT, LANES, FIRST_STATE_BIT>(lane);
}
template <int COUNT>
__device__ __forceinline__ void sum_over_channels(float* values, int lane) {
    spread_sum<COUNT, CHANNELS, FIRST_CHANNEL_BIT>(values, lane);
}
template <int COUNT>
__device__ __forceinline__ int index_over_channels(int lane) {
    return spread_index<COUNT, CHANNELS, FIRST_CHANNEL_BIT>(lane);
}

// D = A B + C of one warp, with 16 x 8 by 8 x 8 numbers of which the upper 19 bits are read. With
// row = lane / 4 and column = lane % 4, A is (row, column), (row + 8, column), (row, column + 4),
// (row + 8, column + 4); B is (column, row), (column + 4, row); C and D are (row, 2 column),
// (row, 2 column + 1) and the same eight rows below.
__device__ __forceinline__ void multiply(float (&d)[4], float a0, float a1, float a2, float a3,
                                         float b0, float b1, const float (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
          "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)),
          "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
// A value whose upper 19 bits are the nearest to it, for `multiply` to read.
__device__ __forceinline__ float rounded(float value) {
    return __uint_as_float(__float_as_uint(value) + 0x1000u);
}

// The place of a thread: which channel and which of its states.
struct Place {
    int warp, lane;
    int channel;   // of the warp's CHANNELS
    int part;      // of the channel's LANES
    __device__ __forceinline__ Place() {
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        constexpr int low = (1 << LANE_SHIFT) - 1;
        part = (lane >> LANE_SHIFT) & (LANES - 1);
        channel = (lane & low) | ((lane >> (LANE_SHIFT + log2_of(LANES))) << LANE_SHIFT);
    }
};

// Numbers of a row, packed as they lie in memory: one piece of neighbours, or a lane's own steps.
template <int COUNT>
struct Run {
    static constexpr int each = least(COUNT, 16 / static_cast<int>(sizeof(number)));
    static constexpr int pieces = COUNT / each;
    static constexpr int apart = LANES * each;
    Packed<number, each> piece[pieces];

    __device__ __forceinline__ float at(int i) const { return piece[i / each].number(i % each); }

    // Whether number i, at `first` + i, is before `end`; rows that are ALIGNED end with a piece.
    static __device__ __forceinline__ bool within(int first, int i, int end) {
        return first + i / each * apart + (ALIGNED ? 0 : i % each) < end;
    }
    static __device__ __forceinline__ float masked(float value, int first, int i, int end) {
        return within(first, i, end) ? value : 0.0f;
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
#pragma unroll
            for (int j = 0; j < Packed<number, each>::count; ++j) piece[i].words[j] = 0;
        }
    }
    // Numbers at `end` and beyond are some others of the row, or zero: a step of length zero and an
    // output gradient of zero leave them without effect. So no load waits for a branch.
    __device__ __forceinline__ void load(const number* row, int first, int end) {
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
            if (ALIGNED) {
                piece[i].load(row + least(first + i * apart, end - each));
            } else {
                piece[i].load_some(row + first + i * apart, end - first - i * apart);
            }
        }
    }
    __device__ __forceinline__ void pack(const float (&values)[COUNT]) {
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
            piece[i].pack(reinterpret_cast<const float(&)[each]>(values[i * each]));
        }
    }
    __device__ __forceinline__ void store(number* row, int first, int end) const {
        number* address = row + first;
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
            if (!ALIGNED) {
                piece[i].store_some(address + i * apart, end - first - i * apart);
            } else if (within(first, i * each, end)) {
                piece[i].store(address + i * apart);
            }
        }
    }
};

// A lane's own steps, in a row of floats in shared memory and back.
__device__ __forceinline__ void put_steps(float* row, const float* values) {
    if constexpr (OWNED % 4 == 0) {
#pragma unroll
        for (int i = 0; i < OWNED; i += 4) {
            *reinterpret_cast<float4*>(row + place_of(i)) =
                make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < OWNED; ++i) row[i] = values[i];
    }
}
__device__ __forceinline__ void get_steps(const float* row, float* values) {
    if constexpr (OWNED % 4 == 0) {
#pragma unroll
        for (int i = 0; i < OWNED; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(row + place_of(i));
            values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < OWNED; ++i) values[i] = row[i];
    }
}
__device__ __forceinline__ void get_two(const float* row, float* values) {
    const float2 v = *reinterpret_cast<const float2*>(row);
    values[0] = v.x, values[1] = v.y;
}
__device__ __forceinline__ void get_four(const float* row, float* values) {
    const float4 v = *reinterpret_cast<const float4*>(row);
    values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
}
__device__ __forceinline__ void put_four(float* row, const float* values) {
    *reinterpret_cast<float4*>(row) = make_float4(values[0], values[1], values[2], values[3]);
}
// A lane's states, 16 bytes at a time.
__device__ __forceinline__ void get_states(const float* row, state* states) {
    float* values = reinterpret_cast<float*>(states);
#pragma unroll
    for (int i = 0; i < FLOATS; i += 4) get_four(row + i, values + i);
}
__device__ __forceinline__ void put_states(float* row, const state* states) {
    const float* values = reinterpret_cast<const float*>(states);
#pragma unroll
    for (int i = 0; i < FLOATS; i += 4) {
        *reinterpret_cast<float4*>(row + i) =
            make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
}

// One of B and C where it varies along time: (DSTATE, seqlen * COMPONENTS) numbers, strided.
struct Matrix {
    const number* base;
    long long stride;   // from state to state
};

// The block's copy of PART steps of COUNT matrices, on its way from memory (fetch) to shared
// memory as [matrix][step][WIDTH] floats (put). A thread's vectors run along time in memory.
template <int COUNT>
struct Staging {
    static constexpr int size = least(16 / static_cast<int>(sizeof(number)), PART * COMPONENTS);
    static constexpr int rows = PART * COMPONENTS / size;      // vectors along time
    static constexpr int per_matrix = PADDED * rows;
    static constexpr int turns = (COUNT * per_matrix + THREADS - 1) / THREADS;
    static constexpr int floats = COUNT * PART * WIDTH;
    Run<size> vectors[turns];

    static __device__ __forceinline__ bool exists(int which) {
        return COUNT * per_matrix % THREADS == 0 || which < COUNT;
    }
    // Where the thread's vectors of a turn lie at step 0; null where there are none.
    static __device__ __forceinline__ const number* row_of(const Matrix* matrices, int turn,
                                                           int thread) {
        const int index = turn * THREADS + thread;
        const int n = index % PADDED, which = index / per_matrix;
        if (!exists(which) || (DSTATE != PADDED && n >= DSTATE)) return nullptr;
        Matrix matrix = matrices[0];
        if (COUNT > 1 && which == 1) matrix = matrices[COUNT - 1];
        return matrix.base + n * matrix.stride;
    }
    __device__ __forceinline__ void fetch_turn(int turn, const number* row, int step, int end) {
        const int k = (turn * THREADS + threadIdx.x) / PADDED % rows;
        if ((COUNT * per_matrix % THREADS == 0 && DSTATE == PADDED) || row) {
            vectors[turn].load(row, step * COMPONENTS + k * size, end * COMPONENTS);
        } else {
            vectors[turn].clear();
        }
    }
    __device__ __forceinline__ void fetch(const Matrix* matrices, int step, int end) {
#pragma unroll
        for (int turn = 0; turn < turns; ++turn) {
            fetch_turn(turn, row_of(matrices, turn, hidden(threadIdx.x)), step, end);
        }
    }
    __device__ __forceinline__ void put(float* shared) const {
#pragma unroll
        for (int turn = 0; turn < turns; ++turn) {
            const int index = turn * THREADS + threadIdx.x;
            const int n = index % PADDED, k = index / PADDED % rows, which = index / per_matrix;
            if (exists(which)) {
                float* place = shared + which * PART * WIDTH + n * COMPONENTS;
#pragma unroll
                for (int i = 0; i < size; ++i) {
                    const int along = k * size + i;
                    place[along / COMPONENTS * WIDTH + along % COMPONENTS] = vectors[turn].at(i);
                }
            }
        }
    }
};

// The same where there are registers for the addresses.
template <int COUNT>
struct SettledStaging : Staging<COUNT> {
    const number* row[Staging<COUNT>::turns];

    __device__ __forceinline__ void begin(const Matrix* matrices) {
#pragma unroll
        for (int turn = 0; turn < Staging<COUNT>::turns; ++turn) {
            row[turn] = settled(this->row_of(matrices, turn, threadIdx.x));
        }
    }
    __device__ __forceinline__ void fetch(int step, int end) {
#pragma unroll
        for (int turn = 0; turn < Staging<COUNT>::turns; ++turn) {
            this->fetch_turn(turn, row[turn], step, end);
        }
    }
};

// Row `row` of a (dim, DSTATE) weight, the states of this lane; zero past DSTATE.
__device__ __forceinline__ void load_weights(const state* weight, long long row, int part,
                                             state* states) {
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
        const int n = part * STATES + i;
        states[i] = n < DSTATE ? weight[row * DSTATE + n] : zero();
    }
}
