// The gradients of Mamba-2's scan: a block to a chunk of time and some heads of a group, one after
// the other, so that those of B and C are summed over heads in registers.
//
// With h the state before the chunk, dh the gradient of that after it, w = decay_to_end, and
// G[t][s] = (dy[t] x[s]) decay(t, s) where s <= t, of each head:
//     dC[t] = decay_since_start(t) dy[t] h + sum over s of G[t][s] dt[s] B[s]
//     dB[s] = dt[s] (w(s) x[s] dh          + sum over t of G[t][s] C[t])
//     dx[s] = dt[s] (w(s) B[s] dh^T        + sum over t of C[t] B[s] decay(t, s) dy[t]) + D dy[s]
// A third of the warps makes each of these, sixteen steps a warp. The gradient of the logarithm of
// a step's decay is the sum of all that has passed through the step: of C dC for later t without
// that of B dB for later s, and of what came from h or goes to dh. The pairs with t = s, which pass
// through no step, are taken out of both.
#include "ssd_backward.cuh"

constexpr int ROLES = 3;
constexpr int KEPT = STATES / 8 > 2 * ROW_TILES ? STATES / 8 : 2 * ROW_TILES;
constexpr int BACKWARD_THREADS = 32 * ROLES * ROW_TILES;
// Steps shorter than this would leave no gradient to divide by them.
constexpr float SHORTEST_STEP = 1e-20f;

// What is summed of a head (and slice), for the warp that finishes it.
struct Sums {
    float rows[CHUNK];     // C dC, but of t = s
    float columns[CHUNK];  // B dB, but of t = s and of dh
    float ends[CHUNK];     // B dB, of dh
    float direct[CHUNK];   // the gradient of dt where it stands as a factor
    float through[ROW_TILES];
    float D[ROW_TILES][SLICE];
};

struct Shared {
    Tile<CHUNK, STATES> B;
    Tile<CHUNK, STATES> C;
    Tile<CHUNK, SLICE> x[STAGES];
    Tile<CHUNK, SLICE> dy[STAGES];
    Tile<SLICE, STATES> h[STAGES];
    Tile<SLICE, STATES> dh[STAGES];
    Steps steps[3];
    Sums sums[2];
    float of_slices[4][CHUNK];
    // C[t] B[t].
    float products[CHUNK];
};
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

// The numbers on the diagonal of a 16 by 16 product, of the lane's rows g and g + 8.
template <int PIECES>
__device__ __forceinline__ void diagonal_of(float (&diagonal)[2], const Fragment<PIECES>& product,
                                            int lane) {
    const int g = lane / 4, source = lane / 4 * 4 + g / 2;
    const Pair<PIECES> first = product.get(0), second = product.get(3);
    diagonal[0] = __shfl_sync(0xffffffffu, g % 2 ? first.high() : first.low(), source);
    diagonal[1] = __shfl_sync(0xffffffffu, g % 2 ? second.high() : second.low(), source);
}

// A product as it decays between its rows and columns (LATER_ROWS says which are the later steps),
// as the left factor of the next: what its columns were are the sums there. BY_STEPS: times the
// length of the earlier step. ON_DIAGONAL leaves out what is not in order.
template <bool LATER_ROWS, bool BY_STEPS, bool ON_DIAGONAL>
__device__ __forceinline__ Fragment<MADE> weighted(const float (&low)[4], const float (&high)[4],
                                                   const Steps& steps, int row, int column,
                                                   int lane) {
    Fragment<MADE> result;
    const int g = lane / 4, q = lane % 4;
    const Moment rows[2] = {moment_of(steps, row + g), moment_of(steps, row + g + 8)};
    float of_rows[2] = {1.0f, 1.0f};
    if constexpr (BY_STEPS && !LATER_ROWS) {
        of_rows[0] = max(steps.dt[row + g], SHORTEST_STEP);
        of_rows[1] = max(steps.dt[row + g + 8], SHORTEST_STEP);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float(&numbers)[4] = half ? high : low;
        const int there = column + 8 * half + 2 * q;
        Moment columns[2];
        moments_of(columns, steps, there);
        float of_columns[2] = {1.0f, 1.0f};
        if constexpr (BY_STEPS && LATER_ROWS) {
            const float2 dt = pair_at(steps.dt, there);
            of_columns[0] = max(dt.x, SHORTEST_STEP), of_columns[1] = max(dt.y, SHORTEST_STEP);
        }
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            float pair[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int here = row + g + 8 * down;
                const int later = LATER_ROWS ? here : there + i;
                const int earlier = LATER_ROWS ? there + i : here;
                const float number = numbers[2 * down + i] * of_rows[down] * of_columns[i];
                pair[i] = decayed<ON_DIAGONAL>(number, LATER_ROWS ? columns[i] : rows[down],
                                               LATER_ROWS ? rows[down] : columns[i], earlier <= later);
            }
            result.set(2 * half + down, pair[0], pair[1]);
        }
    }
    return result;
}

// Where dB and dC go: to the gradient itself, or to a sum of some heads that is added up later.
__device__ __forceinline__ void store_rows(NUMBER* to, float* sums, long long stride,
                                           const float (&numbers)[KEPT][4], int row,
                                           int rows, int lane) {
#pragma unroll
    for (int down = 0; down < 2; ++down) {
        const int t = row + lane / 4 + 8 * down, n = lane % 4 * 2;
        if (t >= rows) continue;
#pragma unroll
        for (int j = 0; j < STATES / 8; ++j) {
            const int left = State::left_of(n, j);
            const float pair[2] = {numbers[j][2 * down], numbers[j][2 * down + 1]};
            if (sums) {
                if (left > 0) sums[t * stride + 8 * j + n] = pair[0];
                if (left > 1) sums[t * stride + 8 * j + n + 1] = pair[1];
            } else {
                if (left > 0) to[t * stride + 8 * j + n] = from_float<NUMBER>(pair[0]);
                if (left > 1) to[t * stride + 8 * j + n + 1] = from_float<NUMBER>(pair[1]);
            }
        }
    }
}

// dC (or dB, FOR_B) of sixteen steps and one head, added to `total`.
template <bool FOR_B>
__device__ __forceinline__ void add_gradients(float (&total)[KEPT][4], Shared& shared,
                                              int stage, const Steps& steps, Sums& sums, int tile,
                                              int lane) {
    const int row = 16 * tile, g = lane / 4, q = lane % 4;
    const auto& left = FOR_B ? shared.x[stage] : shared.dy[stage];
    const auto& right = FOR_B ? shared.dy[stage] : shared.x[stage];
    const auto& state = FOR_B ? shared.dh[stage] : shared.h[stage];
    const auto& own = FOR_B ? shared.B : shared.C;
    const auto& other = FOR_B ? shared.C : shared.B;

    Fragment<> given[SLICE / 16];
    const Reader left_reader(left, lane);
#pragma unroll
    for (int k = 0; k < SLICE / 16; ++k) given[k].load(left_reader, row, 16 * k);

    // G dt, in the order of its rows here, and what stands on its diagonal, as it is rounded.
    Fragment<MADE> pairs[ROW_TILES];
    float diagonal[2];
    const Reader right_reader(right, lane);
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
        if (FOR_B ? m < tile : m > tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) pairs[m].set(i, 0.0f, 0.0f);
            continue;
        }
        float low[4] = {}, high[4] = {};
#pragma unroll
        for (int k = 0; k < SLICE / 16; ++k) {
            Fragment<> b;
            b.load(right_reader, 16 * m, 16 * k);
            add_rows(low, high, given[k], b);
        }
        if (m == tile) {
            pairs[m] = weighted<!FOR_B, true, true>(low, high, steps, row, 16 * m, lane);
            diagonal_of(diagonal, pairs[m], lane);
        } else {
            pairs[m] = weighted<!FOR_B, true, false>(low, high, steps, row, 16 * m, lane);
        }
    }

    float of_state[2], ratio[2];
#pragma unroll
    for (int down = 0; down < 2; ++down) {
        const int t = row + g + 8 * down;
        const float divisor = max(steps.dt[t], SHORTEST_STEP);
        ratio[down] = steps.dt[t] / divisor;
        of_state[down] = FOR_B ? steps.left_at_end[t] * divisor : steps.since_start[t];
    }
    float by_pairs[2] = {}, by_state[2] = {};
    const Reader state_reader(state, lane);
    const Reader other_reader(other, lane);
#pragma unroll
    for (int j = 0; j < STATES / 16; ++j) {
        float first[2][4] = {}, second[2][4] = {};
#pragma unroll
        for (int k = 0; k < SLICE / 16; ++k) {
            Fragment<> b;
            b.load_transposed(state_reader, 16 * k, 16 * j);
            add_columns(first[0], first[1], given[k], b);
        }
#pragma unroll
        for (int k = 0; k < ROW_TILES; ++k) {
            Fragment<> b;
            b.load_transposed(other_reader, 16 * k, 16 * j);
            add_columns(second[0], second[1], pairs[k], b);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const Pair<GIVEN> mine =
                    own.pair(row + g + 8 * down, 16 * j + 8 * half + 2 * q);
                const float here[2] = {mine.low(), mine.high()};
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float by_h = first[half][2 * down + i] * of_state[down];
                    const float by_G = second[half][2 * down + i];
                    if (FOR_B) {
                        by_state[down] += here[i] * by_h;
                        by_pairs[down] += here[i] * by_G;
                        total[2 * j + half][2 * down + i] += ratio[down] * (by_h + by_G);
                    } else {
                        by_pairs[down] += here[i] * (by_h + by_G);
                        total[2 * j + half][2 * down + i] += by_h + by_G;
                    }
                }
            }
    }
#pragma unroll
    for (int down = 0; down < 2; ++down) {
        const float pairs_of_row = sum_of_row(by_pairs[down]);
        const float state_of_row = FOR_B ? sum_of_row(by_state[down]) : 0.0f;
        const int t = row + g + 8 * down;
        if (q) continue;
        const float itself = diagonal[down] * shared.products[t];
        if (FOR_B) {
            sums.columns[t] = ratio[down] * (pairs_of_row - itself);
            sums.ends[t] = ratio[down] * state_of_row;
            sums.direct[t] =
                (pairs_of_row + state_of_row) / max(steps.dt[t], SHORTEST_STEP);
        } else {
            sums.rows[t] = pairs_of_row - itself;
        }
    }
}

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1) ssd_backward(
    const NUMBER* x, const NUMBER* dy, const void* A, const NUMBER* B,
    const NUMBER* C, const void* D, const NUMBER* kept, const float* kept_steps,
    NUMBER* dx, void* ddt, NUMBER* dB, NUMBER* dC, float* sums_of_heads, float* weights,
    long long option_bits, long long seqlen,
    long long heads, long long heads_of_group, long long heads_of_slot, long long slots,
    long long x_batch, long long x_time, long long x_head, long long dy_batch, long long dy_time,
    long long dy_head, long long B_batch,
    long long B_time, long long B_group, long long C_batch, long long C_time, long long C_group,  long long dx_batch, long long dx_time,
    long long dx_head, long long ddt_batch, long long ddt_time, long long ddt_head,
    long long dB_batch, long long dB_time, long long dB_group, long long dC_batch,
    long long dC_time, long long dC_group) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int role = warp / ROW_TILES, tile = warp % ROW_TILES, row = 16 * tile;
    const long long chunk = blockIdx.x, chunks = gridDim.x, batch = blockIdx.y;
    const long long group = blockIdx.z / slots, slot = blockIdx.z % slots;
    const long long first_head = group * heads_of_group + slot * heads_of_slot;
    const long long end_head =
        min(first_head + heads_of_slot, (group + 1) * heads_of_group);
    const long long start = chunk * CHUNK;
    const int rows = static_cast<int>(min(seqlen - start, static_cast<long long>(CHUNK)));
    const Options options{option_bits};
    constexpr long long size = HEADDIM * DSTATE;
    const long long batches = gridDim.y;

    B += batch * B_batch + group * B_group + start * B_time;
    C += batch * C_batch + group * C_group + start * C_time;
    x += batch * x_batch + start * x_time;
    dy += batch * dy_batch + start * dy_time;
    dx += batch * dx_batch + start * dx_time;
    kept += ((batch * chunks + chunk) * heads) * size;

    const auto fill = [&](long long head, int slice, int stage) {
        const int channels = channels_from(slice);
        shared.x[stage].fill<BACKWARD_THREADS>(x + head * x_head + slice, x_time, rows, channels, threadIdx.x);
        shared.dy[stage].fill<BACKWARD_THREADS>(dy + head * dy_head + slice, dy_time, rows, channels, threadIdx.x);
        const NUMBER* state = kept + head * size + slice * DSTATE;
        shared.h[stage].fill<BACKWARD_THREADS>(state, DSTATE, channels, DSTATE, threadIdx.x);
        state += batches * chunks * heads * size;
        shared.dh[stage].fill<BACKWARD_THREADS>(state, DSTATE, channels, DSTATE, threadIdx.x);
        commit_copies();
    };

    shared.B.fill<BACKWARD_THREADS>(B, B_time, rows, DSTATE, threadIdx.x);
    shared.C.fill<BACKWARD_THREADS>(C, C_time, rows, DSTATE, threadIdx.x);
    if (STAGES == 2) fill(first_head, 0, 0);
    // The warp of the third role that has least to do finishes the sums of the head before.
    const bool finishes = warp == ROLES * ROW_TILES - 1;
    // A thread of that role fetches a step of the head that follows.
    const int step = static_cast<int>(threadIdx.x) - 2 * 32 * ROW_TILES;
    const bool fetches = step >= 0 && step < CHUNK;
    kept_steps += (batch * heads * chunks + chunk) * KEPT_ARRAYS * CHUNK;
    KeptStep next_step;
    if (fetches) {
        next_step.load(kept_steps + first_head * chunks * KEPT_ARRAYS * CHUNK, step);
        next_step.set(shared.steps[0], step);
    }

    // Roles 0 and 1 sum dC and dB here; role 2 keeps the products of B and C.
    float numbers[KEPT][4] = {};

    constexpr int STEPS = RawSteps::count;
    // Sums over the slices of a head, in the warp that finishes it.
    float through = 0.0f, of_D = 0.0f;
    const long long row_of_weights = batch * chunks + chunk;
    const long long width_of_D = !HAS_D ? 0 : HAS_D == 2 ? HEADDIM : 1;
    weights += row_of_weights * heads * (2 + width_of_D);

    wait_for_copies<0>();
    __syncthreads();
    if (role == 2) {
        const Reader B_reader(shared.B, lane);
        const Reader C_reader(shared.C, lane);
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            if (m < tile) continue;
#pragma unroll
            for (int k = 0; k < STATES / 16; ++k) {
                Fragment<> b, c;
                b.load(B_reader, row, 16 * k);
                c.load(C_reader, 16 * m, 16 * k);
                add_rows(numbers[2 * m], numbers[2 * m + 1], b, c);
            }
            if (m == tile && lane % 4 == lane / 8) {
                // Chosen, not indexed: what is indexed does not lie in registers.
                shared.products[row + g] = g % 2 ? numbers[2 * m][1] : numbers[2 * m][0];
                shared.products[row + g + 8] =
                    g % 2 ? numbers[2 * m + 1][3] : numbers[2 * m + 1][2];
            }
        }
    }

    const auto finish = [&](long long head, int slice, const Sums& sums, const Steps& steps) {
        float rows_of[STEPS], columns_of[STEPS], ends_of[STEPS], direct_of[STEPS];
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            const int t = lane * STEPS + i;
            rows_of[i] = sums.rows[t], columns_of[i] = sums.columns[t];
            ends_of[i] = sums.ends[t], direct_of[i] = sums.direct[t];
            if constexpr (SLICES > 1) {
                float(&before)[4][CHUNK] = shared.of_slices;
                if (slice) {
                    rows_of[i] += before[0][t], columns_of[i] += before[1][t];
                    ends_of[i] += before[2][t], direct_of[i] += before[3][t];
                }
                before[0][t] = rows_of[i], before[1][t] = columns_of[i];
                before[2][t] = ends_of[i], before[3][t] = direct_of[i];
            }
        }
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) through += sums.through[i];
        if (HAS_D) {
            for (int p = lane; p < channels_from(slice); p += 32) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) sum += sums.D[i][p];
                if (HAS_D == 2)
                    weights[2 * heads + head * HEADDIM + slice + p] = sum;
                else
                    of_D += sum;
            }
        }
        if (slice + SLICE < HEADDIM) return;
        // Sums of what lies behind, without what begins there, and of what came before.
        float behind[STEPS], before[STEPS];
#pragma unroll
        for (int i = STEPS - 1; i >= 0; --i)
            behind[i] = rows_of[i] - columns_of[i] + (i + 1 < STEPS ? behind[i + 1] : 0.0f);
#pragma unroll
        for (int i = 0; i < STEPS; ++i) before[i] = ends_of[i] + (i ? before[i - 1] : 0.0f);
        float all_behind = behind[0], all_before = before[STEPS - 1];
        sums_around(all_behind, all_before, lane);
        const float rate = max(number_at(A, head, options.A()), -3e38f);
        const float over_all = through * steps.decay_of_chunk();
        float of_A = 0.0f, of_bias = 0.0f;
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            const int t = lane * STEPS + i;
            const float passed = all_before + (i ? before[i - 1] : 0.0f);
            const float of_decay =
                steps.passes[t] ? behind[i] + all_behind + passed + over_all : 0.0f;
            const float of_step = (direct_of[i] + rate * of_decay) * steps.slope[t];
            of_A += steps.dt[t] * of_decay;
            of_bias += of_step;
            if (t < rows)
                set_number(ddt, batch * ddt_batch + (start + t) * ddt_time + head * ddt_head,
                           options.dt(), of_step);
        }
#pragma unroll
        for (int offset = 16; offset; offset /= 2) {
            of_A += __shfl_xor_sync(0xffffffffu, of_A, offset);
            of_bias += __shfl_xor_sync(0xffffffffu, of_bias, offset);
            of_D += __shfl_xor_sync(0xffffffffu, of_D, offset);
        }
        if (lane == 0) {
            weights[head] = of_A;
            weights[heads + head] = of_bias;
            if (HAS_D == 1) weights[2 * heads + head] = of_D;
        }
        through = of_D = 0.0f;
    };

    int current = 0, steps_now = 0, steps_before = 0;
    long long head = first_head, head_before = -1;
    int slice = 0, slice_before = 0;
    while (true) {
        const int stage = STAGES == 2 ? current : 0;
        const Steps& steps = shared.steps[steps_now];
        const int steps_next = steps_now == 2 ? 0 : steps_now + 1;
        Sums& sums = shared.sums[current];
        const bool last_slice = slice + SLICE >= HEADDIM;
        const long long next_head = last_slice ? head + 1 : head;
        const int next_slice = last_slice ? 0 : slice + SLICE;
        if (STAGES == 1) {
            __syncthreads();
            if (head < end_head) fill(head, slice, 0);
        }
        wait_for_copies<0>();
        __syncthreads();
        if (STAGES == 2 && next_head < end_head) fill(next_head, next_slice, current ^ 1);
        if (finishes && head_before >= 0)
            finish(head_before, slice_before, shared.sums[current ^ 1],
                   shared.steps[steps_before]);
        if (head >= end_head) break;

        const bool fetches_next = fetches && next_head < end_head;
        if (fetches_next)
            next_step.load(kept_steps + next_head * chunks * KEPT_ARRAYS * CHUNK, step);

        if (role == 0) {
            add_gradients<false>(numbers, shared, stage, steps, sums, tile, lane);
        } else if (role == 1) {
            add_gradients<true>(numbers, shared, stage, steps, sums, tile, lane);
        } else {
            const Reader B_reader(shared.B, lane);
            float gradient[SLICE / 16][2][4] = {};
            const Reader dh_reader(shared.dh[stage], lane);
#pragma unroll
            for (int k = 0; k < STATES / 16; ++k) {
                Fragment<> b;
                b.load(B_reader, row, 16 * k);
#pragma unroll
                for (int j = 0; j < SLICE / 16; ++j) {
                    Fragment<> dh;
                    dh.load(dh_reader, 16 * j, 16 * k);
                    add_rows(gradient[j][0], gradient[j][1], b, dh);
                }
            }
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const float decay = steps.left_at_end[row + g + 8 * down];
#pragma unroll
                for (int j = 0; j < SLICE / 16; ++j)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        gradient[j][half][2 * down] *= decay;
                        gradient[j][half][2 * down + 1] *= decay;
                    }
            }
            const Reader dy_reader(shared.dy[stage], lane);
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                if (m < tile) continue;
                const Fragment<MADE> mask =
                    m == tile ? weighted<false, false, true>(
                                    numbers[2 * m], numbers[2 * m + 1], steps, row, 16 * m, lane)
                              : weighted<false, false, false>(
                                    numbers[2 * m], numbers[2 * m + 1], steps, row, 16 * m, lane);
#pragma unroll
                for (int j = 0; j < SLICE / 16; ++j) {
                    Fragment<> b;
                    b.load_transposed(dy_reader, 16 * m, 16 * j);
                    add_columns(gradient[j][0], gradient[j][1], mask, b);
                }
            }
            NUMBER* to = dx + head * dx_head + slice;
            const float skip_of_head = HAS_D == 1 ? number_at(D, head, options.D()) : 0.0f;
            const int channels = channels_from(slice);
#pragma unroll
            for (int j = 0; j < SLICE / 16; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int p = 16 * j + 8 * half + 2 * q;
                    float skip[2] = {skip_of_head, skip_of_head}, of_skip[2] = {};
                    if (HAS_D == 2) {
#pragma unroll
                        for (int i = 0; i < 2; ++i)
                            skip[i] = p + i < channels
                                          ? number_at(D, head * HEADDIM + slice + p + i, options.D())
                                          : 0.0f;
                    }
#pragma unroll
                    for (int down = 0; down < 2; ++down) {
                        const int t = row + g + 8 * down;
                        const Pair<GIVEN> slope = shared.dy[stage].pair(t, p);
                        const Pair<GIVEN> value = shared.x[stage].pair(t, p);
                        of_skip[0] += slope.low() * value.low();
                        of_skip[1] += slope.high() * value.high();
                        const float pair[2] = {
                            steps.dt[t] * gradient[j][half][2 * down] + skip[0] * slope.low(),
                            steps.dt[t] * gradient[j][half][2 * down + 1] +
                                skip[1] * slope.high()};
                        if (t >= rows) continue;
                        NUMBER* place = to + t * dx_time + p;
                        if constexpr (ALIGNED) {
                            Packed<NUMBER, 2> packed;
                            packed.pack(pair);
                            if (p < channels) packed.store(place);
                        } else {
                            if (p < channels) place[0] = from_float<NUMBER>(pair[0]);
                            if (p + 1 < channels) place[1] = from_float<NUMBER>(pair[1]);
                        }
                    }
                    if (HAS_D) {
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            const float sum = sum_of_column(of_skip[i]);
                            if (g == 0) sums.D[tile][p + i] = sum;
                        }
                    }
                }
            // What passes through the whole chunk.
            float sum = 0.0f;
            for (int i = tile * 32 + lane; i < SLICE * STATES / 2; i += 32 * ROW_TILES) {
                const int p = i / (STATES / 2), n = i % (STATES / 2) * 2;
                const Pair<GIVEN> h = shared.h[stage].pair(p, n);
                const Pair<GIVEN> dh = shared.dh[stage].pair(p, n);
                sum += h.low() * dh.low() + h.high() * dh.high();
            }
            sum = sum_of_warp(sum);
            if (lane == 0) sums.through[tile] = sum;
        }
        if (fetches_next) next_step.set(shared.steps[steps_next], step);
        steps_before = steps_now, steps_now = steps_next;
        head_before = head, slice_before = slice;
        head = next_head, slice = next_slice;
        current ^= 1;
    }
    if (role < 2) {
        // Sums of slots: dC's, then dB's, each (slots, batch, seqlen, groups, states).
        const long long groups = gridDim.z / slots;
        float* sums = nullptr;
        if (slots > 1)
            sums = sums_of_heads +
                   ((((role * slots + slot) * batches + batch) * seqlen + start) * groups + group) *
                       DSTATE;
        NUMBER* to = role ? dB + batch * dB_batch + start * dB_time + group * dB_group
                          : dC + batch * dC_batch + start * dC_time + group * dC_group;
        const long long stride = slots > 1 ? groups * DSTATE : role ? dB_time : dC_time;
        store_rows(to, sums, stride, numbers, row, rows, lane);
    }
}
