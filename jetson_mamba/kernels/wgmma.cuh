// The instructions by which a warpgroup multiplies matrices (wgmma), sm_90a alone, and the numbered
// barriers at which warps meet. What lies where is told in warpgroups.cuh.
//
// An instruction returns before its work is done: what it reads and writes is left alone until the
// thread has waited for it.
#pragma once

#include "matrices.cuh"

__device__ __forceinline__ void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}
__device__ __forceinline__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}
// Waits for all but the last COUNT of what was committed.
template <int COUNT>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(COUNT) : "memory");
}
// After it has been waited for: what is made of these numbers is not made before.
template <int COUNT>
__device__ __forceinline__ void settle(float (&c)[COUNT][4]) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j)
        asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3]) : : "memory");
}
// What this thread wrote to shared memory is seen by products that follow a barrier.
__device__ __forceinline__ void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// Registers of a thread, which a whole warpgroup leaves, or takes when they have been left.
template <int COUNT>
__device__ __forceinline__ void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(COUNT));
}

// COUNT threads take part in a barrier of a number: those that wait, and those that go on.
template <int COUNT>
__device__ __forceinline__ void meet_at(int number) {
    asm volatile("bar.sync %0, %1;" : : "r"(number), "n"(COUNT) : "memory");
}
template <int COUNT>
__device__ __forceinline__ void arrive_at(int number) {
    asm volatile("bar.arrive %0, %1;" : : "r"(number), "n"(COUNT) : "memory");
}

// What load_matrices reads, the other way: `row` is the address of the row that the lane names.
__device__ __forceinline__ void store_matrices(unsigned row, const unsigned (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(row), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}

// a b + c of two pairs of numbers, rounded once.
__device__ __forceinline__ unsigned fused(unsigned a, unsigned b, unsigned c, bfloat16_t) {
    unsigned result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

#define FOUR_NUMBERS(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define EIGHT_TIMES_FOUR(c, j) \
    FOUR_NUMBERS(c, j), FOUR_NUMBERS(c, j + 1), FOUR_NUMBERS(c, j + 2), FOUR_NUMBERS(c, j + 3), \
        FOUR_NUMBERS(c, j + 4), FOUR_NUMBERS(c, j + 5), FOUR_NUMBERS(c, j + 6), FOUR_NUMBERS(c, j + 7)
#define REGISTERS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 \
    REGISTERS_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Of both dtypes: c (64 by 64) = a b, or c += a b, for factors in shared memory that are summed over
// columns, or for a in registers and such a b; c += a b for a in registers and b that is summed over
// rows, c 64 by 64 and 64 by 128.
#define PRODUCTS(KIND, ELEMENT)                                                                    \
    __device__ __forceinline__ void multiply_groups(float(&c)[8][4], unsigned long long a,         \
                                                    unsigned long long b, bool add, ELEMENT) {     \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; "                                      \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." KIND "." KIND " {" REGISTERS_32 \
                     "}, %32, %33, p, 1, 1, 0, 0;}"                                                \
                     : EIGHT_TIMES_FOUR(c, 0)                                                      \
                     : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                \
    }                                                                                              \
    __device__ __forceinline__ void multiply_groups(float(&c)[8][4], const unsigned(&a)[4],        \
                                                    unsigned long long b, bool add, ELEMENT) {     \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; "                                      \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." KIND "." KIND " {" REGISTERS_32 \
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"                                  \
                     : EIGHT_TIMES_FOUR(c, 0)                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                         \
                       "r"(static_cast<int>(add)));                                                \
    }                                                                                              \
    __device__ __forceinline__ void add_groups(float(&c)[8][4], unsigned a0, unsigned a1,          \
                                               unsigned a2, unsigned a3, unsigned long long b,     \
                                               ELEMENT) {                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." KIND "." KIND " {" REGISTERS_32 \
                     "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                   \
                     : EIGHT_TIMES_FOUR(c, 0)                                                      \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                \
    }                                                                                              \
    __device__ __forceinline__ void add_groups(float(&c)[16][4], unsigned a0, unsigned a1,         \
                                               unsigned a2, unsigned a3, unsigned long long b,     \
                                               ELEMENT) {                                          \
        asm volatile(                                                                              \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." KIND "." KIND " {" REGISTERS_64         \
            "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                            \
            : EIGHT_TIMES_FOUR(c, 0), EIGHT_TIMES_FOUR(c, 8)                                       \
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                         \
    }
PRODUCTS("bf16", bfloat16_t)
PRODUCTS("f16", half_t)
