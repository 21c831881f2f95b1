// The gradients of Mamba-2's scan as ssd_backward.cu has them, for GPUs with products of warpgroups
// and heads of 64 channels: a block to a chunk of time and some heads of a group, one after the other.
//
// One warpgroup makes dC, one dB, one dx, a fourth fetches the heads that follow and finishes those
// before. dC and dB are summed over heads where products leave them. With E[t][s] = G[t][s] dt[s]
// (C[t] B[s]), in fp32, what passes through a step is sums of E over the pairs around it, and of
//     decay_since_start(t) dy[t] (C[t] h^T)    and    dt[s] w(s) x[s] (B[s] dh^T).
#define WITH_SLOPES
#include "bulk.cuh"
#include "ssd.cuh"
#include "warpgroups.cuh"

constexpr int GROUP = 128, ROLES = 3;
// Of the fourth warpgroup: warps that copy x and dy, then one for states and steps, one that finishes.
constexpr int COPIERS = 64, GIVERS = COPIERS + 32;
constexpr int BLOCK_THREADS = (ROLES + 1) * GROUP;
constexpr int FETCHER_REGISTERS = 56, REGISTERS = 152;
static_assert(GROUP * (ROLES * REGISTERS + FETCHER_REGISTERS) <=
              65536 / BLOCK_THREADS / 8 * 8 * BLOCK_THREADS);
// Heads whose sums and steps are kept at once.
constexpr int HEADS_KEPT = 4;
static_assert(CHUNK == 64 && HEADDIM == 64 && SLICE == 64 && GIVEN == 1 && MADE == 1 && ALIGNED);
static_assert(STATES == DSTATE && (STATES == 64 || STATES == 128) && STAGES == 2);

struct Sums {
    float rows[CHUNK];     // of E, and of h
    float columns[CHUNK];  // of E
    float ends[CHUNK];     // of dh
    float direct[CHUNK];   // the gradient of dt where it stands as a factor
    float through[4];
    float D[4][HAS_D == 2 ? HEADDIM : 1];
};

struct Shared {
    Exchanged<CHUNK, STATES> B;
    Exchanged<CHUNK, STATES> C;
    Exchanged<CHUNK, HEADDIM> x[STAGES];
    Exchanged<CHUNK, HEADDIM> dy[STAGES];
    Exchanged<HEADDIM, STATES> h[STAGES];
    Exchanged<HEADDIM, STATES> dh[STAGES];
    // C B^T for dC, and transposed for dB, each number where the thread that has it reads it.
    float products[2][8][GROUP][4];
    Steps steps[HEADS_KEPT];
    Sums sums[HEADS_KEPT];
    Arrivals arrivals[STAGES];
};
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

__device__ __forceinline__ int fetched(int role, int stage) { return 1 + role * STAGES + stage; }
__device__ __forceinline__ int used(int role, int stage) {
    return 1 + (ROLES + role) * STAGES + stage;
}

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

// What a row of four lanes has, together; all four get it.
__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Sixteen columns of a product, as they decay between rows and columns (LATER_ROWS says which are the
// later steps), times the length of the earlier step: the left factor of the next product. With
// `others`, adds what E has in a row to `sums`.
template <bool LATER_ROWS, bool ON_DIAGONAL, bool BY_STEPS>
__device__ __forceinline__ void weigh(unsigned (&to)[4], const float (&low)[4],
                                      const float (&high)[4], const float (*others)[GROUP][4],
                                      float (&sums)[2], const Steps& steps, int row, int column,
                                      int lane) {
    const int g = lane / 4, q = lane % 4;
    const Moment rows[2] = {moment_of(steps, row + g), moment_of(steps, row + g + 8)};
    float of_rows[2] = {1.0f, 1.0f};
    if constexpr (BY_STEPS && !LATER_ROWS)
        of_rows[0] = steps.dt[row + g], of_rows[1] = steps.dt[row + g + 8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float(&numbers)[4] = half ? high : low;
        const int there = column + 8 * half + 2 * q;
        Moment columns[2];
        moments_of(columns, steps, there);
        float2 of_columns = {1.0f, 1.0f};
        if constexpr (BY_STEPS && LATER_ROWS) of_columns = pair_at(steps.dt, there);
        float4 other;
        if constexpr (BY_STEPS)
            other = *reinterpret_cast<const float4*>(others[column / 8 + half][threadIdx.x % GROUP]);
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            float pair[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int here = row + g + 8 * down;
                const int later = LATER_ROWS ? here : there + i;
                const int earlier = LATER_ROWS ? there + i : here;
                const float number =
                    numbers[2 * down + i] * of_rows[down] * (i ? of_columns.y : of_columns.x);
                pair[i] = decayed<ON_DIAGONAL>(number, LATER_ROWS ? columns[i] : rows[down],
                                               LATER_ROWS ? rows[down] : columns[i],
                                               earlier <= later);
                if constexpr (BY_STEPS) {
                    const float product = down ? (i ? other.w : other.z) : (i ? other.y : other.x);
                    const float both = pair[i] * product;
                    sums[down] += ON_DIAGONAL && earlier == later ? 0.0f : both;
                }
            }
            to[2 * half + down] = packed_pair(pair[0], pair[1], NUMBER{});
        }
    }
}

// Sixteen columns of a warp's rows, as the left factor of a product.
template <int COLUMNS>
__device__ __forceinline__ void load_rows(unsigned (&to)[4], const Exchanged<CHUNK, COLUMNS>& from,
                                          int row, int column, int lane) {
    load_matrices(to, shared_address(from.bytes) +
                          from.offset(row + lane % 16, column + lane / 16 * 8));
}
__device__ __forceinline__ void scale_rows(unsigned (&words)[4], const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        words[i] = packed_pair(low_half(words[i]) * by[i % 2], high_half(words[i]) * by[i % 2],
                               NUMBER{});
}

// dC or dB of the block's heads: a warpgroup's.
template <bool FOR_B>
__device__ __forceinline__ void add_gradients(float (&total)[STATES / 8][4], Shared& shared,
                                              int stage, const Steps& steps, Sums& sums, int row,
                                              int lane) {
    const int g = lane / 4, q = lane % 4;
    const auto& left = FOR_B ? shared.x[stage] : shared.dy[stage];
    const auto& right = FOR_B ? shared.dy[stage] : shared.x[stage];
    const auto& state = FOR_B ? shared.dh[stage] : shared.h[stage];
    const auto& other = FOR_B ? shared.C : shared.B;

    float pairs[8][4];
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        multiply_groups(pairs, left.summed_columns(16 * k), right.summed_columns(16 * k), k > 0,
                        NUMBER{});
    commit_products();
    unsigned given[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_rows(given[k], left, row, 16 * k, lane);
    float of_state[2];
#pragma unroll
    for (int down = 0; down < 2; ++down)
        of_state[down] =
            FOR_B ? steps.to_end[row + g + 8 * down] : steps.since_start[row + g + 8 * down];
    wait_for_products<0>();
    settle(pairs);

    float of_rows[2] = {};
    unsigned weighted[4][4];
    const auto& others = shared.products[FOR_B];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (16 * k == row)
            weigh<!FOR_B, true, true>(weighted[k], pairs[2 * k], pairs[2 * k + 1], others, of_rows,
                                      steps, row, 16 * k, lane);
        else if (FOR_B ? 16 * k > row : 16 * k < row)
            weigh<!FOR_B, false, true>(weighted[k], pairs[2 * k], pairs[2 * k + 1], others, of_rows,
                                       steps, row, 16 * k, lane);
        else
            weighted[k][0] = weighted[k][1] = weighted[k][2] = weighted[k][3] = 0;
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        add_groups(total, weighted[k][0], weighted[k][1], weighted[k][2], weighted[k][3],
                   other.summed_rows(16 * k), NUMBER{});
    commit_products();
    if constexpr (!FOR_B) {
        float read[8][4];
        begin_products();
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
            multiply_groups(read, shared.C.summed_columns(16 * k),
                            shared.h[stage].summed_columns(16 * k), k > 0, NUMBER{});
        commit_products();
        wait_for_products<0>();
        settle(read);
        float by_state[2] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float(&numbers)[4] = read[2 * k + i / 2];
                by_state[i % 2] += low_half(given[k][i]) * numbers[2 * (i % 2)] +
                                   high_half(given[k][i]) * numbers[2 * (i % 2) + 1];
            }
        of_rows[0] += by_state[0] * of_state[0], of_rows[1] += by_state[1] * of_state[1];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) scale_rows(given[k], of_state);
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        add_groups(total, given[k][0], given[k][1], given[k][2], given[k][3],
                   state.summed_rows(16 * k), NUMBER{});
    commit_products();
#pragma unroll
    for (int down = 0; down < 2; ++down) {
        const float sum = sum_of_row(of_rows[down]);
        if (q == 0) (FOR_B ? sums.columns : sums.rows)[row + g + 8 * down] = sum;
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
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
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
        for (int stage = 0; stage < STAGES; ++stage) begin_arrivals(shared.arrivals[stage]);
        show_arrivals();
    }
    __syncthreads();
    if (warp < GROUP / 32) {
        leave_registers<FETCHER_REGISTERS>();
        const auto meet_users = [&](int stage) {
            for (int role = 0; role < ROLES; ++role) meet_at<2 * GROUP>(used(role, stage));
        };
        const auto give = [&](int stage) {
            for (int role = 0; role < ROLES; ++role) arrive_at<GROUP + GIVERS>(fetched(role, stage));
        };
        if (warp < COPIERS / 32) {
            x += batch * x_batch + start * x_time + first_head * x_head;
            dy += batch * dy_batch + start * dy_time + first_head * dy_head;
            fetch(shared.B, B + batch * B_batch + group * B_group + start * B_time, B_time, rows);
            fetch(shared.C, C + batch * C_batch + group * C_group + start * C_time, C_time, rows);
#pragma unroll 1
            for (int i = 0; i < count + 2; ++i) {
                const int stage = i % 2;
                if (i >= 1 && i <= count) {
                    wait_for_copies<0>();
                    show_to_products();
                    give(stage ^ 1);
                }
                if (i >= 2) meet_users(stage);
                if (i >= count) continue;
                fetch(shared.x[stage], x, x_time, rows);
                fetch(shared.dy[stage], dy, dy_time, rows);
                commit_copies();
                x += x_head, dy += dy_head;
            }
            return;
        }
        if (warp == COPIERS / 32) {
            kept += ((batch * chunks + chunk) * heads + first_head) * size;
            const NUMBER* kept_back = kept + batches * chunks * heads * size;
            kept_steps += ((batch * heads + first_head) * chunks + chunk) * KEPT_ARRAYS * CHUNK;
            KeptStep steps[2];
            steps[0].load(kept_steps, lane), steps[1].load(kept_steps, lane + 32);
#pragma unroll 1
            for (int i = 0; i < count + 2; ++i) {
                const int stage = i % 2;
                if (i < count) {
                    steps[0].set(shared.steps[i % HEADS_KEPT], lane);
                    steps[1].set(shared.steps[i % HEADS_KEPT], lane + 32);
                    kept_steps += chunks * KEPT_ARRAYS * CHUNK;
                    if (i + 1 < count)
                        steps[0].load(kept_steps, lane), steps[1].load(kept_steps, lane + 32);
                }
                if (i >= 2) meet_users(stage);
                if (i >= count) continue;
                if (lane == 0) {
                    constexpr int bytes = sizeof shared.h[0].bytes;
                    expect_bytes(shared.arrivals[stage], 2 * bytes);
                    load_bulk(shared_address(shared.h[stage].bytes), kept, bytes,
                              shared.arrivals[stage]);
                    load_bulk(shared_address(shared.dh[stage].bytes), kept_back, bytes,
                              shared.arrivals[stage]);
                }
                kept += size, kept_back += size;
                __syncwarp();
                give(stage);
            }
            return;
        }
        weights += (batch * chunks + chunk) * heads *
                   (2 + (HAS_D == 0 ? 0 : HAS_D == 2 ? HEADDIM : 1));
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            const long long head = first_head + i;
            const float rate = max(number_at(A, head, options.A()), -3e38f);
            meet_users(i % 2);
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
#pragma unroll
            for (int offset = 1; offset < 32; offset *= 2) {
                const float later = __shfl_down_sync(0xffffffffu, all_behind, offset);
                const float earlier = __shfl_up_sync(0xffffffffu, all_before, offset);
                if (lane + offset < 32) all_behind += later;
                if (lane >= offset) all_before += earlier;
            }
            const float later = __shfl_down_sync(0xffffffffu, all_behind, 1);
            const float earlier = __shfl_up_sync(0xffffffffu, all_before, 1);
            passed[0] = lane ? earlier : 0.0f, passed[1] = passed[0] + ends_of.x;
            const float through =
                sums.through[0] + sums.through[1] + sums.through[2] + sums.through[3];
            const float over_all = through * steps.decay_of_chunk();
            float of_A = 0.0f, of_bias = 0.0f;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float of_decay =
                    steps.passes[t + j]
                        ? behind[j] + (lane < 31 ? later : 0.0f) + passed[j] + over_all
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

    take_registers<REGISTERS>();
    const int role = warp / 4 - 1, tile = warp % 4, row = 16 * tile;
    if (role == 2) {
        dx += batch * dx_batch + start * dx_time + first_head * dx_head;
        float products[8][4];
#pragma unroll 1
        for (int i = 0; i < count; ++i, dx += dx_head) {
            const int stage = i % 2;
            meet_at<GROUP + GIVERS>(fetched(role, stage));
            wait_for_bytes(shared.arrivals[stage], i / 2 % 2);
            const Steps& steps = shared.steps[i % HEADS_KEPT];
            Sums& sums = shared.sums[i % HEADS_KEPT];
            if (i == 0) {
                begin_products();
#pragma unroll
                for (int k = 0; k < STATES / 16; ++k)
                    multiply_groups(products, shared.B.summed_columns(16 * k),
                                    shared.C.summed_columns(16 * k), k > 0, NUMBER{});
                commit_products();
                wait_for_products<0>();
                settle(products);
            }
            float gradient[8][4];
            begin_products();
#pragma unroll
            for (int k = 0; k < STATES / 16; ++k)
                multiply_groups(gradient, shared.B.summed_columns(16 * k),
                                shared.dh[stage].summed_columns(16 * k), k > 0, NUMBER{});
            commit_products();

            // What passes through the whole chunk.
            float sum = 0.0f;
#pragma unroll 4
            for (int j = threadIdx.x % GROUP; j < HEADDIM * STATES / 8; j += GROUP) {
                const uint4 h = reinterpret_cast<const uint4*>(shared.h[stage].bytes)[j];
                const uint4 dh = reinterpret_cast<const uint4*>(shared.dh[stage].bytes)[j];
                sum += low_half(h.x) * low_half(dh.x) + high_half(h.x) * high_half(dh.x) +
                       low_half(h.y) * low_half(dh.y) + high_half(h.y) * high_half(dh.y) +
                       low_half(h.z) * low_half(dh.z) + high_half(h.z) * high_half(dh.z) +
                       low_half(h.w) * low_half(dh.w) + high_half(h.w) * high_half(dh.w);
            }
            sum = sum_of_warp(sum);
            if (lane == 0) sums.through[tile] = sum;

            unsigned mask[4][4];
            float none[2];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (16 * k == row)
                    weigh<false, true, false>(mask[k], products[2 * k], products[2 * k + 1],
                                              nullptr, none, steps, row, 16 * k, lane);
                else if (16 * k > row)
                    weigh<false, false, false>(mask[k], products[2 * k], products[2 * k + 1],
                                               nullptr, none, steps, row, 16 * k, lane);
                else
                    mask[k][0] = mask[k][1] = mask[k][2] = mask[k][3] = 0;
            }
            wait_for_products<0>();
            settle(gradient);
            float ends[2] = {}, direct[2] = {};
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const int s = row + g + 8 * down;
                const float left = steps.left_at_end[s];
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const unsigned word = shared.x[stage].word(s, 8 * j + 2 * q);
                    gradient[j][2 * down] *= left, gradient[j][2 * down + 1] *= left;
                    ends[down] += low_half(word) * gradient[j][2 * down] +
                                  high_half(word) * gradient[j][2 * down + 1];
                }
            }
            begin_products();
#pragma unroll
            for (int k = 0; k < 4; ++k)
                add_groups(gradient, mask[k][0], mask[k][1], mask[k][2], mask[k][3],
                           shared.dy[stage].summed_rows(16 * k), NUMBER{});
            commit_products();
            const long long head = first_head + i;
            const float skip_of_head = HAS_D == 1 ? number_at(D, head, options.D()) : 0.0f;
            wait_for_products<0>();
            settle(gradient);

            float of_D = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float numbers[2][2][2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int p = 8 * (j + half) + 2 * q;
                    float skip[2] = {skip_of_head, skip_of_head}, of_skip[2] = {};
                    if constexpr (HAS_D == 2) {
                        skip[0] = number_at(D, head * HEADDIM + p, options.D());
                        skip[1] = number_at(D, head * HEADDIM + p + 1, options.D());
                    }
#pragma unroll
                    for (int down = 0; down < 2; ++down) {
                        const int s = row + g + 8 * down;
                        const float(&pair)[4] = gradient[j + half];
                        const unsigned value = shared.x[stage].word(s, p);
                        const unsigned slope = shared.dy[stage].word(s, p);
                        const float length = steps.dt[s];
                        direct[down] += low_half(value) * pair[2 * down] +
                                        high_half(value) * pair[2 * down + 1];
                        of_skip[0] += low_half(value) * low_half(slope);
                        of_skip[1] += high_half(value) * high_half(slope);
                        numbers[down][half][0] =
                            length * pair[2 * down] + skip[0] * low_half(slope);
                        numbers[down][half][1] =
                            length * pair[2 * down + 1] + skip[1] * high_half(slope);
                    }
                    if constexpr (HAS_D == 1) of_D += of_skip[0] + of_skip[1];
                    if constexpr (HAS_D == 2)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            float all = of_skip[e];
                            all += __shfl_xor_sync(0xffffffffu, all, 4);
                            all += __shfl_xor_sync(0xffffffffu, all, 8);
                            all += __shfl_xor_sync(0xffffffffu, all, 16);
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
            if constexpr (HAS_D == 1) {
                of_D = sum_of_warp(of_D);
                if (lane == 0) sums.D[tile][0] = of_D;
            }
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                const int s = row + g + 8 * down;
                const float of_dh = sum_of_row(ends[down]) * steps.dt[s];
                const float of_dt = sum_of_row(direct[down]);
                if (q == 0) sums.ends[s] = of_dh, sums.direct[s] = of_dt;
            }
            arrive_at<2 * GROUP>(used(role, stage));
        }
        return;
    }

    float total[STATES / 8][4];
#pragma unroll
    for (int j = 0; j < STATES / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[j][i] = 0.0f;
    const auto add_all = [&](auto for_B) {
        constexpr bool FOR_B = decltype(for_B)::value;
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            const int stage = i % 2;
            meet_at<GROUP + GIVERS>(fetched(role, stage));
            wait_for_bytes(shared.arrivals[stage], i / 2 % 2);
            if (i == 0) {
                const auto& left = FOR_B ? shared.B : shared.C;
                const auto& right = FOR_B ? shared.C : shared.B;
                float products[8][4];
                begin_products();
#pragma unroll
                for (int k = 0; k < STATES / 16; ++k)
                    multiply_groups(products, left.summed_columns(16 * k),
                                    right.summed_columns(16 * k), k > 0, NUMBER{});
                commit_products();
                wait_for_products<0>();
                settle(products);
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        shared.products[FOR_B][j][threadIdx.x % GROUP][e] = products[j][e];
            }
            add_gradients<FOR_B>(total, shared, stage, shared.steps[i % HEADS_KEPT],
                                 shared.sums[i % HEADS_KEPT], row, lane);
            arrive_at<2 * GROUP>(used(role, stage));
        }
    };
    if (role == 0)
        add_all(Flag<false>{});
    else
        add_all(Flag<true>{});

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
