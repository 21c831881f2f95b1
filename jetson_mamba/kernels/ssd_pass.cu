// Passes states from segment to segment of Mamba-2's scan (direction 0), and their gradients back
// (direction 1): a thread to a number of the state. What each segment adds (`ends`) gives way to
// what it begins with, unless `kept` receives that; `final_states` has what is left after all.
//
// EXCHANGED: the kept states are images of the tiles that products of warpgroups read.
#include "ssd.cuh"
#if EXCHANGED
#include "warpgroups.cuh"
#endif

constexpr int AHEAD = 8;

extern "C" __global__ void __launch_bounds__(256) ssd_pass(
    const float* first, const float* last, float* ends, const float* decays, NUMBER* kept,
    float* final_states, long long heads, long long segments) {
    constexpr long long size = HEADDIM * DSTATE;
    const long long number = blockIdx.x * 256ll + threadIdx.x;
    if (number >= size) return;
    const long long of_head = blockIdx.y, direction = blockIdx.z;
    const long long batch = of_head / heads, head = of_head % heads, batches = gridDim.y / heads;
    const long long all = direction * gridDim.y + of_head;
    long long place_kept = number;
#if EXCHANGED
    place_kept = Exchanged<HEADDIM, DSTATE>::offset(number / DSTATE, number % DSTATE) / 2;
#endif
    const float* given = direction ? last : first;
    float state = given ? given[of_head * size + number] : 0.0f;
    const long long step = direction ? -1 : 1;
    long long segment = direction ? segments - 1 : 0;
    float* end = ends + all * segments * size + number;
    for (long long left = segments; left > 0; left -= AHEAD) {
        float added[AHEAD], decay[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const long long place = segment + step * i;
            added[i] = i < left ? end[place * size] : 0.0f;
            decay[i] = i < left ? decays[all * segments + place] : 1.0f;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i, segment += step) {
            if (i >= left) break;
            if (kept)
                kept[(((direction * batches + batch) * segments + segment) * heads + head) * size +
                     place_kept] = from_float<NUMBER>(state);
            else
                end[segment * size] = state;
            state = state * decay[i] + added[i];
        }
    }
    if (final_states) final_states[all * size + number] = state;
}
