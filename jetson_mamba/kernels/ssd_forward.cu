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

// Sixteen by sixteen numbers of M, of the products of C and B.
template <bool ON_DIAGONAL>
__device__ __forceinline__ void set_mask(Tile<CHUNK, CHUNK, MADE>& M, const Steps& steps,
                                         const float (&products)[2][4], int row, int column,
                                         int lane) {
    const int g = lane / 4, q = lane % 4;
    const Moment later[2] = {moment_of(steps, row + g), moment_of(steps, row + g + 8)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int s = column + 8 * half + 2 * q;
        Moment from[2];
        moments_of(from, steps, s);
        const float2 dt = pair_at(steps.dt, s);
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            const int t = row + 8 * down + g;
            Pair<MADE> pair;
            pair.pack(decayed<ON_DIAGONAL>(products[half][2 * down] * dt.x, from[0], later[down],
                                           s <= t),
                      decayed<ON_DIAGONAL>(products[half][2 * down + 1] * dt.y, from[1],
                                           later[down], s < t));
            M.set(t, s, pair);
        }
    }
}

// M, a lower triangle of 16 by 16 tiles, which the warps take in turn.
__device__ __forceinline__ void make_mask(Shared& shared, int stage, const Steps& steps, int warp,
                                          int lane) {
    constexpr int TILES = ROW_TILES * (ROW_TILES + 1) / 2;
    const Reader C(shared.C[stage], lane);
    const Reader B(shared.B[stage], lane);
#pragma unroll 1
    for (int tile = warp; tile < TILES; tile += WARPS) {
        const int row = tile < 1 ? 0 : tile < 3 ? 1 : tile < 6 ? 2 : 3;
        const int column = tile - row * (row + 1) / 2;
        // Two sums each: a product need not wait for the one before.
        float products[2][2][4] = {};
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k) {
            Fragment<> c, b;
            c.load(C, 16 * row, 16 * k);
            b.load(B, 16 * column, 16 * k);
            add_rows(products[k % 2][0], products[k % 2][1], c, b);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 4; ++i) products[0][half][i] += products[1][half][i];
        if (row == column)
            set_mask<true>(shared.M, steps, products[0], 16 * row, 16 * column, lane);
        else
            set_mask<false>(shared.M, steps, products[0], 16 * row, 16 * column, lane);
    }
}

// A pair of numbers of the output, of which `left` are there, times their gates.
__device__ __forceinline__ void pass_gate(float (&pair)[2], const NUMBER* z, int left) {
    float gates[2] = {};
    if constexpr (ALIGNED) {
        Packed<NUMBER, 2> packed;
        if (left > 0) {
            packed.load(z);
            gates[0] = packed.number(0), gates[1] = packed.number(1);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (i < left) gates[i] = to_float(z[i]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) pair[i] *= gates[i] * sigmoid(gates[i]);
}
__device__ __forceinline__ void store_pair(NUMBER* to, const float (&pair)[2], int left) {
    if constexpr (ALIGNED) {
        Packed<NUMBER, 2> packed;
        packed.pack(pair);
        if (left > 0) packed.store(to);
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (i < left) to[i] = from_float<NUMBER>(pair[i]);
    }
}

// With the registers of two blocks the compiler for sm_100 and later spills six times as much.
#if __CUDA_ARCH__ >= 1000
constexpr int FITTING = 1;
#else
constexpr int FITTING = BLOCKS;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, FITTING) ssd_forward(
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
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
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
    if (HAS_Z) z += batch * z_batch + head * z_head + slice;
    out += ((batch * seqlen) * heads + head) * HEADDIM + slice;
    const long long out_time = heads * HEADDIM;

    const long long begin = blockIdx.z * segment * CHUNK;
    const long long end = min(seqlen, begin + segment * CHUNK);

    float skip[2][2] = {};
    if (HAS_D) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int p = channel + 8 * half + 2 * q + i;
                const long long place =
                    HAS_D == 2 ? head * HEADDIM + slice + p : head;
                skip[half][i] =
                    p < slice_channels ? number_at(D, place, options.D()) : 0.0f;
            }
    }

    // The last warp fetches for the others; or all do.
    const bool fetches = warp == WARPS;
    const auto fill = [&](long long start, int stage) {
        const int rows = static_cast<int>(min(end - start, static_cast<long long>(CHUNK)));
        constexpr int COUNT = ASYNCHRONOUS ? 32 : THREADS;
        const int thread = ASYNCHRONOUS ? lane : threadIdx.x;
        if (ASYNCHRONOUS && !fetches) return;
        shared.C[stage].fill<COUNT>(C + start * C_time, C_time, rows, DSTATE, thread);
        shared.B[stage].fill<COUNT>(B + start * B_time, B_time, rows, DSTATE, thread);
        shared.x[stage].fill<COUNT>(x + start * x_time, x_time, rows, slice_channels, thread);
        commit_copies();
    };
    // Returns when the chunk from `start` on is there.
    const auto await = [&](long long start) {
        if (STAGES == 1) {
            __syncthreads();
            fill(start, 0);
        }
        wait_for_copies<0>();
        __syncthreads();
    };

    if (STAGES == 2) fill(begin, 0);
    int current = 0;
    if (fetches) {
        RawSteps raw;
        raw.load(source, begin, lane);
        for (long long start = begin; start < end; start += CHUNK, current ^= 1) {
            raw.finish(shared.steps[current], source, start, lane);
            raw.load(source, start + CHUNK, lane);
            await(start);
            if (STAGES == 2 && start + CHUNK < end) fill(start + CHUNK, current ^ 1);
        }
        return;
    }

    State state;
    const long long place = (batch * heads + head) * segments + blockIdx.z;
    if (first)
        state.load(first + (place * HEADDIM + slice) * DSTATE, channel, slice_channels, lane);
    else
        state.clear();

    for (long long start = begin; start < end; start += CHUNK, current ^= 1) {
        const int stage = STAGES == 2 ? current : 0;
        const Steps& steps = shared.steps[current];
        await(start);
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
                const float decay = steps.since_start[16 * m + 8 * down + g];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    y[m][half][2 * down] *= decay;
                    y[m][half][2 * down + 1] *= decay;
                }
            }
        meet_first<WORKERS>();

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

        NUMBER* row_out = out + start * out_time;
        const NUMBER* row_z = HAS_Z ? z + start * z_time : nullptr;
        const int left = static_cast<int>(min(end - start, static_cast<long long>(CHUNK)));
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const int t = 16 * m + 8 * down + g;
                float pairs[2][2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int p = channel + 8 * half + 2 * q;
                    const int there = t < left ? slice_channels - p : 0;
                    pairs[half][0] = y[m][half][2 * down];
                    pairs[half][1] = y[m][half][2 * down + 1];
                    if constexpr (HAS_D) {
                        const Pair<GIVEN> skipped = shared.x[stage].pair(t, p);
                        pairs[half][0] += skip[half][0] * skipped.low();
                        pairs[half][1] += skip[half][1] * skipped.high();
                    }
                    if constexpr (HAS_Z) pass_gate(pairs[half], row_z + t * z_time + p, there);
                    if constexpr (!ASYNCHRONOUS)
                        store_pair(row_out + t * out_time + p, pairs[half], there);
                }
                if constexpr (ASYNCHRONOUS) {
                    Packed<NUMBER, 4> packed;
                    const int p = channel + gathered(packed, pairs[0], pairs[1], lane);
                    if (t < left && p < slice_channels) packed.store(row_out + t * out_time + p);
                }
            }

        state.scale(steps.decay_of_chunk());
        const Reader B(shared.B[stage], lane);
#pragma unroll
        for (int k = 0; k < ROW_TILES; ++k)
            state.add(scaled_steps(columns[k], steps.to_end, 16 * k, lane), k, B);
    }
    if (last && blockIdx.z == segments - 1)
        state.store(last + ((batch * heads + head) * HEADDIM + slice) * DSTATE, channel,
                    slice_channels, lane);
}
