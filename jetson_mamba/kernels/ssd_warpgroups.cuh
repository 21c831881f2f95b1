// What the kernels of Mamba-2's scan share whose warpgroups multiply: a block takes some heads of a
// group, a warpgroup to each, which walk along time by themselves; one more fetches what they need,
// STAGES chunks ahead, and leaves its registers to the others.
#pragma once

#include "ssd.cuh"
#include "warpgroups.cuh"

constexpr int GROUP = 128;
constexpr int FETCHERS = 128;
constexpr int BLOCK_THREADS = HEADS * GROUP + FETCHERS;
// Of a thread: what all have at first is shared out anew. Who asks for more than is left waits forever.
constexpr int FETCHER_REGISTERS = 56, REGISTERS = 224;
static_assert(HEADS * GROUP * REGISTERS + FETCHERS * FETCHER_REGISTERS <=
              65536 / BLOCK_THREADS / 8 * 8 * BLOCK_THREADS);
static_assert(CHUNK == 64 && SLICE == 64 && GIVEN == 1 && ALIGNED, "as the tiles are");
static_assert(STATES == 64 || STATES == 128, "parts of 64 columns");

// Numbers of barriers: of what has been fetched for a head, what it has done with, of its warps.
__device__ __forceinline__ int fetched(int head, int stage) { return 1 + head * STAGES + stage; }
__device__ __forceinline__ int used(int head, int stage) {
    return 1 + (HEADS + head) * STAGES + stage;
}
__device__ __forceinline__ int own(int head) { return 1 + 2 * HEADS * STAGES + head; }
static_assert(1 + 2 * HEADS * STAGES + HEADS <= 16, "a block has sixteen barriers");

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void fetch(Exchanged<ROWS, COLUMNS>& to, const NUMBER* from,
                                      long long row_stride, int rows, int columns, int thread) {
    constexpr int VECTORS = COLUMNS / 8, STEP = FETCHERS / VECTORS;
    const int row = thread / VECTORS, column = thread % VECTORS * 8;
    if (column >= columns) rows = 0;
    from += row * row_stride + column;
    const unsigned place = shared_address(to.bytes);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; ++i) {
        const bool there = row + i * STEP < rows;
        copy_16_async(place + to.offset(row + i * STEP, column), from, there);
        from += STEP * row_stride;
    }
}

// Says that a stage is there, to those who wait for it, and then show it to their products.
__device__ __forceinline__ void give(int heads, int stage) {
    for (int j = 0; j < heads; ++j) arrive_at<GROUP + FETCHERS>(fetched(j, stage));
}

// Which heads are a block's. Of each group `full` blocks take HEADS heads; the others, which come last,
// one. A unit is a group of a batch and slice.
struct Work {
    int count, slice;
    long long batch, group, first_head;

    __device__ __forceinline__ Work(long long block, long long full, long long heads_of_group,
                                    long long units_of_batch, long long batches) {
        const long long groups = units_of_batch / SLICES, units = units_of_batch * batches;
        const bool is_full = block < units * full;
        const long long number = is_full ? block : block - units * full;
        const long long in_unit = is_full ? full : heads_of_group - HEADS * full;
        const long long unit = number / in_unit, member = number % in_unit;
        count = is_full ? HEADS : 1;
        batch = unit / units_of_batch;
        slice = static_cast<int>(unit % units_of_batch / groups) * SLICE;
        group = unit % groups;
        first_head = group * heads_of_group + (is_full ? HEADS * member : HEADS * full + member);
    }
};

// state = d state + (x w)^T B, a warpgroup's work; `decay` becomes d times what it was. Of the chunk, d is
// its decay, w by direction what is left of a step at its end or of its start at a step.
__device__ __forceinline__ void add_chunk(State& state, float& decay, const Steps& steps,
                                          const Exchanged<CHUNK, STATES>& B,
                                          const Exchanged<CHUNK, SLICE>& x, int direction, int row,
                                          int lane) {
    Fragment<MADE> columns[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        Fragment<> numbers;
        x.load_transposed(numbers.words[0], 16 * k, row, lane);
        columns[k] = scaled_steps(numbers, direction ? steps.since_start : steps.to_end, 16 * k,
                                  lane);
    }
    const float of_chunk = steps.decay_of_chunk();
    decay *= of_chunk;
    state.scale(of_chunk);
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int piece = 0; piece < MADE; ++piece) {
            const unsigned(&words)[4] = columns[k].words[piece];
            add_groups(state.numbers, words[0], words[2], words[1], words[3],
                       B.summed_rows(16 * k), NUMBER{});
        }
    commit_products();
    wait_for_products<0>();
    settle(state.numbers);
}
