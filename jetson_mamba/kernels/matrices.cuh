// Small matrices for the tensor cores: how 16 by 16 numbers get from shared memory into registers
// (ldmatrix), are multiplied (mma.sync m16n8k16), and how fp32 numbers are split in two of 16 bits.
//
// Of four 8 by 8 matrices that one ldmatrix reads out of a tile at (row, column), register 0 has
// the rows from `row`, register 1 those 8 further down, 2 and 3 the same 8 columns to the right.
// Thread 4 g + q holds of each matrix [g][2 q] and [g][2 q + 1]; transposed, [2 q][g] and
// [2 q + 1][g]. What a product takes follows:
//
//   a(m, k) from a tile [m][k]              registers 0 1 2 3
//   a(m, k) from a tile [k][m], transposed  registers 0 2 1 3
//   b(k, n) from a tile [n][k]              registers 0 2 for n < 8, 1 3 for the others
//   b(k, n) from a tile [k][n], transposed  registers 0 1 for n < 8, 2 3 for the others
//
// and of a product c(m, n), thread 4 g + q has [g][2 q], [g][2 q + 1], [g + 8][2 q] and
// [g + 8][2 q + 1].
#pragma once

#include "numbers.cuh"

// Where something lies in shared memory.
__device__ __forceinline__ unsigned shared_address(const void* place) {
    return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// `row` is the address of the row that the lane names: lanes 0 to 7 name those of the first matrix.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
}

// c += a b, the sums in fp32.
__device__ __forceinline__ void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2,
                                             unsigned a3, unsigned b0, unsigned b1, bfloat16_t) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2,
                                             unsigned a3, unsigned b0, unsigned b1, half_t) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two numbers of 16 bits in a word, the first in its low half.
__device__ __forceinline__ unsigned packed_pair(float low, float high, bfloat16_t) {
    unsigned result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
__device__ __forceinline__ unsigned packed_pair(float low, float high, half_t) {
    unsigned result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

// 16 bytes to shared memory without a register; zeros where `there` is false.
__device__ __forceinline__ void copy_16_async(unsigned shared, const void* global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared), "l"(global), "r"(there ? 16 : 0)
                 : "memory");
}

// A barrier of the first COUNT threads of a block.
template <int COUNT>
__device__ __forceinline__ void meet_first() {
    asm volatile("bar.sync 1, %0;" : : "n"(COUNT) : "memory");
}
