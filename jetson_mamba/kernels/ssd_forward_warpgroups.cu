// Mamba-2's scan as ssd_forward.cu has it, for GPUs with products of warpgroups: a block to some heads
// of a group, which share B and C, a warpgroup to each, and 64 channels of these.
//
// A warpgroup walks along time by itself, with the state in registers. Of each chunk of 64 steps it
// makes C B^T, whose numbers, as they have decayed, are the left factor of M x where they lie; y =
// C h, for which h goes to shared memory in 16 bits; and (x dt decay_to_end)^T B, whose left factor
// comes from registers too. One more warpgroup fetches what is needed, STAGES chunks ahead, and leaves
// its registers to the others.
#include "ssd_warpgroups.cuh"

struct Shared {
    Exchanged<CHUNK, STATES> C[STAGES];
    Exchanged<CHUNK, STATES> B[STAGES];
    Exchanged<CHUNK, SLICE> x[HEADS][STAGES];
    Exchanged<SLICE, STATES> h[HEADS][MADE];
    Steps steps[HEADS][STAGES];
};
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

// What of M = C B^T decay dt is the left factor of a product over the steps from `column` on.
template <bool ON_DIAGONAL>
__device__ __forceinline__ void set_mask(Fragment<MADE>& to, const float (&low)[4],
                                         const float (&high)[4], const Steps& steps,
                                         const Moment (&later)[2], int row, int column, int lane) {
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
            to.set(2 * half + down,
                   decayed<ON_DIAGONAL>(products[2 * down] * dt.x, from[0], later[down], s <= t),
                   decayed<ON_DIAGONAL>(products[2 * down + 1] * dt.y, from[1], later[down],
                                        s < t));
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS) ssd_forward_warpgroups(
    const NUMBER* x, const void* dt, const void* A, const NUMBER* B, const NUMBER* C, const void* D,
    const NUMBER* z, const void* bias, const int* seq_idx, const float* first, NUMBER* out,
    float* last, long long option_bits, long long low_bits, long long high_bits, long long seqlen,
    long long heads, long long heads_of_group, long long segment, long long segments,
    long long x_batch, long long x_time, long long x_head, long long dt_batch, long long dt_time,
    long long dt_head, long long B_batch, long long B_time, long long B_group, long long C_batch,
    long long C_time, long long C_group, long long z_batch, long long z_time, long long z_head,
    long long seq_batch, long long seq_time, long long full, long long units_of_batch,
    long long batches) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const Work work(blockIdx.x, full, heads_of_group, units_of_batch, batches);
    const int count = work.count, slice = work.slice;
    const long long batch = work.batch, group = work.group, first_head = work.first_head;
    const long long begin = blockIdx.y * segment * CHUNK;
    const long long end = min(seqlen, begin + segment * CHUNK);
    const Options options{option_bits};

    if (warp < FETCHERS / 32) {
        leave_registers<FETCHER_REGISTERS>();
        const int number = warp;
        const long long head = first_head + min(number, count - 1);
        const StepSource source(dt, A, bias, seq_idx, options, low_bits, high_bits, seqlen, batch,
                                head, dt_batch, dt_time, dt_head, seq_batch, seq_time);
        x += batch * x_batch + first_head * x_head + slice;
        B += batch * B_batch + group * B_group;
        C += batch * C_batch + group * C_group;
        // Read two chunks ahead.
        RawSteps raw, next;
        raw.load(source, begin, lane);
        next.load(source, begin + CHUNK, lane);
        int stage = 0, before = 0;
        bool again = false;
        for (long long start = begin; start < end; start += CHUNK) {
            if (again)
                for (int j = 0; j < count; ++j) meet_at<GROUP + FETCHERS>(used(j, stage));
            const int rows = static_cast<int>(min(end - start, static_cast<long long>(CHUNK)));
            fetch(shared.C[stage], C + start * C_time, C_time, rows, DSTATE, threadIdx.x);
            fetch(shared.B[stage], B + start * B_time, B_time, rows, DSTATE, threadIdx.x);
            for (int j = 0; j < count; ++j)
                fetch(shared.x[j][stage], x + start * x_time + j * x_head, x_time, rows, SLICE,
                      threadIdx.x);
            commit_copies();
            if (number < count) raw.finish(shared.steps[number][stage], source, start, lane);
            if (start > begin) wait_for_copies<1>(), give(count, before);
            raw = next;
            if (number < count) next.load(source, start + 2 * CHUNK, lane);
            before = stage;
            if (++stage == STAGES) stage = 0, again = true;
        }
        wait_for_copies<0>();
        give(count, before);
        return;
    }

    take_registers<REGISTERS>();
    const int member = warp / 4 - 1, row = warp % 4 * 16;
    if (member >= count) return;
    const int g = lane / 4, q = lane % 4;
    const long long head = first_head + member;
    if (HAS_Z) z += batch * z_batch + head * z_head + slice;
    out += ((batch * seqlen) * heads + head) * HEADDIM + slice;
    const long long out_time = heads * HEADDIM;
    const float skip_of_head = HAS_D == 1 ? number_at(D, head, options.D()) : 0.0f;

    State state;
    const long long place = (batch * heads + head) * segments + blockIdx.y;
    if (first)
        state.load(first + (place * HEADDIM + slice) * DSTATE, row, SLICE, lane);
    else
        state.clear();

    Exchanged<SLICE, STATES>(&h)[MADE] = shared.h[member];
    const auto keep_state = [&] {
#pragma unroll
        for (int j = 0; j < STATES / 8; ++j)
#pragma unroll
            for (int down = 0; down < 2; ++down) {
                Pair<MADE> pair;
                pair.pack(state.numbers[j][2 * down], state.numbers[j][2 * down + 1]);
#pragma unroll
                for (int piece = 0; piece < MADE; ++piece)
                    h[piece].set_word(row + 8 * down + g, 8 * j + 2 * q, pair.words[piece]);
            }
    };
    keep_state();

    int stage = 0;
    for (long long start = begin; start < end; start += CHUNK) {
        const Steps& steps = shared.steps[member][stage];
        const Exchanged<CHUNK, STATES>&C_tile = shared.C[stage], &B_tile = shared.B[stage];
        const Exchanged<CHUNK, SLICE>& x_tile = shared.x[member][stage];

        meet_at<GROUP + FETCHERS>(fetched(member, stage));
        show_to_products();
        meet_at<GROUP>(own(member));
        state.scale(steps.decay_of_chunk());
        float products[8][4];
        begin_products();
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
            multiply_groups(products, C_tile.summed_columns(16 * k), B_tile.summed_columns(16 * k),
                            k > 0, NUMBER{});
        commit_products();
        float y[8][4];
        begin_products();
#pragma unroll
        for (int k = 0; k < STATES / 16; ++k)
#pragma unroll
            for (int piece = 0; piece < MADE; ++piece)
                multiply_groups(y, C_tile.summed_columns(16 * k), h[piece].summed_columns(16 * k),
                                k + piece > 0, NUMBER{});
        commit_products();

        Fragment<MADE> columns[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            Fragment<> given;
            x_tile.load_transposed(given.words[0], 16 * k, row, lane);
            columns[k] = scaled_steps(given, steps.to_end, 16 * k, lane);
        }
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int piece = 0; piece < MADE; ++piece) {
                const unsigned(&words)[4] = columns[k].words[piece];
                add_groups(state.numbers, words[0], words[2], words[1], words[3],
                           B_tile.summed_rows(16 * k), NUMBER{});
            }
        commit_products();

        wait_for_products<2>();
        settle(products);
        Fragment<MADE> mask[4];
        const Moment later[2] = {moment_of(steps, row + g), moment_of(steps, row + g + 8)};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (16 * k < row)
                set_mask<false>(mask[k], products[2 * k], products[2 * k + 1], steps, later, row,
                                16 * k, lane);
            else if (16 * k == row)
                set_mask<true>(mask[k], products[2 * k], products[2 * k + 1], steps, later, row,
                               16 * k, lane);
            else
                mask[k] = {};
        }
        wait_for_products<1>();
        settle(y);
        const float since[2] = {steps.since_start[row + g], steps.since_start[row + g + 8]};
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

        // The state is ready; all warps have read the one before.
        wait_for_products<1>();
        settle(state.numbers);
        meet_at<GROUP>(own(member));
        keep_state();
        wait_for_products<0>();
        settle(y);
        NUMBER* row_out = out + start * out_time;
        const NUMBER* row_z = HAS_Z ? z + start * z_time : nullptr;
        const int left = static_cast<int>(min(end - start, static_cast<long long>(CHUNK)));
#pragma unroll
        for (int down = 0; down < 2; ++down) {
            const int t = row + 8 * down + g;
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float pairs[2][2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int p = 8 * (j + half) + 2 * q;
                    pairs[half][0] = y[j + half][2 * down];
                    pairs[half][1] = y[j + half][2 * down + 1];
                    if constexpr (HAS_D) {
                        const unsigned word = x_tile.word(t, p);
                        float skip[2] = {skip_of_head, skip_of_head};
                        if constexpr (HAS_D == 2) {
                            const long long of_D = head * HEADDIM + slice + p;
                            skip[0] = number_at(D, of_D, options.D());
                            skip[1] = number_at(D, of_D + 1, options.D());
                        }
                        pairs[half][0] += skip[0] * low_half(word);
                        pairs[half][1] += skip[1] * high_half(word);
                    }
                    if constexpr (HAS_Z) {
                        Packed<NUMBER, 2> packed;
                        if (t < left) {
                            packed.load(row_z + t * z_time + p);
#pragma unroll
                            for (int i = 0; i < 2; ++i)
                                pairs[half][i] *= packed.number(i) * sigmoid(packed.number(i));
                        }
                    }
                }
                Packed<NUMBER, 4> packed;
                const int p = 8 * j + gathered(packed, pairs[0], pairs[1], lane);
                if (t < left) packed.store(row_out + t * out_time + p);
            }
        }
        if (start + STAGES * CHUNK < end) arrive_at<GROUP + FETCHERS>(used(member, stage));
        if (++stage == STAGES) stage = 0;
    }
    if (last && blockIdx.y == segments - 1)
        state.store(last + ((batch * heads + head) * HEADDIM + slice) * DSTATE, row, SLICE, lane);
}
