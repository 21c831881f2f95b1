// Adds up what the blocks of ssd_backward.cu left, always in the same order: the rows of the
// weights' gradients, a block to 32 columns, and after these the slots of dC and dB.
#include "ssd.cuh"

constexpr int COLUMNS = 32, ROWS = 8;
static_assert(4 * COLUMNS * ROWS == SHARED, "the host counts shared memory otherwise");

extern "C" __global__ void __launch_bounds__(COLUMNS* ROWS) ssd_sums(
    const float* weights, float* totals, const float* slot_sums, NUMBER* dB, NUMBER* dC,
    long long rows, long long width, long long weight_blocks, long long slots, long long seqlen,
    long long groups, long long batches, long long dB_batch, long long dB_time, long long dB_group,
    long long dC_batch, long long dC_time, long long dC_group) {
    if (blockIdx.x < weight_blocks) {
        extern __shared__ uint4 memory[];
        float(*parts)[COLUMNS] = reinterpret_cast<float(*)[COLUMNS]>(memory);
        const int row = threadIdx.x / COLUMNS, lane = threadIdx.x % COLUMNS;
        const long long column = blockIdx.x * COLUMNS + lane;
        float sum = 0.0f;
        if (column < width) {
#pragma unroll 8
            for (long long i = row; i < rows; i += ROWS) sum += weights[i * width + column];
        }
        parts[row][lane] = sum;
        __syncthreads();
        if (row || column >= width) return;
#pragma unroll
        for (int i = 1; i < ROWS; ++i) sum += parts[i][lane];
        totals[column] = sum;
        return;
    }
    const long long count = batches * seqlen * groups * DSTATE;
    const long long number = (blockIdx.x - weight_blocks) * (COLUMNS * ROWS) + threadIdx.x;
    if (number >= 2 * count) return;
    const bool is_B = number >= count;
    const long long place = number - (is_B ? count : 0);
    const float* from = slot_sums + (is_B ? slots * count : 0) + place;
    float sum = 0.0f;
#pragma unroll 4
    for (long long i = 0; i < slots; ++i) sum += from[i * count];
    const long long n = place % DSTATE, group = place / DSTATE % groups;
    const long long t = place / DSTATE / groups % seqlen, batch = place / DSTATE / groups / seqlen;
    if (is_B)
        dB[batch * dB_batch + t * dB_time + group * dB_group + n] = from_float<NUMBER>(sum);
    else
        dC[batch * dC_batch + t * dC_time + group * dC_group + n] = from_float<NUMBER>(sum);
}
