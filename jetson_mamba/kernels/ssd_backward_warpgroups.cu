// The gradients of Mamba-2's scan as ssd_backward.cu has them, for GPUs with products of warpgroups
// and heads of 64 channels: a block to a chunk of time and some heads of a group, one after the other.
//
// One warpgroup makes dC, one dB, one dx, the warps of a fourth fetch the heads that follow and finish
// those before. dC and dB are summed over heads where products leave them. With E[t][s] = G[t][s] dt[s]
// (C[t] B[s]), in fp32, what passes through a step is sums of E over the pairs around it, and of
//     decay_since_start(t) dy[t] (C[t] h^T)    and    dt[s] w(s) x[s] (B[s] dh^T).
#include "bulk.cuh"
#include "ssd_backward.cuh"
#include "warpgroups.cuh"

constexpr int GROUP = 128, ROLES = 3;
// Of the fourth warpgroup: warps that copy x and dy, then one for states and steps, one that finishes.
constexpr int COPIERS = 64;
constexpr int BLOCK_THREADS = (ROLES + 1) * GROUP;
// Of a thread.
constexpr int FETCHER_REGISTERS = 32, REGISTERS_OF_SUMS = 160, REGISTERS_OF_DX = 160;
static_assert(GROUP * (2 * REGISTERS_OF_SUMS + REGISTERS_OF_DX + FETCHER_REGISTERS) <=
              65536 / BLOCK_THREADS / 8 * 8 * BLOCK_THREADS);
// Heads whose sums and steps are kept at once.
constexpr int HEADS_KEPT = 4;
static_assert(HEADS_KEPT > STAGES, "a head's steps are read until its stage is given back");
static_assert(CHUNK == 64 && HEADDIM == 64 && SLICE == 64 && GIVEN == 1 && MADE == 1 && ALIGNED);
static_assert(STATES == DSTATE && (STATES == 64 || STATES == 128));

struct Sums {
    float rows[CHUNK];     // of E, and of h
    float columns[CHUNK];  // of E
    float ends[CHUNK];     // of dh
    float direct[CHUNK];   // the gradient of dt where it stands as a factor
    float through[COPIERS / 32];
    float D[4][HAS_D == 2 ? HEADDIM : 1];
};

struct Shared {
    Exchanged<CHUNK, STATES> B;
    Exchanged<CHUNK, STATES> C;
    Exchanged<CHUNK, HEADDIM> x[STAGES];
    Exchanged<CHUNK, HEADDIM> dy[STAGES];
    Exchanged<HEADDIM, STATES> h[STAGES];
    Exchanged<HEADDIM, STATES> dh[STAGES];
    // C B^T for dC, and transposed for dB and dx, each number where its thread reads it.
    alignas(16) float products[2][8][GROUP][4];
    // For those who have no lengths of steps on this side.
    float ones[CHUNK];
    Steps steps[HEADS_KEPT];
    Sums sums[HEADS_KEPT];
    // Of what has been fetched for a head, and of who is done with it: copiers, the giver's states and
    // steps; warps that multiply, copiers, and who finishes.
    Barrier fetched[STAGES];
    Barrier used[STAGES];
};
// The barrier at which dx waits for the products that dB makes.
constexpr int PRODUCTS_MADE = 1;
constexpr int FETCHED = COPIERS / 32 + 2, USED = ROLES * GROUP / 32 + COPIERS / 32 + 1;
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void fetch(Exchanged<ROWS, COLUMNS>& to, const NUMBER* from,
                                      long long row_stride, int rows) {
    constexpr int VECTORS = COLUMNS / 8, STEP = COPIERS / VECTORS;
    const int row = threadIdx.x / VECTORS, column = threadIdx.x % VECTORS * 8;
    from += row * row_stride + column;
    const unsigned place = shared_address(to.bytes);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; ++i) {
        copy_16_async(place + to.offset(row + i * STEP, column), from, row + i * STEP < rows);
        from += STEP * row_stride;
    }
}

// A number that the compiler knows nothing of.
__device__ __forceinline__ unsigned opaque(unsigned number) {
    asm volatile("" : "+r"(number));
    return number;
}

// The sum of the products of two tiles' numbers, a warp's part of it.
template <typename T>
__device__ __forceinline__ float product_of(const T& one, const T& other) {
    float sum = 0.0f;
#pragma unroll 4
    for (int j = threadIdx.x % COPIERS; j < static_cast<int>(sizeof one.bytes / 16); j += COPIERS) {
        const uint4 h = reinterpret_cast<const uint4*>(one.bytes)[j];
        const uint4 dh = reinterpret_cast<const uint4*>(other.bytes)[j];
        sum += low_half(h.x) * low_half(dh.x) + high_half(h.x) * high_half(dh.x) +
               low_half(h.y) * low_half(dh.y) + high_half(h.y) * high_half(dh.y) +
               low_half(h.z) * low_half(dh.z) + high_half(h.z) * high_half(dh.z) +
               low_half(h.w) * low_half(dh.w) + high_half(h.w) * high_half(dh.w);
    }
    return sum_of_warp(sum);
}

// The rows that a lane has a part of, to the decays between them and columns: `sign` is 1 where rows
// are the later steps, -1 where columns are.
struct Rows {
    Moment moments[2];
    float sign;

    __device__ __forceinline__ Rows(const Steps& steps, int row, bool are_later)
        : sign(are_later ? 1.0f : -1.0f) {
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            moments[down] = moment_of(steps, row + 8 * down);
            moments[down].sum *= sign;
        }
    }
};

// Sixteen columns of a product, as they decay between rows and columns: the left factor of the next
// product. BY_STEPS: times the length of the earlier step, of which one of `of_rows` and `of_columns`
// is; and adds to `sums` what E has in a row, for the numbers of `others`. One code for all who
// weigh, without a branch but for the tile on the diagonal: what a warp executes is fetched for it
// alone, and there is room for little of it.
template <bool BY_STEPS>
__device__ __forceinline__ void weigh(unsigned (&to)[4], const float (&low)[4],
                                      const float (&high)[4], const float (*others)[GROUP][4],
                                      float (&sums)[2], const float (&of_rows)[2],
                                      const float* of_columns, const Steps& steps,
                                      const Rows& rows, bool on_diagonal, int column, int g,
                                      int q) {
    float pairs[2][2][2], products[2][2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float(&numbers)[4] = half ? high : low;
        const int there = column + 8 * half + 2 * q;
        Moment columns[2];
        moments_of(columns, steps, there);
        float2 factors = {1.0f, 1.0f};
        if constexpr (BY_STEPS) {
            factors = *reinterpret_cast<const float2*>(of_columns + there);
            const float4 other =
                *reinterpret_cast<const float4*>(others[column / 8 + half][threadIdx.x % GROUP]);
            products[half][0][0] = other.x, products[half][0][1] = other.y;
            products[half][1][0] = other.z, products[half][1][1] = other.w;
        }
#pragma unroll
        for (int down = 0; down < 2; ++down)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float number = numbers[2 * down + i];
                if constexpr (BY_STEPS) number *= of_rows[down] * (i ? factors.y : factors.x);
                float decay = exp2_fast(rows.moments[down].sum - rows.sign * columns[i].sum);
                if constexpr (HAS_SEQUENCES)
                    decay = rows.moments[down].run == columns[i].run ? decay : 0.0f;
                pairs[half][down][i] = number * decay;
            }
    }
    if (on_diagonal) {
        const bool rows_later = rows.sign > 0.0f;
        const int ahead = g - 2 * q, signed_ahead = rows_later ? ahead : -ahead;
        const int one = rows_later ? 1 : -1;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool in_order = signed_ahead - one * i >= 0, is_itself = ahead == i;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                pairs[half][half][i] = in_order ? pairs[half][half][i] : 0.0f;
                if (BY_STEPS) products[half][half][i] = is_itself ? 0.0f : products[half][half][i];
            }
            pairs[0][1][i] = rows_later ? pairs[0][1][i] : 0.0f;
            pairs[1][0][i] = rows_later ? 0.0f : pairs[1][0][i];
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            const float(&pair)[2] = pairs[half][down];
            if constexpr (BY_STEPS)
                sums[down] += pair[0] * products[half][down][0] + pair[1] * products[half][down][1];
            to[2 * half + down] = packed_pair(pair[0], pair[1], NUMBER{});
        }
}

__device__ __forceinline__ void scale_rows(unsigned (&words)[4], const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        words[i] = packed_pair(low_half(words[i]) * by[i % 2], high_half(words[i]) * by[i % 2],
                               NUMBER{});
}

// Adds dC or dB of a head: a warpgroup's.
__device__ __forceinline__ void add_gradients(float (&total)[STATES / 8][4], Shared& shared,
                                              bool for_B, int stage, const Steps& steps,
                                              Sums& sums, int row, int lane) {
    const int g = lane / 4, q = lane % 4;
    const auto& left = for_B ? shared.x[stage] : shared.dy[stage];
    const auto& right = for_B ? shared.dy[stage] : shared.x[stage];
    const auto& state = for_B ? shared.dh[stage] : shared.h[stage];
    const auto& other = for_B ? shared.C : shared.B;

    // What is waited for first is begun first.
    float pairs[8][4];
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        multiply_groups(pairs, left.summed_columns(16 * k), right.summed_columns(16 * k), k > 0,
                        NUMBER{});
    commit_products();
    unsigned given[4][4];
    const float* decays = for_B ? steps.to_end : steps.since_start;
    const float of_state[2] = {decays[row + g], decays[row + g + 8]};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        left.load(given[k], row, 16 * k, lane);
        scale_rows(given[k], of_state);
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        add_groups(total, given[k][0], given[k][1], given[k][2], given[k][3],
                   state.summed_rows(16 * k), NUMBER{});
    commit_products();
    wait_for_products<1>();
    settle(pairs);

    float of_rows[2] = {};
    unsigned weighted[4][4];
    {
        const Rows rows(steps, row + g, !for_B);
        const float* row_factors = for_B ? steps.dt : shared.ones;
        const float factors[2] = {row_factors[row + g], row_factors[row + g + 8]};
        const float* of_columns = for_B ? shared.ones : steps.dt;
        // What D passes on is of each step with itself.
        float of_D = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (for_B ? 16 * k < row : 16 * k > row) {
                weighted[k][0] = weighted[k][1] = weighted[k][2] = weighted[k][3] = 0;
                continue;
            }
            if (HAS_D == 1 && 16 * k == row)
                of_D = g % 2 ? pairs[2 * k][1] + pairs[2 * k + 1][3]
                             : pairs[2 * k][0] + pairs[2 * k + 1][2];
            weigh<true>(weighted[k], pairs[2 * k], pairs[2 * k + 1], shared.products[for_B],
                        of_rows, factors, of_columns, steps, rows, 16 * k == row, 16 * k, g, q);
        }
        if constexpr (HAS_D == 1) {
            of_D = sum_of_warp(q == g / 2 ? of_D : 0.0f);
            if (lane == 0 && !for_B) sums.D[row / 16][0] = of_D;
        }
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        add_groups(total, weighted[k][0], weighted[k][1], weighted[k][2], weighted[k][3],
                   other.summed_rows(16 * k), NUMBER{});
    commit_products();
    if (!for_B) {
        // In place of `pairs`.
        begin_products();
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
            multiply_groups(pairs, shared.C.summed_columns(16 * k), state.summed_columns(16 * k),
                            k > 0, NUMBER{});
        commit_products();
        wait_for_products<0>();
        settle(pairs);
        float by_state[2] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            unsigned words[4];
            left.load(words, row, 16 * k, lane);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float(&numbers)[4] = pairs[2 * k + i / 2];
                by_state[i % 2] += low_half(words[i]) * numbers[2 * (i % 2)] +
                                   high_half(words[i]) * numbers[2 * (i % 2) + 1];
            }
        }
        of_rows[0] += by_state[0] * of_state[0], of_rows[1] += by_state[1] * of_state[1];
    }
    float* to = for_B ? sums.columns : sums.rows;
#pragma unroll
    for (int down = 0; down < 2; ++down) {
        const float sum = sum_of_row(of_rows[down]);
        if (q == 0) to[row + g + 8 * down] = sum;
    }
    wait_for_products<0>();
    settle(total);
}

// Where dB and dC go: to the gradient itself, or to a sum of some heads that is added up later.
__device__ __forceinline__ void store_total(NUMBER* to, float* sums, long long stride,
                                            const float (&numbers)[STATES / 8][4], int row,
                                            int rows, int lane) {
#pragma unroll
    for (int down = 0; down < 2; ++down) {
        const int t = row + lane / 4 + 8 * down, n = lane % 4 * 2;
        if (t >= rows) continue;
#pragma unroll
        for (int j = 0; j < STATES / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float number = numbers[j][2 * down + i];
                if (sums)
                    sums[t * stride + 8 * j + n + i] = number;
                else
                    to[t * stride + 8 * j + n + i] = from_float<NUMBER>(number);
            }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1) ssd_backward_warpgroups(
    const NUMBER* x, const NUMBER* dy, const void* A, const NUMBER* B, const NUMBER* C,
    const void* D, const NUMBER* kept, const float* kept_steps, NUMBER* dx, void* ddt, NUMBER* dB,
    NUMBER* dC, float* sums_of_heads, float* weights, long long option_bits, long long seqlen,
    long long heads, long long heads_of_group, long long heads_of_slot, long long slots,
    long long x_batch, long long x_time, long long x_head, long long dy_batch, long long dy_time,
    long long dy_head, long long B_batch, long long B_time, long long B_group, long long C_batch,
    long long C_time, long long C_group, long long dx_batch, long long dx_time, long long dx_head,
    long long ddt_batch, long long ddt_time, long long ddt_head, long long dB_batch,
    long long dB_time, long long dB_group, long long dC_batch, long long dC_time,
    long long dC_group) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const long long chunk = blockIdx.x, chunks = gridDim.x, batch = blockIdx.y;
    const long long group = blockIdx.z / slots, slot = blockIdx.z % slots, batches = gridDim.y;
    const long long first_head = group * heads_of_group + slot * heads_of_slot;
    const int count = static_cast<int>(min(heads_of_slot, heads_of_group - slot * heads_of_slot));
    const long long start = chunk * CHUNK;
    const int rows = static_cast<int>(min(seqlen - start, static_cast<long long>(CHUNK)));
    const Options options{option_bits};
    constexpr long long size = HEADDIM * DSTATE;

    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) {
            shared.fetched[stage].begin(FETCHED);
            shared.used[stage].begin(USED);
        }
        show_barriers();
    }
    if (threadIdx.x < CHUNK) shared.ones[threadIdx.x] = 1.0f;
    __syncthreads();
    if (warp < GROUP / 32) {
        leave_registers<FETCHER_REGISTERS>();
        if (warp < COPIERS / 32) {
            x += batch * x_batch + start * x_time + first_head * x_head;
            dy += batch * dy_batch + start * dy_time + first_head * dy_head;
            fetch(shared.B, B + batch * B_batch + group * B_group + start * B_time, B_time, rows);
            fetch(shared.C, C + batch * C_batch + group * C_group + start * C_time, C_time, rows);
            int stage = 0, before = STAGES - 1, round = 0;
#pragma unroll 1
            for (int i = 0; i <= count; ++i) {
                if (i < count) {
                    if (round) shared.used[stage].wait_for_round(round - 1);
                    fetch(shared.x[stage], x, x_time, rows);
                    fetch(shared.dy[stage], dy, dy_time, rows);
                    x += x_head, dy += dy_head;
                }
                commit_copies();
                if (i) {
                    wait_for_copies<1>();
                    show_to_products();
                    shared.fetched[before].arrive_as_warp(lane);
                    // What passes through the whole chunk.
                    shared.fetched[before].wait_for_round(stage ? round : round - 1);
                    const float sum = product_of(shared.h[before], shared.dh[before]);
                    if (lane == 0) shared.sums[(i - 1) % HEADS_KEPT].through[warp] = sum;
                    shared.used[before].arrive_as_warp(lane);
                }
                before = stage;
                if (++stage == STAGES) stage = 0, ++round;
            }
            return;
        }
        if (warp == COPIERS / 32) {
            kept += ((batch * chunks + chunk) * heads + first_head) * size;
            const NUMBER* kept_back = kept + batches * chunks * heads * size;
            kept_steps += ((batch * heads + first_head) * chunks + chunk) * KEPT_ARRAYS * CHUNK;
            KeptStep steps[2];
            steps[0].load(kept_steps, lane), steps[1].load(kept_steps, lane + 32);
            int stage = 0, round = 0;
#pragma unroll 1
            for (int i = 0; i < count; ++i) {
                if (round) shared.used[stage].wait_for_round(round - 1);
                if (lane == 0) {
                    constexpr int bytes = sizeof shared.h[0].bytes;
                    shared.fetched[stage].arrive_expecting(2 * bytes);
                    load_bulk(shared_address(shared.h[stage].bytes), kept, bytes,
                              shared.fetched[stage]);
                    load_bulk(shared_address(shared.dh[stage].bytes), kept_back, bytes,
                              shared.fetched[stage]);
                }
                kept += size, kept_back += size;
                steps[0].set(shared.steps[i % HEADS_KEPT], lane);
                steps[1].set(shared.steps[i % HEADS_KEPT], lane + 32);
                kept_steps += chunks * KEPT_ARRAYS * CHUNK;
                if (i + 1 < count)
                    steps[0].load(kept_steps, lane), steps[1].load(kept_steps, lane + 32);
                shared.fetched[stage].arrive_as_warp(lane);
                if (++stage == STAGES) stage = 0, ++round;
            }
            return;
        }
        weights += (batch * chunks + chunk) * heads *
                   (2 + (HAS_D == 0 ? 0 : HAS_D == 2 ? HEADDIM : 1));
        int stage = 0, round = 0;
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            const long long head = first_head + i;
            const float rate = max(number_at(A, head, options.A()), -3e38f);
            shared.used[stage].arrive_as_warp(lane);
            shared.used[stage].wait_for_round(round);
            if (++stage == STAGES) stage = 0, ++round;
            const Sums& sums = shared.sums[i % HEADS_KEPT];
            const Steps& steps = shared.steps[i % HEADS_KEPT];
            if (HAS_D == 2)
                for (int p = lane; p < HEADDIM; p += 32)
                    weights[2 * heads + head * HEADDIM + p] =
                        sums.D[0][p] + sums.D[1][p] + sums.D[2][p] + sums.D[3][p];
            // Two steps a lane: sums of what lies behind, without what begins there, and of what came
            // before.
            const int t = 2 * lane;
            const float2 rows_of = pair_at(sums.rows, t), columns_of = pair_at(sums.columns, t);
            const float2 ends_of = pair_at(sums.ends, t), direct_of = pair_at(sums.direct, t);
            float behind[2], passed[2];
            behind[1] = rows_of.y - columns_of.y;
            behind[0] = rows_of.x - columns_of.x + behind[1];
            float all_behind = behind[0], all_before = ends_of.x + ends_of.y;
            sums_around(all_behind, all_before, lane);
            passed[0] = all_before, passed[1] = passed[0] + ends_of.x;
            const float over_all = (sums.through[0] + sums.through[1]) * steps.decay_of_chunk();
            float of_A = 0.0f, of_bias = 0.0f;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float of_decay =
                    steps.passes[t + j]
                        ? behind[j] + all_behind + passed[j] + over_all
                        : 0.0f;
                const float of_step =
                    ((j ? direct_of.y : direct_of.x) + rate * of_decay) * steps.slope[t + j];
                of_A += steps.dt[t + j] * of_decay;
                of_bias += of_step;
                if (t + j < rows)
                    set_number(ddt,
                               batch * ddt_batch + (start + t + j) * ddt_time + head * ddt_head,
                               options.dt(), of_step);
            }
            of_A = sum_of_warp(of_A), of_bias = sum_of_warp(of_bias);
            if (lane == 0) {
                weights[head] = of_A;
                weights[heads + head] = of_bias;
                if (HAS_D == 1)
                    weights[2 * heads + head] =
                        sums.D[0][0] + sums.D[1][0] + sums.D[2][0] + sums.D[3][0];
            }
        }
        return;
    }

    const int role = warp / 4 - 1, tile = warp % 4, row = 16 * tile;
    int stage = 0, round = 0;
    if (role == 2) {
        take_registers<REGISTERS_OF_DX>();
        dx += batch * dx_batch + start * dx_time + first_head * dx_head;
#pragma unroll 1
        for (int i = 0; i < count; ++i, dx += dx_head) {
            shared.fetched[stage].wait_for_round(round);
            // Addresses that are made of it are not kept from head to head, which registers lack for.
            const int lane = opaque(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
            const Steps& steps = shared.steps[i % HEADS_KEPT];
            Sums& sums = shared.sums[i % HEADS_KEPT];
            if (i == 0) meet_at<2 * GROUP>(PRODUCTS_MADE);
            float gradient[8][4];
            begin_products();
#pragma unroll
            for (int k = 0; k < STATES / 16; ++k)
                multiply_groups(gradient, shared.B.summed_columns(16 * k),
                                shared.dh[stage].summed_columns(16 * k), k > 0, NUMBER{});
            commit_products();

            unsigned mask[4][4];
            float none[2];
            const Rows of_steps(steps, row + g, false);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (16 * k < row) {
                    mask[k][0] = mask[k][1] = mask[k][2] = mask[k][3] = 0;
                    continue;
                }
                float low[4], high[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    low[e] = shared.products[1][2 * k][threadIdx.x % GROUP][e];
                    high[e] = shared.products[1][2 * k + 1][threadIdx.x % GROUP][e];
                }
                weigh<false>(mask[k], low, high, nullptr, none, none, nullptr, steps,
                             of_steps, 16 * k == row, 16 * k, g, q);
            }
            float of_pairs[8][4];
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) of_pairs[j][e] = 0.0f;
            begin_products();
#pragma unroll
            for (int k = 0; k < 4; ++k)
                add_groups(of_pairs, mask[k][0], mask[k][1], mask[k][2], mask[k][3],
                           shared.dy[stage].summed_rows(16 * k), NUMBER{});
            commit_products();
            const long long head = first_head + i;
            const float skip_of_head = HAS_D == 1 ? number_at(D, head, options.D()) : 0.0f;
            float ends[2] = {}, direct[2] = {};
            const float left[2] = {steps.left_at_end[row + g], steps.left_at_end[row + g + 8]};
            const float lengths[2] = {steps.dt[row + g], steps.dt[row + g + 8]};
            wait_for_products<0>();
            settle(gradient);
            settle(of_pairs);
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float numbers[2][2][2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int p = 8 * (j + half) + 2 * q;
                    float skip[2] = {skip_of_head, skip_of_head};
                    [[maybe_unused]] float of_skip[2] = {};
                    if constexpr (HAS_D == 2) {
                        skip[0] = number_at(D, head * HEADDIM + p, options.D());
                        skip[1] = number_at(D, head * HEADDIM + p + 1, options.D());
                    }
#pragma unroll
                    for (int down = 0; down < 2; ++down) {
                        const int s = row + g + 8 * down;
                        const unsigned value = shared.x[stage].word(s, p);
                        const unsigned slope = shared.dy[stage].word(s, p);
                        const float x_pair[2] = {low_half(value), high_half(value)};
                        const float dy_pair[2] = {low_half(slope), high_half(slope)};
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            const float by_state = gradient[j + half][2 * down + e];
                            const float all =
                                left[down] * by_state + of_pairs[j + half][2 * down + e];
                            ends[down] += x_pair[e] * by_state;
                            direct[down] += x_pair[e] * all;
                            if constexpr (HAS_D == 2) of_skip[e] += x_pair[e] * dy_pair[e];
                            numbers[down][half][e] = lengths[down] * all + skip[e] * dy_pair[e];
                        }
                    }
                    if constexpr (HAS_D == 2)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            const float all = sum_of_column(of_skip[e]);
                            if (g == 0) sums.D[tile][p + e] = all;
                        }
                }
#pragma unroll
                for (int down = 0; down < 2; ++down) {
                    const int s = row + g + 8 * down;
                    Packed<NUMBER, 4> packed;
                    const int p = 8 * j + gathered(packed, numbers[down][0], numbers[down][1], lane);
                    if (s < rows) packed.store(dx + s * dx_time + p);
                }
            }
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const int s = row + g + 8 * down;
                const float of_dh = sum_of_row(ends[down]) * left[down] * lengths[down];
                const float of_dt = sum_of_row(direct[down]);
                if (q == 0) sums.ends[s] = of_dh, sums.direct[s] = of_dt;
            }
            shared.used[stage].arrive_as_warp(lane);
            if (++stage == STAGES) stage = 0, ++round;
        }
        return;
    }

    float total[STATES / 8][4];
#pragma unroll
    for (int j = 0; j < STATES / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[j][i] = 0.0f;
    take_registers<REGISTERS_OF_SUMS>();
    const bool for_B = role == 1;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        shared.fetched[stage].wait_for_round(round);
        if (i == 0) {
            const auto& left = for_B ? shared.B : shared.C;
            const auto& right = for_B ? shared.C : shared.B;
            float products[8][4];
            begin_products();
#pragma unroll
            for (int k = 0; k < STATES / 16; ++k)
                multiply_groups(products, left.summed_columns(16 * k), right.summed_columns(16 * k),
                                k > 0, NUMBER{});
            commit_products();
            wait_for_products<0>();
            settle(products);
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    shared.products[for_B][j][threadIdx.x % GROUP][e] = products[j][e];
            if (for_B) arrive_at<2 * GROUP>(PRODUCTS_MADE);
        }
        add_gradients(total, shared, for_B, stage, shared.steps[i % HEADS_KEPT],
                      shared.sums[i % HEADS_KEPT], row, lane);
        shared.used[stage].arrive_as_warp(lane);
        if (++stage == STAGES) stage = 0, ++round;
    }

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
    store_total(to, sums, stride, total, row, rows, lane);
}
