// The states of Mamba-2's scan at the starts of chunks (direction 0), and the gradients of the
// states at their ends (direction 1); or, of segments of time, what each adds to the state.
//
// Direction 0 walks forwards with  h = decay_of_chunk h + (x dt decay_to_end)^T B,  direction 1
// backwards with  dh = decay_of_chunk dh + (dy decay_since_start)^T C.  `kept` receives the state
// before each chunk in the walk's order, `kept_steps` the steps of each, `ends` the state after the
// segment, beside `decays`.
#define WITH_SLOPES
#include "ssd.cuh"

struct Shared {
    Tile<CHUNK, STATES> B[STAGES];
    Tile<CHUNK, SLICE> x[STAGES];
    Steps steps[2];
};
static_assert(SLICE == 16 * WARPS, "a warp has sixteen channels");
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) ssd_states(
    const NUMBER* x, const NUMBER* dy, const void* dt, const void* A, const NUMBER* B,
    const NUMBER* C, const void* bias, const int* seq_idx, const float* first, const float* last,
    float* ends, float* decays, NUMBER* kept, float* kept_steps, float* final_states, long long option_bits,
    long long low_bits, long long high_bits, long long seqlen, long long heads,
    long long heads_of_group, long long segment,
    long long segments, long long x_batch, long long x_time, long long x_head,
    long long dy_batch, long long dy_time, long long dy_head, long long dt_batch, long long dt_time,
    long long dt_head, long long B_batch, long long B_time, long long B_group, long long C_batch,
    long long C_time, long long C_group, long long seq_batch, long long seq_time) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const long long head = blockIdx.x, batch = blockIdx.y / SLICES, batches = gridDim.y / SLICES;
    const int slice = static_cast<int>(blockIdx.y % SLICES) * SLICE;
    const int slice_channels = channels_from(slice);
    const int channel = 16 * warp;
    const int direction = static_cast<int>(blockIdx.z / segments);
    const long long part = blockIdx.z % segments;
    const Options options{option_bits};
    const StepSource source(dt, A, bias, seq_idx, options, low_bits, high_bits, seqlen, batch, head,
                            dt_batch, dt_time, dt_head, seq_batch, seq_time);
    if (direction) x = dy, x_batch = dy_batch, x_time = dy_time, x_head = dy_head;
    if (direction) B = C, B_batch = C_batch, B_time = C_time, B_group = C_group;
    x += batch * x_batch + head * x_head + slice;
    B += batch * B_batch + head / heads_of_group * B_group;

    const long long of_head = batch * heads + head;
    const long long chunks = (seqlen + CHUNK - 1) / CHUNK;
    const long long begin = part * segment, end = min(chunks, begin + segment);
    // The last warp fetches for the others; or all do.
    const bool fetches = warp == WARPS;
    const auto fill = [&](long long chunk, int stage) {
        const long long start = chunk * CHUNK;
        const int rows = static_cast<int>(min(seqlen - start, static_cast<long long>(CHUNK)));
        constexpr int COUNT = ASYNCHRONOUS ? 32 : THREADS;
        const int thread = ASYNCHRONOUS ? lane : threadIdx.x;
        if (ASYNCHRONOUS && !fetches) return;
        shared.B[stage].fill<COUNT>(B + start * B_time, B_time, rows, DSTATE, thread);
        shared.x[stage].fill<COUNT>(x + start * x_time, x_time, rows, slice_channels, thread);
        commit_copies();
    };
    const long long step = direction ? -1 : 1;
    long long chunk = direction ? end - 1 : begin;
    // Returns when a chunk is there.
    const auto await = [&](long long chunk) {
        if (STAGES == 1) {
            __syncthreads();
            fill(chunk, 0);
        }
        wait_for_copies<0>();
        __syncthreads();
    };

    if (STAGES == 2) fill(chunk, 0);
    int current = 0;
    long long left = end - begin;
    if (fetches) {
        RawSteps raw;
        raw.load(source, chunk * CHUNK, lane);
        for (; left > 0; --left, chunk += step, current ^= 1) {
            Steps& steps = shared.steps[current];
            raw.finish(steps, source, chunk * CHUNK, lane);
            raw.load(source, (chunk + step) * CHUNK, lane);
            await(chunk);
            if (STAGES == 2 && left > 1) fill(chunk + step, current ^ 1);
            if (kept_steps && !direction && !slice)
                keep_steps(kept_steps + (of_head * chunks + chunk) * KEPT_ARRAYS * CHUNK, steps,
                           lane);
        }
        return;
    }

    State state;
    constexpr long long size = HEADDIM * DSTATE;
    const float* given = direction ? last : first;
    const long long place = (direction * batches * heads + of_head) * segments + part;
    if (given)
        state.load(given + of_head * size + slice * DSTATE, channel, slice_channels, lane);
    else
        state.clear();
    float decay = 1.0f;

    for (; left > 0; --left, chunk += step, current ^= 1) {
        const int stage = STAGES == 2 ? current : 0;
        const Steps& steps = shared.steps[current];
        await(chunk);
        if (kept)
            state.store(kept + (((direction * batches + batch) * chunks + chunk) * heads + head) *
                                   size +
                            slice * DSTATE,
                        channel, slice_channels, lane);
        const float of_chunk = steps.decay_of_chunk();
        decay *= of_chunk;
        state.scale(of_chunk);
        const Reader rows(shared.x[stage], lane);
        const Reader to(shared.B[stage], lane);
#pragma unroll
        for (int k = 0; k < ROW_TILES; ++k) {
            Fragment<> columns;
            columns.load_transposed(rows, 16 * k, channel);
            state.add(scaled_steps(columns, direction ? steps.since_start : steps.to_end, 16 * k,
                                   lane),
                      k, to);
        }
    }
    if (ends) {
        state.store(ends + place * size + slice * DSTATE, channel, slice_channels, lane);
        if (threadIdx.x == 0 && slice == 0) decays[place] = decay;
    }
    if (final_states)
        state.store(final_states + (direction * batches * heads + of_head) * size + slice * DSTATE,
                    channel, slice_channels, lane);
}
