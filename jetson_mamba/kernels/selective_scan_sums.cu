// The last step of the selective scan's backward pass: adds what its blocks wrote, in order.
#include "selective_scan.cuh"

constexpr int MATRICES = !CONSTANT_B + !CONSTANT_C;
constexpr int ROW = MATRICES * WIDTH;             // floats of one step
constexpr int COLUMNS = least(32, ROW);           // floats and steps that a block adds
constexpr int STEPS = 32;
constexpr int QUADS = most(1, COLUMNS / 4);       // threads that add one step

constexpr int SUM_THREADS = STEPS * QUADS;
constexpr int COLUMN_BLOCKS = most(1, ROW / most(1, COLUMNS));

// Sums of STEPS steps and COLUMNS columns over the slots, and their place in dB or dC.
__device__ __forceinline__ void add_slots(const float* sums, number* dB, number* dC, int slots,
                                          long long seqlen, long long step, int columns,
                                          long long group) {
    __shared__ float tile[STEPS][COLUMNS + 1];
    const int quad = threadIdx.x % QUADS, row = threadIdx.x / QUADS;
    const long long stride = seqlen * ROW;
    if (step + row < seqlen) {
        const float* source =
            sums + group * slots * stride + (step + row) * ROW + columns * COLUMNS + quad * 4;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (int slot = 0; slot < slots; ++slot) {
            const float4 more = __ldg(reinterpret_cast<const float4*>(source + slot * stride));
            sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
        }
        tile[row][quad * 4] = sum.x, tile[row][quad * 4 + 1] = sum.y;
        tile[row][quad * 4 + 2] = sum.z, tile[row][quad * 4 + 3] = sum.w;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < STEPS * COLUMNS; i += SUM_THREADS) {
        // Consecutive threads take the components of a step, then steps: rows of dB and dC.
        const int component = i % COMPONENTS, along = i / COMPONENTS % STEPS;
        const int column = i / (COMPONENTS * STEPS) * COMPONENTS + component;
        const int value = columns * COLUMNS + column;
        const int matrix = value / WIDTH, n = value % WIDTH / COMPONENTS;
        if (step + along < seqlen && n < DSTATE) {
            number* target = CONSTANT_B || matrix == 1 ? dC : dB;
            target[((group * DSTATE + n) * seqlen + step + along) * COMPONENTS + component] =
                from_float<number>(tile[along][column]);
        }
    }
}

// sums (batch * groups, slots, seqlen, MATRICES, WIDTH) to dB and dC (batch * groups, DSTATE,
// seqlen * COMPONENTS), and weights (rows, width) to one row, `total`.
//
// Grid: `sum_blocks`, for groups, columns and, fastest, steps, then those for the width.
extern "C" __global__ void __launch_bounds__(SUM_THREADS, 1)
    selective_scan_sums(const float* sums, number* dB, number* dC, const float* weights,
                        float* total, long long sum_blocks, long long slots, long long seqlen,
                        long long rows, long long width) {
    wait_for_the_kernel_before();
    if (MATRICES && blockIdx.x < sum_blocks) {
        const unsigned step_blocks = (seqlen + STEPS - 1) / STEPS;
        const unsigned others = blockIdx.x / step_blocks;
        const long long step = static_cast<long long>(blockIdx.x % step_blocks) * STEPS;
        add_slots(sums, dB, dC, slots, seqlen, step, others % COLUMN_BLOCKS,
                  others / COLUMN_BLOCKS);
        return;
    }
    const long long column = (blockIdx.x - sum_blocks) * SUM_THREADS + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int row = 0; row < rows; ++row) sum += __ldg(weights + row * width + column);
    total[column] = sum;
}
