// Mamba-2's scan as ssd_forward.cu has it, for GPUs with products of warpgroups: a block to a head, or
// to 64 of its channels, that walks along time in chunks of 64 steps.
//
// Four warpgroups divide the work, so that none waits for what another could do meanwhile. One fetches
// what the others need, STAGES chunks ahead. One has the state in its registers: it leaves what each
// chunk begins with in shared memory, h, in 16 bits, and adds (x dt decay_to_end)^T B. Two take turns
// at the chunks' outputs: they make C B^T, whose numbers, as they have decayed, are the left factor
// of M x where they lie, and y = C h. Nothing but the state passes from chunk to chunk.
#include "barriers.cuh"
#include "ssd.cuh"
#include "warpgroups.cuh"

constexpr int GROUP = 128, BLOCK_THREADS = 4 * GROUP;
// Of a thread: what all have at first is shared out anew. Who asks for more than is left waits forever.
constexpr int FETCHER_REGISTERS = 56, STATE_REGISTERS = 136, OUTPUT_REGISTERS = 160;
static_assert(FETCHER_REGISTERS + STATE_REGISTERS + 2 * OUTPUT_REGISTERS <= 65536 / GROUP);
static_assert(CHUNK == 64 && SLICE == 64 && GIVEN == 1 && ALIGNED, "as the tiles are");
static_assert(STATES == 64 || STATES == 128, "parts of 64 columns");
// A number of D goes to its output with M, on whose diagonal it stands, where it is rounded no more.
constexpr bool D_IN_MASK = HAS_D == 1 && MADE > 1;

#if MADE == 2
// x times the weight of its step, in two pieces: what rounding takes from the product of two numbers of
// 16 bits is one again.
__device__ __forceinline__ void weigh(Fragment<2>& to, const Fragment<>& x,
                                      const unsigned (&weights)[2][CHUNK / 2], int first,
                                      int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int place = first / 2 + 4 * half + lane % 4;
        const unsigned high = weights[0][place], low = weights[1][place];
#pragma unroll
        for (int i = half; i < 4; i += 2) {
            const unsigned word = x.words[0][i];
            const unsigned product = fused(word, high, 0x80008000u, Element{});
            to.words[0][i] = product;
            to.words[1][i] =
                fused(word, low, fused(word, high, product ^ 0x80008000u, Element{}), Element{});
        }
    }
}
#endif
struct Shared {
    Exchanged<CHUNK, STATES> C[STAGES];
    Exchanged<CHUNK, STATES> B[STAGES];
    Exchanged<CHUNK, SLICE> x[STAGES];
    // Of the chunks of each of the warpgroups that make outputs.
    Exchanged<SLICE, STATES> h[2][MADE];
    Steps steps[STAGES];
#if MADE == 2
    // Of the steps' to_end.
    unsigned weights[STAGES][MADE][CHUNK / 2];
#endif
    Barrier fetched[STAGES], used[STAGES], made[2], taken[2];
};
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

// A stage of shared memory, and the parity of the phases of its barriers.
struct Turn {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance(int count = 1) {
        for (int i = 0; i < count; ++i)
            if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void fetch(Exchanged<ROWS, COLUMNS>& to, const NUMBER* from,
                                      long long row_stride, int rows, int columns, int thread) {
    constexpr int VECTORS = COLUMNS / 8, STEP = GROUP / VECTORS;
    const int row = thread / VECTORS, column = thread % VECTORS * 8;
    if (column >= columns) rows = 0;
    from += row * row_stride + column;
    const unsigned place = shared_address(to.bytes) + to.offset(row, column);
    static_assert(STEP % 8 == 0, "rows whose vectors are exchanged alike");
#pragma unroll
    for (int i = 0; i < ROWS / STEP; ++i) {
        const bool there = row + i * STEP < rows;
        copy_16_async(place + i * STEP * 2 * PART_COLUMNS, from, there);
        from += STEP * row_stride;
    }
}

// What of M = C B^T decay dt is the left factor of a product over the steps from `column` on.
template <bool ON_DIAGONAL>
__device__ __forceinline__ void set_mask(Fragment<MADE>& to, const float (&low)[4],
                                         const float (&high)[4], const Steps& steps,
                                         const Moment (&later)[2], int row, int column,
                                         float skip, int lane) {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float(&products)[4] = half ? high : low;
        const int s = column + 8 * half + 2 * q;
        Moment from[2];
        moments_of(from, steps, s);
        const float2 dt = pair_at(steps.dt, s);
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            const int t = row + 8 * down + g;
            float pair[2] = {
                decayed<ON_DIAGONAL>(products[2 * down] * dt.x, from[0], later[down], s <= t),
                decayed<ON_DIAGONAL>(products[2 * down + 1] * dt.y, from[1], later[down], s < t)};
            if constexpr (ON_DIAGONAL && D_IN_MASK) {
                pair[0] += s == t ? skip : 0.0f;
                pair[1] += s + 1 == t ? skip : 0.0f;
            }
            to.set(2 * half + down, pair[0], pair[1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS) ssd_forward_warpgroups(
    const NUMBER* x, const void* dt, const void* A, const NUMBER* B, const NUMBER* C, const void* D,
    const NUMBER* z, const void* bias, const int* seq_idx, const float* first, NUMBER* out,
    float* last, long long option_bits, long long low_bits, long long high_bits, long long seqlen,
    long long heads, long long heads_of_group, long long x_batch, long long x_time, long long x_head, long long dt_batch,
    long long dt_time, long long dt_head, long long B_batch, long long B_time, long long B_group,
    long long C_batch, long long C_time, long long C_group, long long z_batch, long long z_time,
    long long z_head, long long seq_batch, long long seq_time) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const long long head = blockIdx.x, batch = blockIdx.z / SLICES, group = head / heads_of_group;
    const int slice = blockIdx.z % SLICES * SLICE;
    const int chunks = static_cast<int>((seqlen + CHUNK - 1) / CHUNK);
    const Options options{option_bits};
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            // All who copy, and the warp that makes the steps.
            shared.fetched[i].begin(GROUP + 1);
            shared.used[i].begin(2 * WARPS);
        }
        for (int i = 0; i < 2; ++i) shared.made[i].begin(WARPS), shared.taken[i].begin(WARPS);
    }
    __syncthreads();

    if (warp < WARPS) {
        leave_registers<FETCHER_REGISTERS>();
        const StepSource source(dt, A, bias, seq_idx, options, low_bits, high_bits, seqlen, batch,
                                head, dt_batch, dt_time, dt_head, seq_batch, seq_time);
        x += batch * x_batch + head * x_head + slice;
        B += batch * B_batch + group * B_group;
        C += batch * C_batch + group * C_group;
        // The warps take turns at the steps of a chunk.
        RawSteps raw;
        raw.load(source, static_cast<long long>(warp) * CHUNK, lane);
        Turn turn;
        for (int chunk = 0; chunk < chunks; ++chunk, turn.advance()) {
            const int stage = turn.stage;
            const long long start = static_cast<long long>(chunk) * CHUNK;
            const int rows = static_cast<int>(min(seqlen - start, static_cast<long long>(CHUNK)));
            shared.used[stage].wait(turn.parity ^ 1);
            fetch(shared.x[stage], x + start * x_time, x_time, rows, SLICE, threadIdx.x);
            fetch(shared.B[stage], B + start * B_time, B_time, rows, DSTATE, threadIdx.x);
            fetch(shared.C[stage], C + start * C_time, C_time, rows, DSTATE, threadIdx.x);
            shared.fetched[stage].arrive_when_copied();
            if (chunk % WARPS == warp) {
                raw.finish(shared.steps[stage], source, start, lane);
#if MADE == 2
                Pair<MADE> weights;
                weights.pack(shared.steps[stage].to_end[2 * lane],
                             shared.steps[stage].to_end[2 * lane + 1]);
                for (int i = 0; i < MADE; ++i)
                    shared.weights[stage][i][lane] = weights.words[i];
#endif
                shared.fetched[stage].arrive_as_warp(lane);
                raw.load(source, start + WARPS * CHUNK, lane);
            }
        }
        commit_copies();
        wait_for_copies<0>();
        return;
    }

    const int role = warp / WARPS;
    Turn turn;
    if (role == 1) {
        take_registers<STATE_REGISTERS>();
        const int row = warp % WARPS * 16;
        constexpr long long size = HEADDIM * DSTATE;
        const long long of_head = batch * heads + head;
        State state;
        state.clear();
        const auto add_chunk = [&](const Turn& turn) {
            const int stage = turn.stage;
            shared.fetched[stage].wait(turn.parity);
            show_to_products();
            Fragment<> given[4];
            Fragment<MADE> columns[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                shared.x[stage].load_transposed(given[k].words[0], 16 * k, row, lane);
#if MADE == 2
                weigh(columns[k], given[k], shared.weights[stage], 16 * k, lane);
#else
                columns[k] = scaled_steps(given[k], shared.steps[stage].to_end, 16 * k, lane);
#endif
            }
            state.scale(shared.steps[stage].decay_of_chunk());
            begin_products();
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
                for (int piece = 0; piece < MADE; ++piece) {
                    const unsigned(&words)[4] = columns[k].words[piece];
                    add_groups(state.numbers, words[0], words[2], words[1], words[3],
                               shared.B[stage].summed_rows(16 * k), NUMBER{});
                }
            commit_products();
            wait_for_products<0>();
            settle(state.numbers);
            shared.used[stage].arrive_as_warp(lane);
        };
        if (first) state.load(first + of_head * size + slice * DSTATE, row, SLICE, lane);
        // For the products of a warpgroup.
        const auto keep_state = [&](int of) {
            Exchanged<SLICE, STATES>(&h)[MADE] = shared.h[of];
#pragma unroll
            for (int j = 0; j < STATES / 8; j += 2) {
                Fragment<MADE> made;
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    made.set(i, state.numbers[j + i / 2][2 * (i % 2)],
                             state.numbers[j + i / 2][2 * (i % 2) + 1]);
#pragma unroll
                for (int piece = 0; piece < MADE; ++piece)
                    h[piece].store(made.words[piece], row, 8 * j, lane);
            }
            show_to_products();
            shared.made[of].arrive_as_warp(lane);
        };
        keep_state(0);
        for (int chunk = 0; chunk < chunks; ++chunk, turn.advance()) {
            add_chunk(turn);
            if (chunk + 1 == chunks) break;
            const int next = (chunk + 1) % 2;
            shared.taken[next].wait((chunk + 1) / 2 % 2 ^ 1);
            keep_state(next);
        }
        if (last)
            state.store(last + of_head * size + slice * DSTATE, row, SLICE, lane);
        return;
    }

    take_registers<OUTPUT_REGISTERS>();
    const int member = role - 2, g = lane / 4, q = lane % 4;
    // The later a row, the more it sees: the other's first rows are with this one's last.
    const int row = (member ? WARPS - 1 - warp % WARPS : warp % WARPS) * 16;
    if (HAS_Z) z += batch * z_batch + head * z_head + slice;
    out += ((batch * seqlen) * heads + head) * HEADDIM + slice;
    const long long out_time = heads * HEADDIM;
    const float skip_of_head = HAS_D == 1 ? number_at(D, head, options.D()) : 0.0f;
    turn.advance(member);
    for (int chunk = member; chunk < chunks; chunk += 2, turn.advance(2)) {
        const int stage = turn.stage;
        const long long start = static_cast<long long>(chunk) * CHUNK;
        const Steps& steps = shared.steps[stage];
        const Exchanged<CHUNK, SLICE>& x_tile = shared.x[stage];
        shared.fetched[stage].wait(turn.parity);
        show_to_products();
        Fragment<> left[STATES / 16];
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
            shared.C[stage].load(left[k].words[0], row, 16 * k, lane);
        float products[8][4];
        begin_products();
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
            multiply_groups(products, left[k].words[0], shared.B[stage].summed_columns(16 * k),
                            k > 0, NUMBER{});
        commit_products();
        shared.made[member].wait(chunk / 2 % 2);
        float y[8][4];
        begin_products();
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
#pragma unroll
            for (int piece = 0; piece < MADE; ++piece)
                multiply_groups(y, left[k].words[0],
                                shared.h[member][piece].summed_columns(16 * k), k + piece > 0,
                                NUMBER{});
        commit_products();
        wait_for_products<1>();
        settle(products);
        Fragment<MADE> mask[4];
        const Moment later[2] = {moment_of(steps, row + g), moment_of(steps, row + g + 8)};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (16 * k < row)
                set_mask<false>(mask[k], products[2 * k], products[2 * k + 1], steps, later, row,
                                16 * k, skip_of_head, lane);
            else if (16 * k == row)
                set_mask<true>(mask[k], products[2 * k], products[2 * k + 1], steps, later, row,
                               16 * k, skip_of_head, lane);
            else
                mask[k] = {};
        }
        const float since[2] = {steps.since_start[row + g], steps.since_start[row + g + 8]};
        wait_for_products<0>();
        settle(y);
        shared.taken[member].arrive_as_warp(lane);
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) y[j][i] *= since[i / 2];
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int piece = 0; piece < MADE; ++piece) {
                const unsigned(&words)[4] = mask[k].words[piece];
                add_groups(y, words[0], words[1], words[2], words[3], x_tile.summed_rows(16 * k),
                           NUMBER{});
            }
        commit_products();
        wait_for_products<0>();
        settle(y);
        if constexpr (HAS_D && !D_IN_MASK) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int p = 8 * j + 2 * q;
                float skip[2] = {skip_of_head, skip_of_head};
                if constexpr (HAS_D == 2) {
                    const long long of_D = head * HEADDIM + slice + p;
                    skip[0] = number_at(D, of_D, options.D());
                    skip[1] = number_at(D, of_D + 1, options.D());
                }
#pragma unroll
                for (int down = 0; down < 2; ++down) {
                    const unsigned word = x_tile.word(row + 8 * down + g, p);
                    y[j][2 * down] += skip[0] * low_half(word);
                    y[j][2 * down + 1] += skip[1] * high_half(word);
                }
            }
        }
        shared.used[stage].arrive_as_warp(lane);
        NUMBER* row_out = out + start * out_time;
        const NUMBER* row_z = HAS_Z ? z + start * z_time : nullptr;
        const int rows = static_cast<int>(min(seqlen - start, static_cast<long long>(CHUNK)));
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            const int t = row + 8 * down + g;
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float pairs[2][2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    pairs[half][0] = y[j + half][2 * down];
                    pairs[half][1] = y[j + half][2 * down + 1];
                    if constexpr (HAS_Z) {
                        Packed<NUMBER, 2> packed;
                        if (t < rows) {
                            packed.load(row_z + t * z_time + 8 * (j + half) + 2 * q);
#pragma unroll
                            for (int i = 0; i < 2; ++i)
                                pairs[half][i] *= packed.number(i) * sigmoid(packed.number(i));
                        }
                    }
                }
                Packed<NUMBER, 4> packed;
                const int p = 8 * j + gathered(packed, pairs[0], pairs[1], lane);
                if (t < rows) packed.store(row_out + t * out_time + p);
            }
        }
    }
}
