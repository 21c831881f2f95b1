// The selective scan's backward pass.
//
// Time is walked in reverse, INTERVAL steps at a time. x holds the state before them; a first
// sweep forward keeps the state before every STRETCH steps, and then, stretch by stretch from the
// last, the decays and states are computed again into registers and the gradient
//   dh[t] = C[t] g[t] + exp(delta[t+1] A) dh[t+1],   g = dout silu(z)
// runs back over them. The sums over states (for du and ddelta) and over channels (for dB and dC)
// are exchanges between lanes; a block writes the sums over its channels, and a last kernel adds
// the blocks' in order, so results are the same in every run.
#define CHANNEL_BITS 2
#include "selective_scan.cuh"

constexpr bool VARIABLE_B = !CONSTANT_B, VARIABLE_C = !CONSTANT_C;
constexpr int MATRICES = VARIABLE_B + VARIABLE_C;

// Steps whose decays and states a lane keeps: STRETCH * FLOATS * 2 registers.
constexpr int STRETCH = (FLOATS == 8 ? 16 : 32) / FLOATS;
constexpr int QUAD = least(4, STRETCH);
constexpr int STRETCHES = INTERVAL / STRETCH;
constexpr int SUMS = STRETCH * MATRICES * WIDTH;   // floats of dB and dC in a stretch

// Sums over four channels by matrix instructions, a lane's four floats at a time; without them, or
// where lanes and states are others, by exchanges between lanes over all of a warp's channels.
constexpr bool TENSOR = __CUDA_ARCH__ >= 800 && FLOATS == 4 && CHANNELS >= 4;
constexpr int WARP_ROWS = TENSOR ? CHANNELS / 4 : 1;   // sums that a warp leaves
constexpr int SUM_ROWS = WARPS * WARP_ROWS;
// The rows that a warp writes together begin in different banks.
constexpr int SUM_PITCH = SUMS + (WARP_ROWS > 1 ? most(4, least(16, WIDTH)) : 4);

// Where a lane has too many states for shared memory, the saved ones go to local memory.
constexpr bool SAVED_IN_SHARED = FLOATS == 4;
constexpr int BYTES_WITHOUT_SUMS =
    4 * (most(1, MATRICES) * PART * WIDTH + 3 * WARPS * CHANNELS * PITCH +
         (SAVED_IN_SHARED ? WARPS * STRETCHES * 32 * FLOATS : 0));
// Where x has the state before every tile, what is staged serves both sweeps.
constexpr bool ONE_TILE = INTERVAL == TILE && PART == TILE;

// With two buffers for the sums, one barrier a stretch is enough.
constexpr int SUM_BUFFERS = BYTES_WITHOUT_SUMS + 8 * SUM_ROWS * SUM_PITCH <= 48 * 1024 ? 2 : 1;

// 168 registers, so that three blocks fit a multiprocessor: with a fourth they would spill, as
// they would for float with the third before sm_90.
constexpr int MINIMUM_BLOCKS =
    COMPLEX || FLOATS != 4 || LANES != 4 ? 1 : sizeof(number) == 4 && __CUDA_ARCH__ < 900 ? 2 : 3;

struct Arguments {
    const number *u, *delta, *B, *C, *z, *dout, *out;
    const state *A, *constant_B, *constant_C, *x;
    const float *D, *bias;
    number *du, *ddelta, *dz, *out_z;
    float* weights;      // (batch * segments, weights_width): dA, constant dB, dC; dD, ddelta_bias
    float* sums;         // (batch, groups, slots, seqlen, MATRICES, WIDTH): dB, dC of some channels
    state* carry;        // (batch, dim, segments, PADDED): what a segment hands to the one before
    float* carry_time;   // (batch, dim, segments): the sum of its delta
    long long dim, group_channels, slots, seqlen, segment_length, segments;
    long long u_batch, u_dim, delta_batch, delta_dim, z_batch, z_dim, dout_batch, dout_dim;
    long long out_batch, out_dim, du_batch, du_dim, ddelta_batch, ddelta_dim, dz_batch, dz_dim;
    long long out_z_batch, out_z_dim;
    long long B_batch, B_group, B_state, C_batch, C_group, C_state;
};

// The block's place, the same for both kernels here.
struct Span {
    int batch, segment, group, slot, sets, begin, end;
    __device__ __forceinline__ Span(const Arguments& p) {
        batch = blockIdx.y;
        segment = SEGMENTED ? blockIdx.z : 0;
        group = blockIdx.x / static_cast<unsigned>(p.slots);
        slot = blockIdx.x % static_cast<unsigned>(p.slots);
        sets = (static_cast<int>(p.group_channels) + BLOCK_CHANNELS - 1) / BLOCK_CHANNELS;
        begin = segment * static_cast<int>(p.segment_length);
        end = SEGMENTED && begin + p.segment_length < p.seqlen
                  ? static_cast<int>(begin + p.segment_length)
                  : static_cast<int>(p.seqlen);
    }
};

// QUAD steps of a row in shared memory.
__device__ __forceinline__ void get_quad(const float* row, float (&values)[4]) {
    if constexpr (QUAD == 4) {
        get_four(row, values);
    } else {
        get_two(row, values);
    }
}

// D = A B with ones in B where column and half of k agree in parity: every even column is the sum
// over k < 4, every odd one that over k >= 4. A lane's values 0 and 1 stand in a row of A, at k < 4
// and k >= 4, and 2 and 3 eight rows below. So each lane gets the sums of its four values over
// itself and the lanes xor 1, 2 and 3.
__device__ __forceinline__ void sum_over_four(float (&sums)[4], const float (&values)[4],
                                              const float (&before)[4], const Place& place) {
    const float even = place.lane & 4 ? 0.0f : 1.0f, odd = 1.0f - even;
    multiply(sums, values[0], values[2], values[1], values[3], even, odd, before);
}

// The sums of two steps' values over channels, to their places among the stretch's sums.
__device__ __forceinline__ void put_sums(float* sums, float (&values)[2 * FLOATS],
                                         const Place& place) {
    if constexpr (TENSOR) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            float total[4], high[4], rest[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < 4; ++i) high[i] = rounded(values[4 * s + i]);
            if constexpr (sizeof(number) == 4) {
                // The instruction reads the upper 19 bits: the rest in a second one.
                float low[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    high[i] = __uint_as_float(__float_as_uint(high[i]) & 0xffffe000u);
                    low[i] = values[4 * s + i] - high[i];
                }
                sum_over_four(rest, low, rest, place);
            }
            sum_over_four(total, high, rest, place);
            // Every lane has the sums of its row; it puts the one of its own column.
            const float own = place.lane & 2 ? (place.lane & 1 ? total[3] : total[2])
                                             : (place.lane & 1 ? total[1] : total[0]);
            sums[s * MATRICES * WIDTH + place.lane % 4] = own;
        }
    } else {
        constexpr int count = 2 * FLOATS;
        sum_over_channels<count>(values, place.lane);
        const int index = index_over_channels<count>(place.lane);
        if (CHANNELS <= count || place.channel < count) {
#pragma unroll
            for (int i = 0; i < most(1, count / CHANNELS); ++i) {
                const int later = (index + i) / FLOATS, value = (index + i) % FLOATS;
                sums[later * MATRICES * WIDTH + value] = values[i];
            }
        }
    }
}

// Where channel `d` of a tensor begins. Written out at each use, with a `d` that the compiler
// cannot see through: nine addresses kept over the whole scan would cost 18 registers.
#define ROW(tensor) (p.tensor + hidden(span.batch) * p.tensor##_batch + hidden(d) * p.tensor##_dim)

// Brings the tile that comes next from memory to the L2 cache: its loads have no registers to
// wait in.
__device__ __forceinline__ void prefetch(const number* address) {
#pragma unroll
    for (int i = 0; i < OWNED; i += PIECE) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(address + place_of(i)));
    }
}

__device__ __forceinline__ Matrix B_of(const Arguments& p, const Span& span) {
    return {p.B + hidden(span.batch) * p.B_batch + hidden(span.group) * p.B_group, p.B_state};
}
__device__ __forceinline__ Matrix C_of(const Arguments& p, const Span& span) {
    return {p.C + hidden(span.batch) * p.C_batch + hidden(span.group) * p.C_group, p.C_state};
}

__device__ __forceinline__ void scan(const Arguments& p) {
    __shared__ __align__(16) float shared_matrices[most(1, MATRICES) * PART * WIDTH];
    __shared__ __align__(16) float shared_steps[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_inputs[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_gradients[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float
        shared_saved[SAVED_IN_SHARED ? WARPS * STRETCHES * 32 * FLOATS : 4];
    __shared__ __align__(16) float shared_sums[SUM_BUFFERS][SUM_ROWS][SUM_PITCH];

    const Place place;
    const Span span(p);
    const int lane = place.lane, part = place.part, own = part * PIECE;
    float* steps = shared_steps[place.warp][place.channel];
    float* inputs = shared_inputs[place.warp][place.channel];
    float* gradients = shared_gradients[place.warp][place.channel];
    const float* matrix_B = shared_matrices + part * FLOATS;
    const float* matrix_C = shared_matrices + VARIABLE_B * PART * WIDTH + part * FLOATS;
    state local_saved[SAVED_IN_SHARED ? 1 : STRETCHES][STATES];
    float* saved = shared_saved + (place.warp * STRETCHES * 32 + lane) * FLOATS;

    const int rows = (static_cast<int>(p.seqlen) + 2 * INTERVAL - 1) / (2 * INTERVAL);
    int sum_half = 0;

#pragma unroll 1
    for (int set = span.slot; set < span.sets; set += p.slots) {
        const int in_group = set * BLOCK_CHANNELS + place.warp * CHANNELS + place.channel;
        const bool valid = in_group < p.group_channels;
        const int d = span.group * p.group_channels + (valid ? in_group : p.group_channels - 1);
        const int readable = valid ? span.end : 0;
        const float bias = HAS_BIAS ? p.bias[d] : 0.0f;
        const float skip = HAS_D ? p.D[d] : 0.0f;

        rate a[STATES];
        state h[STATES], b[STATES], c[STATES], carry[STATES];
        state dA[STATES], dB[STATES], dC[STATES];
        float dD = 0.0f, dbias = 0.0f;
        load_weights(p.A, d, part, h);
#pragma unroll
        for (int i = 0; i < STATES; ++i) {
            a[i] = to_rate(h[i]);
            b[i] = c[i] = carry[i] = dA[i] = dB[i] = dC[i] = zero();
        }
        if (CONSTANT_B) load_weights(p.constant_B, d, part, b);
        if (CONSTANT_C) load_weights(p.constant_C, d, part, c);
        if (SEGMENTED) {
            const long long row = (hidden(span.batch) * p.dim + d) * p.segments;
            for (int after = static_cast<int>(p.segments) - 1; after > span.segment; --after) {
                const float time = p.carry_time[row + after];
#pragma unroll
                for (int i = 0; i < STATES; ++i) {
                    carry[i] = conjugate(decay(time, a[i])) * carry[i] +
                               p.carry[(row + after) * PADDED + part * STATES + i];
                }
            }
        }

#pragma unroll 1
        for (int unit = (span.end - 1) / INTERVAL * INTERVAL; unit >= span.begin;
             unit -= INTERVAL) {
            const int stop = least(span.end, unit + INTERVAL);
            const int last_tile = unit + (stop - 1 - unit) / TILE * TILE;
            {
                // x holds states in pairs: after the first INTERVAL of its row, and at its end.
                const int before = unit / INTERVAL - 1;
                const long long x_row =
                    (hidden(span.batch) * p.dim + hidden(d)) * rows + before / 2;
                const state* row = p.x + x_row * 2 * DSTATE;
#pragma unroll
                for (int i = 0; i < STATES; ++i) {
                    const int n = part * STATES + i;
                    h[i] = unit > 0 && n < DSTATE ? row[2 * n + before % 2] : zero();
                }
            }

            // Forward: the state before each stretch of PART steps that are staged.
            const auto keep = [&](int first, int offset) {
#pragma unroll 1
                for (int t = first; t < first + PART; t += STRETCH) {
                    const int stretch = (offset + t) / STRETCH;
                    if (SAVED_IN_SHARED) {
                        put_states(saved + stretch * 32 * FLOATS, h);
                    } else {
#pragma unroll
                        for (int i = 0; i < STATES; ++i) local_saved[stretch][i] = h[i];
                    }
                    if (stretch == STRETCHES - 1) break;
#pragma unroll
                    for (int k = 0; k < STRETCH; k += QUAD) {
                        float dts[4], us[4];
                        get_quad(steps + t + k, dts);
                        get_quad(inputs + t + k, us);
#pragma unroll
                        for (int s = 0; s < QUAD; ++s) {
                            const float du = dts[s] * us[s];
                            if (VARIABLE_B) {
                                get_states(matrix_B + (t - first + k + s) * WIDTH, b);
                            }
#pragma unroll
                            for (int i = 0; i < STATES; ++i) {
                                h[i] = decay(dts[s], a[i]) * h[i] + du * b[i];
                            }
                        }
                    }
                }
            };
#pragma unroll 1
            for (int tile = unit; !ONE_TILE && tile <= last_tile; tile += TILE) {
                __syncwarp();
                {
                    Run<OWNED> u, delta;
                    float values[OWNED];
                    u.load(ROW(u), tile + own, span.end);
                    delta.load(ROW(delta), tile + own, span.end);
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) {
                        values[i] =
                            Run<OWNED>::masked(to_step(delta.at(i), bias), tile + own, i, readable);
                    }
                    put_steps(steps + own, values);
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) values[i] = u.at(i);
                    put_steps(inputs + own, values);
                }
#pragma unroll 1
                for (int first = 0; first < TILE; first += PART) {
                    if (VARIABLE_B) {
                        Staging<1> stage;
                        const Matrix source = B_of(p, span);
                        stage.fetch(&source, tile + first, span.end);
                        __syncthreads();
                        stage.put(shared_matrices);
                        __syncthreads();
                    } else {
                        __syncwarp();
                    }
                    keep(first, tile - unit);
                }
            }

            // Backward, tile by tile.
#pragma unroll 1
            for (int tile = last_tile; tile >= unit; tile -= TILE) {
                Staging<most(1, MATRICES)> stage;
                const auto fetch = [&](int first) {
                    Matrix sources[2];
                    if (VARIABLE_B) sources[0] = B_of(p, span);
                    if (VARIABLE_C) sources[VARIABLE_B] = C_of(p, span);
                    stage.fetch(sources, tile + first, span.end);
                };
                if (MATRICES) fetch(TILE - PART);
                __syncwarp();
                {
                    Run<OWNED> u, delta, dout, z, out;
                    float values[OWNED], results[OWNED];
                    u.load(ROW(u), tile + own, span.end);
                    delta.load(ROW(delta), tile + own, span.end);
                    dout.load(ROW(dout), tile + own, span.end);
                    if (HAS_Z) {
                        z.load(ROW(z), tile + own, span.end);
                        out.load(ROW(out), tile + own, span.end);
                    }
                    if (tile >= TILE) {
                        prefetch(ROW(u) + tile - TILE + own);
                        prefetch(ROW(delta) + tile - TILE + own);
                        prefetch(ROW(dout) + tile - TILE + own);
                        if (HAS_Z) {
                            prefetch(ROW(z) + tile - TILE + own);
                            prefetch(ROW(out) + tile - TILE + own);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) {
                        values[i] =
                            Run<OWNED>::masked(to_step(delta.at(i), bias), tile + own, i, readable);
                    }
                    put_steps(steps + own, values);
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) values[i] = u.at(i);
                    put_steps(inputs + own, values);
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) {
                        values[i] =
                            Run<OWNED>::masked(dout.at(i), tile + own, i, readable);
                        if (HAS_Z) {
                            const float gate = z.at(i), open = sigmoid(gate);
                            results[i] =
                                values[i] * out.at(i) * open * (1.0f + gate * (1.0f - open));
                            values[i] *= gate * open;
                        }
                        dD += values[i] * u.at(i);
                    }
                    put_steps(gradients + own, values);
                    if (HAS_Z) {
                        Run<OWNED> packed;
                        packed.pack(results);
                        packed.store(ROW(dz), tile + own, readable);
                        if (RECOMPUTE) {
#pragma unroll
                            for (int i = 0; i < OWNED; ++i) {
                                results[i] = out.at(i) * z.at(i) * sigmoid(z.at(i));
                            }
                            packed.pack(results);
                            packed.store(ROW(out_z), tile + own, readable);
                        }
                    }
                }
#pragma unroll 1
                for (int first = TILE - PART; first >= 0; first -= PART) {
                    if (MATRICES) {
                        if (first != TILE - PART) fetch(first);
                        __syncthreads();
                        stage.put(shared_matrices);
                        __syncthreads();
                    } else {
                        __syncwarp();
                    }
                    if (ONE_TILE) keep(0, 0);
#pragma unroll 1
                    for (int t = first + PART - STRETCH; t >= first; t -= STRETCH) {
                        const int stretch = (tile - unit + t) / STRETCH;
                        float* sums = shared_sums[sum_half][place.warp * WARP_ROWS +
                                                            (TENSOR ? place.channel / 4 : 0)] +
                                      part * FLOATS;
                        state decays[STRETCH][STATES], decayed[STRETCH][STATES];
                        if (SAVED_IN_SHARED) {
                            get_states(saved + stretch * 32 * FLOATS, h);
                        } else {
#pragma unroll
                            for (int i = 0; i < STATES; ++i) h[i] = local_saved[stretch][i];
                        }
                        float dts[4], us[4], gs[4];
#pragma unroll
                        for (int k = 0; k < STRETCH; k += 2) {
                            float products[2 * FLOATS];
                            if (k % QUAD == 0) {
                                get_quad(steps + t + k, dts);
                                get_quad(inputs + t + k, us);
                                get_quad(gradients + t + k, gs);
                            }
#pragma unroll
                            for (int s = 0; s < 2; ++s) {
                                const float dt = dts[k % QUAD + s];
                                const float du = dt * us[k % QUAD + s];
                                const float g = gs[k % QUAD + s];
                                if (VARIABLE_B) {
                                    get_states(matrix_B + (t - first + k + s) * WIDTH, b);
                                }
#pragma unroll
                                for (int i = 0; i < STATES; ++i) {
                                    decays[k + s][i] = decay(dt, a[i]);
                                    decayed[k + s][i] = decays[k + s][i] * h[i];
                                    h[i] = decayed[k + s][i] + du * b[i];
                                    const state product = output_gradient(g, h[i]);
                                    if (CONSTANT_C) dC[i] = dC[i] + product;
                                    reinterpret_cast<state*>(products)[s * STATES + i] = product;
                                }
                            }
                            if (VARIABLE_C) {
                                put_sums(sums + (k * MATRICES + VARIABLE_B) * WIDTH, products,
                                         place);
                            }
                        }
#pragma unroll
                        for (int k = STRETCH - QUAD; k >= 0; k -= QUAD) {
                            float of_input[QUAD], of_decay[QUAD];
                            get_quad(steps + t + k, dts);
                            get_quad(inputs + t + k, us);
                            get_quad(gradients + t + k, gs);
#pragma unroll
                            for (int pair = QUAD - 2; pair >= 0; pair -= 2) {
                                float products[2 * FLOATS];
#pragma unroll
                                for (int s = pair + 1; s >= pair; --s) {
                                    const float dt = dts[s], du = dt * us[s], g = gs[s];
                                    const int row = (t - first + k + s) * WIDTH;
                                    if (VARIABLE_B) get_states(matrix_B + row, b);
                                    if (VARIABLE_C) get_states(matrix_C + row, c);
                                    of_input[s] = of_decay[s] = 0.0f;
#pragma unroll
                                    for (int i = 0; i < STATES; ++i) {
                                        const state dh = state_gradient(g, c[i]) + carry[i];
                                        const state turned = dh * conjugate(decayed[k + s][i]);
                                        of_input[s] += dot(dh, b[i]);
                                        of_decay[s] += rate_gradient(a[i], turned);
                                        dA[i] = dA[i] + dt * turned;
                                        carry[i] = conjugate(decays[k + s][i]) * dh;
                                        const state product = du * dh;
                                        if (CONSTANT_B) dB[i] = dB[i] + product;
                                        reinterpret_cast<state*>(
                                            products)[(s - pair) * STATES + i] = product;
                                    }
                                }
                                if (VARIABLE_B) {
                                    put_sums(sums + (k + pair) * MATRICES * WIDTH, products,
                                             place);
                                }
                            }
                            sum_over_states<QUAD>(of_input, lane);
                            sum_over_states<QUAD>(of_decay, lane);
                            __syncwarp();
                            if (LANES <= QUAD || part < QUAD) {
#pragma unroll
                                for (int s = 0; s < most(1, QUAD / LANES); ++s) {
                                    const int at = t + k + index_over_states<QUAD>(lane) + s;
                                    const float du = fmaf(steps[at], of_input[s],
                                                          skip * gradients[at]);
                                    gradients[at] = fmaf(inputs[at], of_input[s],
                                                         RATE_UNIT * of_decay[s]);
                                    inputs[at] = du;
                                }
                            }
                        }
                        if (MATRICES) {
                            __syncthreads();
                            // Blocks in the grid's order: (batch, group, slot).
                            const long long block =
                                hidden(span.batch) * gridDim.x + hidden(blockIdx.x);
                            float* target =
                                p.sums + (block * p.seqlen + tile + t) * MATRICES * WIDTH;
                            const int count =
                                least(STRETCH, span.end - tile - t) * MATRICES * WIDTH;
#pragma unroll
                            for (int j = 0; j < SUMS; j += 4 * THREADS) {
                                const int i = j + 4 * threadIdx.x;
                                if (i >= count) break;
                                float4 sum = *reinterpret_cast<const float4*>(
                                    shared_sums[sum_half][0] + i);
#pragma unroll
                                for (int row = 1; row < SUM_ROWS; ++row) {
                                    const float4 more = *reinterpret_cast<const float4*>(
                                        shared_sums[sum_half][row] + i);
                                    sum.x += more.x, sum.y += more.y;
                                    sum.z += more.z, sum.w += more.w;
                                }
                                float4* place_in = reinterpret_cast<float4*>(target + i);
                                if (set != span.slot) {
                                    const float4 before = *place_in;
                                    sum.x += before.x, sum.y += before.y;
                                    sum.z += before.z, sum.w += before.w;
                                }
                                *place_in = sum;
                            }
                            if (SUM_BUFFERS == 1) __syncthreads();
                            sum_half = SUM_BUFFERS == 1 ? 0 : sum_half ^ 1;
                        }
                    }
                }
                __syncwarp();
                {
                    Run<OWNED> delta, packed;
                    float values[OWNED];
                    get_steps(inputs + own, values);
                    packed.pack(values);
                    packed.store(ROW(du), tile + own, readable);
                    get_steps(gradients + own, values);
                    if (SOFTPLUS) delta.load(ROW(delta), tile + own, span.end);
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) {
                        if (SOFTPLUS) values[i] *= sigmoid(delta.at(i) + bias);
                        dbias += Run<OWNED>::masked(values[i], tile + own, i, readable);
                    }
                    packed.pack(values);
                    packed.store(ROW(ddelta), tile + own, readable);
                }
            }
        }

#pragma unroll
        for (int bit = 1; bit < LANES; bit *= 2) {
            dD += __shfl_xor_sync(0xffffffffu, dD, bit << LANE_SHIFT);
            dbias += __shfl_xor_sync(0xffffffffu, dbias, bit << LANE_SHIFT);
        }
        if (valid) {
            const long long floats = p.dim * DSTATE * COMPONENTS;
            float* row = p.weights + (hidden(span.batch) * p.segments + span.segment) *
                                         (floats * (1 + CONSTANT_B + CONSTANT_C) + 2 * p.dim);
#pragma unroll
            for (int i = 0; i < STATES; ++i) {
                const int n = part * STATES + i;
                const long long at = d * DSTATE + n;
                if (n < DSTATE) {
                    reinterpret_cast<state*>(row)[at] = dA[i];
                    if (CONSTANT_B) reinterpret_cast<state*>(row + floats)[at] = dB[i];
                    if (CONSTANT_C) {
                        reinterpret_cast<state*>(row + floats * (1 + CONSTANT_B))[at] = dC[i];
                    }
                }
            }
            if (part == 0) {
                float* ends = row + floats * (1 + CONSTANT_B + CONSTANT_C);
                ends[d] = dD;
                ends[p.dim + d] = dbias;
            }
        }
    }
}

#if SEGMENTED
// What a segment hands to the one before it, begun from zero at its end.
__device__ __forceinline__ void scan_carry(const Arguments& p) {
    __shared__ __align__(16) float shared_matrices[PART * WIDTH];
    __shared__ __align__(16) float shared_steps[WARPS][CHANNELS][PITCH];
    __shared__ __align__(16) float shared_gradients[WARPS][CHANNELS][PITCH];

    const Place place;
    const Span span(p);
    const int part = place.part, own = part * PIECE;
    float* steps = shared_steps[place.warp][place.channel];
    float* gradients = shared_gradients[place.warp][place.channel];
    const float* matrix = shared_matrices + part * FLOATS;
    Matrix source;
    if (VARIABLE_C) source = C_of(p, span);

#pragma unroll 1
    for (int set = span.slot; set < span.sets; set += p.slots) {
        const int in_group = set * BLOCK_CHANNELS + place.warp * CHANNELS + place.channel;
        const bool valid = in_group < p.group_channels;
        const int d = span.group * p.group_channels + (valid ? in_group : p.group_channels - 1);
        const int readable = valid ? span.end : 0;
        const number* delta_row = p.delta + span.batch * p.delta_batch + d * p.delta_dim;
        const number* dout_row = p.dout + span.batch * p.dout_batch + d * p.dout_dim;
        const number* z_row = HAS_Z ? p.z + span.batch * p.z_batch + d * p.z_dim : nullptr;
        const float bias = HAS_BIAS ? p.bias[d] : 0.0f;
        rate a[STATES];
        state carry[STATES], c[STATES];
        float time = 0.0f;
        load_weights(p.A, d, part, c);
#pragma unroll
        for (int i = 0; i < STATES; ++i) {
            a[i] = to_rate(c[i]);
            carry[i] = c[i] = zero();
        }
        if (CONSTANT_C) load_weights(p.constant_C, d, part, c);

        const int last_tile = span.begin + (span.end - 1 - span.begin) / TILE * TILE;
        Run<OWNED> delta, dout, z;
        delta.load(delta_row, last_tile + own, span.end);
        dout.load(dout_row, last_tile + own, span.end);
        if (HAS_Z) z.load(z_row, last_tile + own, span.end);
#pragma unroll 1
        for (int tile = last_tile; tile >= span.begin; tile -= TILE) {
            float values[OWNED];
            __syncwarp();
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                values[i] = Run<OWNED>::masked(to_step(delta.at(i), bias), tile + own, i, readable);
                time += values[i];
            }
            put_steps(steps + own, values);
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                values[i] = Run<OWNED>::masked(dout.at(i), tile + own, i, readable);
                if (HAS_Z) values[i] *= z.at(i) * sigmoid(z.at(i));
            }
            put_steps(gradients + own, values);
            if (tile > span.begin) {
                delta.load(delta_row, tile - TILE + own, span.end);
                dout.load(dout_row, tile - TILE + own, span.end);
                if (HAS_Z) z.load(z_row, tile - TILE + own, span.end);
            }
#pragma unroll 1
            for (int first = TILE - PART; first >= 0; first -= PART) {
                if (VARIABLE_C) {
                    Staging<1> stage;
                    stage.fetch(&source, tile + first, span.end);
                    __syncthreads();
                    stage.put(shared_matrices);
                    __syncthreads();
                } else {
                    __syncwarp();
                }
#pragma unroll 1
                for (int t = PART - 4; t >= 0; t -= 4) {
                    float dt[4], g[4];
                    get_four(steps + first + t, dt);
                    get_four(gradients + first + t, g);
#pragma unroll
                    for (int s = 3; s >= 0; --s) {
                        if (VARIABLE_C) get_states(matrix + (t + s) * WIDTH, c);
#pragma unroll
                        for (int i = 0; i < STATES; ++i) {
                            carry[i] = conjugate(decay(dt[s], a[i])) *
                                       (state_gradient(g[s], c[i]) + carry[i]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int bit = 1; bit < LANES; bit *= 2) {
            time += __shfl_xor_sync(0xffffffffu, time, bit << LANE_SHIFT);
        }
        const long long row = (hidden(span.batch) * p.dim + d) * p.segments + span.segment;
        if (valid) {
            if (part == 0) p.carry_time[row] = time;
#pragma unroll
            for (int i = 0; i < STATES; ++i) {
                p.carry[row * PADDED + part * STATES + i] = carry[i];
            }
        }
    }
}
#endif

#define PARAMETERS                                                                                \
    const number *u, const number *delta, const state *A, const void *B, const void *C,           \
        const float *D, const number *z, const float *bias, const number *dout, const state *x,   \
        const number *out, number *du, number *ddelta, number *dz, number *out_z,                 \
        float *weights, float *sums, state *carry, float *carry_time, long long dim,              \
        long long group_channels, long long slots, long long seqlen, long long segment_length,    \
        long long segments, long long u_batch, long long u_dim, long long delta_batch,            \
        long long delta_dim, long long z_batch, long long z_dim, long long dout_batch,            \
        long long dout_dim, long long out_batch, long long out_dim, long long du_batch,           \
        long long du_dim, long long ddelta_batch, long long ddelta_dim, long long dz_batch,       \
        long long dz_dim, long long out_z_batch, long long out_z_dim, long long B_batch,          \
        long long B_group, long long B_state, long long C_batch, long long C_group,               \
        long long C_state
#define ARGUMENTS                                                                                 \
    Arguments {                                                                                   \
        u, delta, static_cast<const number*>(B), static_cast<const number*>(C), z, dout, out, A,  \
            static_cast<const state*>(B), static_cast<const state*>(C), x, D, bias, du, ddelta,   \
            dz, out_z, weights, sums, carry, carry_time, dim, group_channels, slots, seqlen,      \
            segment_length, segments, u_batch, u_dim, delta_batch, delta_dim, z_batch, z_dim,     \
            dout_batch, dout_dim, out_batch, out_dim, du_batch, du_dim, ddelta_batch, ddelta_dim, \
            dz_batch, dz_dim, out_z_batch, out_z_dim, B_batch, B_group, B_state, C_batch,         \
            C_group, C_state                                                                      \
    }

extern "C" {

// Grid: (groups * slots, batch, segments). A block takes every slots-th set of channels.
__global__ void __launch_bounds__(THREADS, MINIMUM_BLOCKS) selective_scan_backward(PARAMETERS) {
    if (SEGMENTED) wait_for_the_kernel_before();
    scan(ARGUMENTS);
}

#if SEGMENTED
__global__ void __launch_bounds__(THREADS) selective_scan_backward_carry(PARAMETERS) {
    scan_carry(ARGUMENTS);
}
#endif
}
