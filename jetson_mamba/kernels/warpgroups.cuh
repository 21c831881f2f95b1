// Products of matrices by a warpgroup (wgmma of sm_90a): four warps, sixteen rows each, of whose
// factors one or both are read from shared memory.
//
// A matrix in shared memory is made of parts of 64 columns: rows of 128 bytes, in each of which the
// places of the eight vectors of 16 bytes are exchanged by the row's number (as the instruction has
// it, "128-byte swizzling"). A part begins at a multiple of 1024 bytes. What its columns are to a
// product is said when it is used: the axis that is summed over, or the other.
#pragma once

#include "wgmma.cuh"

constexpr int PART_COLUMNS = 64;

// ROWS by COLUMNS numbers of 16 bits.
template <int ROWS, int COLUMNS>
struct alignas(1024) Exchanged {
    static constexpr int part = ROWS * 2 * PART_COLUMNS;
    unsigned char bytes[COLUMNS / PART_COLUMNS * part];

    // Where a vector of eight numbers lies.
    static __device__ __forceinline__ int offset(int row, int column) {
        return column / PART_COLUMNS * part + row * 2 * PART_COLUMNS +
               ((column % PART_COLUMNS / 8) ^ (row % 8)) * 16 + column % 8 * 2;
    }
    __device__ __forceinline__ unsigned word(int row, int column) const {
        return *reinterpret_cast<const unsigned*>(bytes + offset(row, column));
    }
    __device__ __forceinline__ void set_word(int row, int column, unsigned word) {
        *reinterpret_cast<unsigned*>(bytes + offset(row, column)) = word;
    }
    // Sixteen by sixteen numbers, transposed, as `load_transposed` of a fragment has them.
    __device__ __forceinline__ void load_transposed(unsigned (&to)[4], int row, int column,
                                                    int lane) const {
        load_matrices_transposed(
            to, shared_address(bytes) + offset(row + lane % 16, column + lane / 16 * 8));
    }
    // Sixteen by sixteen numbers as they are the left factor of a product, of sixteen rows a warp.
    __device__ __forceinline__ void load(unsigned (&to)[4], int row, int column, int lane) const {
        load_matrices(to,
                      shared_address(bytes) + offset(row + lane % 16, column + lane / 16 * 8));
    }
    // Stores what `load` reads.
    __device__ __forceinline__ void store(const unsigned (&from)[4], int row, int column, int lane) {
        store_matrices(shared_address(bytes) + offset(row + lane % 16, column + lane / 16 * 8),
                       from);
    }
    // What a product is told of sixteen columns from `column` on, over which it sums ...
    __device__ __forceinline__ unsigned long long summed_columns(int column) const {
        return described(column / PART_COLUMNS * part + column % PART_COLUMNS * 2, 16,
                         8 * 2 * PART_COLUMNS);
    }
    // ... and of sixteen rows from `row` on, over which it sums; all columns are those of the result.
    __device__ __forceinline__ unsigned long long summed_rows(int row) const {
        return described(row * 2 * PART_COLUMNS, part, 8 * 2 * PART_COLUMNS);
    }

   private:
    // One sum of what is known only now, and a constant: a product waits for what describes it.
    __device__ __forceinline__ unsigned long long described(int offset, int leading,
                                                            int stride) const {
        const unsigned low = (shared_address(bytes) >> 4) + ((offset >> 4) + (leading >> 4 << 16));
        const unsigned high = stride >> 4 | 1u << 30;
        return static_cast<unsigned long long>(high) << 32 | low;
    }
};
