// What both kernels share that are for time that is contiguous: rows in vectors of 16 bytes.
//
// Further definitions: ALIGNED (rows are whole vectors at multiples of 16 bytes), BLOCKS.
#pragma once
#include "causal_conv1d.cuh"

constexpr int N = 16 / sizeof(INPUT);
using Chunk = Packed<INPUT, N>;
constexpr unsigned ALL = 0xffffffffu;
// The words that hold the last HALO numbers of a vector.
constexpr int EDGE_WORDS = (HALO * sizeof(INPUT) + 3) / 4;

__device__ __forceinline__ void load_chunk(Chunk& chunk, const INPUT* row, int t, int length) {
    if (!ALIGNED)
        chunk.load_some(row + t, t < 0 ? 0 : length - t);
    else if (t >= 0 && t < length)
        chunk.load(row + t);
    else
        chunk = Chunk{};
}
