// The last step of the selective scan's backward pass: adds what its blocks wrote, in order.
#include "selective_scan.cuh"

constexpr int MATRICES = !CONSTANT_B + !CONSTANT_C;
constexpr int ROW = MATRICES * WIDTH;             // floats of one step
constexpr int COLUMNS = least(32, ROW);           // floats and steps that a block adds
constexpr int STEPS = 32;
constexpr int QUADS = most(1, COLUMNS / 4);       // threads that add one step

extern "C" {

// sums (batch * groups, slots, seqlen, MATRICES, WIDTH) to dB and dC (batch * groups, DSTATE,
// seqlen * COMPONENTS). Grid: (seqlen / STEPS, ROW / COLUMNS, batch * groups), STEPS * QUADS
// threads.
__global__ void __launch_bounds__(STEPS* QUADS)
    selective_scan_sums(const float* sums, number* dB, number* dC, long long slots,
                        long long seqlen) {
    __shared__ float tile[STEPS][COLUMNS + 1];
    const int quad = threadIdx.x % QUADS, row = threadIdx.x / QUADS;
    const long long step = static_cast<long long>(blockIdx.x) * STEPS;
    const long long stride = seqlen * ROW;
    if (step + row < seqlen) {
        const float* source = sums + blockIdx.z * slots * stride + (step + row) * ROW +
                              blockIdx.y * COLUMNS + quad * 4;
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
    for (int i = threadIdx.x; i < STEPS * COLUMNS; i += STEPS * QUADS) {
        // Consecutive threads take the components of a step, then steps: rows of dB and dC.
        const int component = i % COMPONENTS, along = i / COMPONENTS % STEPS;
        const int column = i / (COMPONENTS * STEPS) * COMPONENTS + component;
        const int value = blockIdx.y * COLUMNS + column;
        const int matrix = value / WIDTH, n = value % WIDTH / COMPONENTS;
        if (step + along < seqlen && n < DSTATE) {
            number* target = CONSTANT_B || matrix == 1 ? dC : dB;
            target[((blockIdx.z * static_cast<long long>(DSTATE) + n) * seqlen + step + along) *
                       COMPONENTS +
                   component] = from_float<number>(tile[along][column]);
        }
    }
}

// weights (rows, width) to one row.
__global__ void __launch_bounds__(256)
    selective_scan_weights(const float* weights, float* result, long long rows, long long width) {
    const long long column = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int row = 0; row < rows; ++row) sum += __ldg(weights + row * width + column);
    result[column] = sum;
}
}
