// What ssd_states.cu makes, for GPUs with products of warpgroups: the states at the starts of chunks
// (direction 0) and the gradients of the states at their ends (direction 1), or what each segment of
// time adds. A block takes some heads of a group, a warpgroup to each, and 64 channels of these.
#define WITH_SLOPES
#include "ssd_warpgroups.cuh"

struct Shared {
    Exchanged<CHUNK, STATES> B[STAGES];
    Exchanged<CHUNK, SLICE> x[HEADS][STAGES];
    Steps steps[HEADS][STAGES];
};
static_assert(sizeof(Shared) == SHARED, "the host counts shared memory otherwise");

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS) ssd_states_warpgroups(
    const NUMBER* x, const NUMBER* dy, const void* dt, const void* A, const NUMBER* B,
    const NUMBER* C, const void* bias, const int* seq_idx, const float* first, const float* last,
    float* ends, float* decays, NUMBER* kept, float* kept_steps, float* final_states,
    long long option_bits, long long low_bits, long long high_bits, long long seqlen,
    long long heads, long long heads_of_group, long long segment, long long segments,
    long long x_batch, long long x_time, long long x_head, long long dy_batch, long long dy_time,
    long long dy_head, long long dt_batch, long long dt_time, long long dt_head, long long B_batch,
    long long B_time, long long B_group, long long C_batch, long long C_time, long long C_group,
    long long seq_batch, long long seq_time, long long full, long long units_of_batch,
    long long batches) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const Work work(blockIdx.x, full, heads_of_group, units_of_batch, batches);
    const int count = work.count, slice = work.slice;
    const long long batch = work.batch;
    const int direction = static_cast<int>(blockIdx.y / segments);
    const long long part = blockIdx.y % segments;
    const long long chunks = (seqlen + CHUNK - 1) / CHUNK;
    const long long begin = part * segment, end = min(chunks, begin + segment);
    const long long step = direction ? -1 : 1;
    long long chunk = direction ? end - 1 : begin;
    int left = static_cast<int>(end - begin), stage = 0;

    if (warp < FETCHERS / 32) {
        leave_registers<FETCHER_REGISTERS>();
        const long long head = work.first_head + min(warp, count - 1);
        const Options options{option_bits};
        const StepSource source(dt, A, bias, seq_idx, options, low_bits, high_bits, seqlen, batch,
                                head, dt_batch, dt_time, dt_head, seq_batch, seq_time);
        if (direction) x = dy, x_batch = dy_batch, x_time = dy_time, x_head = dy_head;
        if (direction) B = C, B_batch = C_batch, B_time = C_time, B_group = C_group;
        x += batch * x_batch + work.first_head * x_head + slice;
        B += batch * B_batch + work.group * B_group;
        const bool makes_steps = warp < count;
        const bool keeps_steps = kept_steps && !direction && !slice && makes_steps;
        // Read two chunks ahead.
        RawSteps raw, next;
        raw.load(source, chunk * CHUNK, lane);
        next.load(source, (chunk + step) * CHUNK, lane);
        int before = -1;
        bool again = false;
        for (; left > 0; --left, chunk += step) {
            if (again)
                for (int j = 0; j < count; ++j) meet_at<GROUP + FETCHERS>(used(j, stage));
            const long long start = chunk * CHUNK;
            const int rows = static_cast<int>(min(seqlen - start, static_cast<long long>(CHUNK)));
            fetch(shared.B[stage], B + start * B_time, B_time, rows, DSTATE, threadIdx.x);
            for (int j = 0; j < count; ++j)
                fetch(shared.x[j][stage], x + start * x_time + j * x_head, x_time, rows, SLICE,
                      threadIdx.x);
            commit_copies();
            if (makes_steps) raw.finish(shared.steps[warp][stage], source, start, lane);
            if (keeps_steps) {
                __syncwarp();
                keep_steps(kept_steps + ((batch * heads + head) * chunks + chunk) * KEPT_ARRAYS *
                                            CHUNK,
                           shared.steps[warp][stage], lane);
            }
            if (before >= 0) wait_for_copies<1>(), give(count, before);
            raw = next;
            if (makes_steps) next.load(source, start + 2 * step * CHUNK, lane);
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
    const long long head = work.first_head + member, of_head = batch * heads + head;
    constexpr long long size = HEADDIM * DSTATE;
    const float* given = direction ? last : first;
    const long long place = (direction * batches * heads + of_head) * segments + part;
    State state;
    if (given)
        state.load(given + of_head * size + slice * DSTATE, row, SLICE, lane);
    else
        state.clear();
    float decay = 1.0f;
    if (kept) kept += (direction * batches + batch) * chunks * heads * size + head * size +
                      slice * DSTATE;

    for (; left > 0; --left, chunk += step) {
        meet_at<GROUP + FETCHERS>(fetched(member, stage));
        show_to_products();
        if (kept) state.store(kept + chunk * heads * size, row, SLICE, lane);
        add_chunk(state, decay, shared.steps[member][stage], shared.B[stage], shared.x[member][stage],
                  direction, row, lane);
        if (left > STAGES) arrive_at<GROUP + FETCHERS>(used(member, stage));
        if (++stage == STAGES) stage = 0;
    }
    if (ends) {
        state.store(ends + place * size + slice * DSTATE, row, SLICE, lane);
        if (row == 0 && lane == 0 && slice == 0) decays[place] = decay;
    }
    if (final_states)
        state.store(final_states + (direction * batches * heads + of_head) * size + slice * DSTATE,
                    row, SLICE, lane);
}
