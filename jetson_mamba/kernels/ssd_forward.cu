// Mamba-2's scan: out = gate(C h + D x), a block to a slice of a head's channels and a segment of
// time, along which it walks with the state in registers.
//
// Of each chunk, with M[t][s] = C[t] B[s] decay(t, s) dt[s] where s <= t:
//     y = M x + decay_since_start C h,    h = decay_of_chunk h + (x dt decay_to_end)^T B.
// M is made by all warps, 16 by 16 numbers at a time, and lies in shared memory; of y and h a warp
// has its sixteen channels. What is loaded of x serves both products.
#include "ssd.cuh"

struct Shared {
    Tile<CHUNK, STATES> C[STAGES];
    Tile<CHUNK, STATES> B[STAGES];
    Tile<CHUNK, SLICE> x[STAGES];
    Tile<CHUNK, CHUNK, MADE> M;
    Steps steps[2];
};
static_assert(SLICE == 16 * WARPS, "a warp has sixteen channels");
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

// M, a lower triangle of 16 by 16 tiles, which the warps take in turn.
__device__ __forceinline__ void make_mask(Shared& shared, int stage, const Steps& steps, int warp,
                                          int lane) {
    constexpr int TILES = ROW_TILES * (ROW_TILES + 1) / 2;
    const int g = lane / 4, q = lane % 4;
    const Reader C(shared.C[stage], lane);
    const Reader B(shared.B[stage], lane);
#pragma unroll 1
    for (int i = 0; i < (TILES + WARPS - 1) / WARPS; ++i) {
        const int tile = i * WARPS + warp;
        if (tile >= TILES) break;
        const int row = tile < 1 ? 0 : tile < 3 ? 1 : tile < 6 ? 2 : 3;
        const int column = tile - row * (row + 1) / 2;
        float products[2][4] = {};
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k) {
            Fragment<> c, b;
            c.load(C, 16 * row, 16 * k);
            b.load(B, 16 * column, 16 * k);
            add_rows(products[0], products[1], c, b);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int s = 16 * column + 8 * half + 2 * q;
            const float first = steps.dt[s], second = steps.dt[s + 1];
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const int t = 16 * row + 8 * down + g;
                Pair<MADE> pair;
                pair.pack(s <= t ? products[half][2 * down] * steps.decay(t, s) * first : 0.0f,
                          s < t ? products[half][2 * down + 1] * steps.decay(t, s + 1) * second
                                : 0.0f);
                shared.M.set(t, s, pair);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) ssd_forward(
    const NUMBER* x, const void* dt, const void* A, const NUMBER* B, const NUMBER* C, const void* D,
    const NUMBER* z, const void* bias, const int* seq_idx, const float* first, NUMBER* out,
    float* last, long long option_bits, long long low_bits, long long high_bits, long long seqlen,
    long long heads, long long heads_of_group, long long segment, long long segments, long long x_batch, long long x_time,
    long long x_head, long long dt_batch, long long dt_time, long long dt_head, long long B_batch,
    long long B_time, long long B_group, long long C_batch, long long C_time, long long C_group,
    long long z_batch, long long z_time, long long z_head, long long seq_batch,
    long long seq_time) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const long long head = blockIdx.x, batch = blockIdx.y / SLICES;
    const int slice = static_cast<int>(blockIdx.y % SLICES) * SLICE;
    const int slice_channels = channels_from(slice);
    const int channel = 16 * warp;
    const Options options{option_bits};
    const StepSource source(dt, A, bias, seq_idx, options, low_bits, high_bits, seqlen, batch, head,
                            dt_batch, dt_time, dt_head, seq_batch, seq_time);
    x += batch * x_batch + head * x_head + slice;
    B += batch * B_batch + head / heads_of_group * B_group;
    C += batch * C_batch + head / heads_of_group * C_group;
    if (z) z += batch * z_batch + head * z_head + slice;
    out += ((batch * seqlen) * heads + head) * HEADDIM + slice;
    const long long out_time = heads * HEADDIM;

    const long long begin = blockIdx.z * segment * CHUNK;
    const long long end = min(seqlen, begin + segment * CHUNK);

    float skip[2][2] = {};
    if (D) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int p = channel + 8 * half + 2 * q + i;
                const long long place =
                    options.D_of_channels() ? head * HEADDIM + slice + p : head;
                skip[half][i] =
                    p < slice_channels ? number_at(D, place, options.D()) : 0.0f;
            }
    }

    const auto fill = [&](long long start, int stage) {
        const int rows = static_cast<int>(min(end - start, static_cast<long long>(CHUNK)));
        shared.C[stage].fill(C + start * C_time, C_time, rows, DSTATE, threadIdx.x, THREADS);
        shared.B[stage].fill(B + start * B_time, B_time, rows, DSTATE, threadIdx.x, THREADS);
        shared.x[stage].fill(x + start * x_time, x_time, rows, slice_channels, threadIdx.x,
                             THREADS);
        commit_copies();
    };

    RawSteps raw;
    const bool takes_steps = warp == WARPS - 1;
    if (STAGES == 2) fill(begin, 0);
    if (takes_steps) {
        raw.load(source, begin, lane);
        raw.finish(shared.steps[0], source, lane);
    }

    State state;
    const long long place = (batch * heads + head) * segments + blockIdx.z;
    if (first)
        state.load(first + (place * HEADDIM + slice) * DSTATE, channel, slice_channels, lane);
    else
        state.clear();

    int current = 0;
    for (long long start = begin; start < end; start += CHUNK, current ^= 1) {
        const int stage = STAGES == 2 ? current : 0;
        const Steps& steps = shared.steps[current];
        if (STAGES == 1) {
            __syncthreads();
            fill(start, 0);
        }
        wait_for_copies<0>();
        __syncthreads();
        if (STAGES == 2 && start + CHUNK < end) fill(start + CHUNK, current ^ 1);
        if (takes_steps) raw.load(source, start + CHUNK, lane);

        make_mask(shared, stage, steps, warp, lane);

        // C h: a state's numbers lie as a product takes them from the right.
        float y[ROW_TILES][2][4] = {};
        const Reader C(shared.C[stage], lane);
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k) {
            Fragment<MADE> h;
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    h.set(2 * half + i, state.numbers[2 * k + i][2 * half],
                          state.numbers[2 * k + i][2 * half + 1]);
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                Fragment<> c;
                c.load(C, 16 * m, 16 * k);
                add_columns(y[m][0], y[m][1], c, h);
            }
        }
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const float decay = steps.decay_since_start(16 * m + 8 * down + g);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    y[m][half][2 * down] *= decay;
                    y[m][half][2 * down + 1] *= decay;
                }
            }
        __syncthreads();

        // M x.
        Fragment<> columns[ROW_TILES];
        const Reader given(shared.x[stage], lane);
        const Reader M(shared.M, lane);
#pragma unroll
        for (int k = 0; k < ROW_TILES; ++k) {
            columns[k].load_transposed(given, 16 * k, channel);
#pragma unroll
            for (int m = k; m < ROW_TILES; ++m) {
                Fragment<MADE> mask;
                mask.load(M, 16 * m, 16 * k);
                add_columns(y[m][0], y[m][1], mask, columns[k]);
            }
        }

#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const int t = 16 * m + 8 * down + g;
                if (start + t >= end) continue;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int p = channel + 8 * half + 2 * q;
                    float pair[2] = {y[m][half][2 * down], y[m][half][2 * down + 1]};
                    if (D) {
                        const Pair<GIVEN> skipped = shared.x[stage].pair(t, p);
                        pair[0] += skip[half][0] * skipped.low();
                        pair[1] += skip[half][1] * skipped.high();
                    }
                    NUMBER* to = out + (start + t) * out_time + p;
                    if constexpr (ALIGNED) {
                        if (p >= slice_channels) continue;
                        Packed<NUMBER, 2> packed;
                        if (z) {
                            packed.load(z + (start + t) * z_time + p);
#pragma unroll
                            for (int i = 0; i < 2; ++i) {
                                const float gate = packed.number(i);
                                pair[i] *= gate * sigmoid(gate);
                            }
                        }
                        packed.pack(pair);
                        packed.store(to);
                    } else {
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            if (p + i >= slice_channels) continue;
                            if (z) {
                                const float gate = to_float(z[(start + t) * z_time + p + i]);
                                pair[i] *= gate * sigmoid(gate);
                            }
                            to[i] = from_float<NUMBER>(pair[i]);
                        }
                    }
                }
            }

        state.scale(steps.decay_of_chunk());
        const Reader B(shared.B[stage], lane);
#pragma unroll
        for (int k = 0; k < ROW_TILES; ++k)
            state.add(scaled_steps(columns[k], 16 * k, lane,
                                   [&](int s) { return steps.dt[s] * steps.decay_to_end(s); }),
                      k, B);
        if (takes_steps) raw.finish(shared.steps[current ^ 1], source, lane);
    }
    if (last && blockIdx.z == segments - 1)
        state.store(last + ((batch * heads + head) * HEADDIM + slice) * DSTATE, channel,
                    slice_channels, lane);
}
