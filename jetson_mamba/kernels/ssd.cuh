// What the kernels of Mamba-2's scan share: tiles in shared memory, fragments of them, the steps of
// a chunk. The algebra is told in docs/notes-kernels.md.
//
// Definitions: NUMBER (that of x, B, C, z and the output), GIVEN and MADE (of how many 16-bit numbers
// a product takes one that is read from memory, or that is computed), HEADDIM, DSTATE, CHUNK (steps that are worked on at once, 32 or 64), STAGES (chunks in shared memory, 1 or
// 2), SLICE (channels of a head that a block works on at once), ALIGNED (rows of x, B and C begin at 16 bytes and are whole vectors), SHARED (bytes of shared
// memory, as the host counts them).
//
// Axes: t and s are steps of a chunk, p channels of a head, of which a block has a slice, n states. In a fragment, g = lane / 4 counts rows and q = lane % 4 pairs of
// columns, as matrices.cuh has it.
#pragma once

#include "matrices.cuh"

constexpr int STATES = (DSTATE + 15) / 16 * 16;
constexpr int WARPS = 4;
constexpr int WORKERS = 32 * WARPS;
constexpr int THREADS = WORKERS + 32;
constexpr int SLICES = (HEADDIM + SLICE - 1) / SLICE;
constexpr int ROW_TILES = CHUNK / 16;
// A number that all lanes of a warp have, told to the compiler as such.
__device__ __forceinline__ int uniform(int number) {
    return __shfl_sync(0xffffffffu, number, 0);
}

// How many channels of a slice there are.
__device__ __forceinline__ int channels_from(int first) {
    return HEADDIM % SLICE == 0 ? SLICE : min(HEADDIM - first, SLICE);
}

constexpr float LOG2_E = 1.4426950408889634f;
// A step that decays a state by more leaves nothing of it; sums of such steps stay finite.
constexpr float MOST_DECAY = -200.0f;
constexpr float LEAST_PASSED = -150.0f;
constexpr float NOTHING_LEFT = -1e30f;

// A number of more digits than 8 or 11 takes part in products as a sum of pieces of 16 bits, each
// what the ones before it left. The products of the least pieces are left out.
constexpr bool IS_FLOAT = sizeof(NUMBER) == 4;
// Whether what is read goes to shared memory as it is, by copies that need no register: a warp
// makes them, and the lengths of the steps, for the others.
constexpr bool ASYNCHRONOUS = ALIGNED && !IS_FLOAT;
template <bool FIRST, typename A, typename B>
struct Chosen {
    using type = A;
};
template <typename A, typename B>
struct Chosen<false, A, B> {
    using type = B;
};
using Element = Chosen<IS_FLOAT, bfloat16_t, NUMBER>::type;

__device__ __forceinline__ float low_half(unsigned word) {
    return to_float(Element{static_cast<unsigned short>(word)});
}
__device__ __forceinline__ float high_half(unsigned word) {
    return to_float(Element{static_cast<unsigned short>(word >> 16)});
}

// Two neighbouring numbers of a matrix, in their pieces.
template <int PIECES>
struct Pair {
    unsigned words[PIECES];

    __device__ __forceinline__ void pack(float low, float high) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            words[i] = packed_pair(low, high, Element{});
            low -= low_half(words[i]), high -= high_half(words[i]);
        }
    }
    __device__ __forceinline__ float low() const {
        float value = low_half(words[PIECES - 1]);
#pragma unroll
        for (int i = PIECES - 2; i >= 0; --i) value += low_half(words[i]);
        return value;
    }
    __device__ __forceinline__ float high() const {
        float value = high_half(words[PIECES - 1]);
#pragma unroll
        for (int i = PIECES - 2; i >= 0; --i) value += high_half(words[i]);
        return value;
    }
};

// Numbers in shared memory; eight of padding keep the rows of a fragment in different banks.
template <int ROWS, int COLUMNS, int PIECES = GIVEN>
struct alignas(16) Tile {
    static constexpr int rows = ROWS, stride = COLUMNS + 8, count = PIECES;
    unsigned short pieces[PIECES][ROWS][stride];

    __device__ __forceinline__ Pair<PIECES> pair(int row, int column) const {
        Pair<PIECES> result;
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            result.words[i] = *reinterpret_cast<const unsigned*>(&pieces[i][row][column]);
        return result;
    }
    __device__ __forceinline__ void set(int row, int column, const Pair<PIECES>& pair) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            *reinterpret_cast<unsigned*>(&pieces[i][row][column]) = pair.words[i];
    }

    // Starts to fill the tile from rows of memory, with zeros from `rows` and `columns` on: the
    // work of COUNT threads, of which this is number `thread`.
    template <int COUNT>
    __device__ __forceinline__ void fill(const NUMBER* from, long long row_stride, int rows,
                                         int columns, int thread) {
        if constexpr (ALIGNED) {
            constexpr int VECTOR = 16 / sizeof(NUMBER);
            constexpr int VECTORS = COLUMNS / VECTOR;
            if constexpr (ASYNCHRONOUS && COUNT % VECTORS == 0) {
                constexpr int STEP = COUNT / VECTORS;
                const int row = thread / VECTORS, column = thread % VECTORS * VECTOR;
                const unsigned place = shared_address(&pieces[0][row][column]);
                if (column >= columns) rows = 0;
                from += row * row_stride + column;
#pragma unroll
                for (int i = 0; i < (ROWS + STEP - 1) / STEP; ++i) {
                    if (ROWS % STEP && row + i * STEP >= ROWS) break;
                    const bool there = row + i * STEP < rows;
                    copy_16_async(place + 2 * i * STEP * stride, from, there);
                    from += STEP * row_stride;
                }
            } else {
#pragma unroll 4
                for (int i = thread; i < ROWS * VECTORS; i += COUNT) {
                    const int row = i / VECTORS, column = i % VECTORS * VECTOR;
                    const bool there = row < rows && column < columns;
                    const NUMBER* place = there ? from + row * row_stride + column : from;
                    if constexpr (ASYNCHRONOUS) {
                        copy_16_async(shared_address(&pieces[0][row][column]), place, there);
                    } else {
                        Packed<NUMBER, VECTOR> packed;
                        packed.load(place);
#pragma unroll
                        for (int j = 0; j < VECTOR; j += 2) {
                            Pair<PIECES> pair;
                            pair.pack(there ? packed.number(j) : 0.0f,
                                      there ? packed.number(j + 1) : 0.0f);
                            set(row, column + j, pair);
                        }
                    }
                }
            }
        } else {
#pragma unroll 4
            for (int i = thread; i < ROWS * COLUMNS / 2; i += COUNT) {
                const int row = i / (COLUMNS / 2), column = i % (COLUMNS / 2) * 2;
                const NUMBER* place = from + row * row_stride + column;
                Pair<PIECES> pair;
                pair.pack(row < rows && column < columns ? to_float(place[0]) : 0.0f,
                          row < rows && column + 1 < columns ? to_float(place[1]) : 0.0f);
                set(row, column, pair);
            }
        }
    }
};

// Where a lane reads fragments of a tile: one address, to which the rest is added as constants.
template <typename Of>
struct Reader {
    unsigned address;

    __device__ __forceinline__ Reader(const Of& tile, int lane)
        : address(shared_address(&tile.pieces[0][lane % 16][lane / 16 * 8])) {}
    __device__ __forceinline__ unsigned at(int piece, int row, int column) const {
        return address + 2 * ((piece * Of::rows + row) * Of::stride + column);
    }
};

// Sixteen rows and columns of a matrix, a part of them in each lane.
template <int PIECES = GIVEN>
struct Fragment {
    unsigned words[PIECES][4];

    // Of the tile that the reader is of, from a row and column on.
    template <typename Of>
    __device__ __forceinline__ void load(const Reader<Of>& reader, int row, int column) {
        static_assert(Of::count == PIECES);
#pragma unroll
        for (int i = 0; i < PIECES; ++i) load_matrices(words[i], reader.at(i, row, column));
    }
    template <typename Of>
    __device__ __forceinline__ void load_transposed(const Reader<Of>& reader, int row,
                                                    int column) {
        static_assert(Of::count == PIECES);
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            load_matrices_transposed(words[i], reader.at(i, row, column));
    }
    __device__ __forceinline__ void set(int i, float low, float high) {
        Pair<PIECES> pair;
        pair.pack(low, high);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) words[piece][i] = pair.words[piece];
    }
    __device__ __forceinline__ Pair<PIECES> get(int i) const {
        Pair<PIECES> pair;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) pair.words[piece] = words[piece][i];
        return pair;
    }
};

// c += a b with the registers A0 to A3 of a and B0, B1 of b.
template <int A0, int A1, int A2, int A3, int B0, int B1, int P, int Q>
__device__ __forceinline__ void add_product(float (&c)[4], const Fragment<P>& a,
                                            const Fragment<Q>& b) {
#pragma unroll
    for (int i = 0; i < P; ++i)
#pragma unroll
        for (int j = 0; j < Q && i + j < max(P, Q); ++j)
            multiply_add(c, a.words[i][A0], a.words[i][A1], a.words[i][A2], a.words[i][A3],
                         b.words[j][B0], b.words[j][B1], Element{});
}
// c (16 by 16, as two halves of 8 columns) += a b, for a from [m][k] and b from [n][k] ...
template <int P, int Q>
__device__ __forceinline__ void add_rows(float (&low)[4], float (&high)[4], const Fragment<P>& a,
                                         const Fragment<Q>& b) {
    add_product<0, 1, 2, 3, 0, 2>(low, a, b);
    add_product<0, 1, 2, 3, 1, 3>(high, a, b);
}
// ... or from [k][n], transposed.
template <int P, int Q>
__device__ __forceinline__ void add_columns(float (&low)[4], float (&high)[4], const Fragment<P>& a,
                                         const Fragment<Q>& b) {
    add_product<0, 1, 2, 3, 0, 1>(low, a, b);
    add_product<0, 1, 2, 3, 2, 3>(high, a, b);
}

// A number of a small tensor, whatever its dtype: 0 is fp32, 1 fp16, 2 bf16.
__device__ __forceinline__ float number_at(const void* tensor, long long index, int kind) {
    if (kind == 0) return static_cast<const float*>(tensor)[index];
    if (kind == 1) return to_float(static_cast<const half_t*>(tensor)[index]);
    return to_float(static_cast<const bfloat16_t*>(tensor)[index]);
}
__device__ __forceinline__ void set_number(void* tensor, long long index, int kind, float value) {
    if (kind == 0)
        static_cast<float*>(tensor)[index] = value;
    else if (kind == 1)
        static_cast<half_t*>(tensor)[index] = from_float<half_t>(value);
    else
        static_cast<bfloat16_t*>(tensor)[index] = from_float<bfloat16_t>(value);
}

// The kinds of the small tensors and the flags of a call, two bits each, in one parameter.
struct Options {
    long long bits;
    __device__ __forceinline__ int dt() const { return bits & 3; }
    __device__ __forceinline__ int A() const { return bits >> 2 & 3; }
    __device__ __forceinline__ int bias() const { return bits >> 4 & 3; }
    __device__ __forceinline__ int D() const { return bits >> 6 & 3; }
    __device__ __forceinline__ bool softplus() const { return bits >> 8 & 1; }
};

// The steps of a chunk: their lengths, the sums of log2 of their decays up to and with each (in two
// parts where the numbers are fp32), and how often the sequence has changed since the chunk before.
struct alignas(16) Steps {
    float dt[CHUNK];
    float sum[CHUNK];
    float rest[CHUNK];
    int run[CHUNK];
    // By how much what the chunk begins with has decayed at a step; what of a step is left at the
    // end of the chunk, times its length.
    float since_start[CHUNK];
    float to_end[CHUNK];
#ifdef WITH_SLOPES
    // The same without the length; the slope of that in dt; whether anything passes through a step.
    float left_at_end[CHUNK];
    float slope[CHUNK];
    int passes[CHUNK];
#endif
    __device__ __forceinline__ float decay_of_chunk() const { return since_start[CHUNK - 1]; }
};

// What the decay between two steps is made of, for one of them.
struct Moment {
    float sum, rest;
    int run;
};
__device__ __forceinline__ Moment moment_of(const Steps& steps, int t) {
    return {steps.sum[t], IS_FLOAT ? steps.rest[t] : 0.0f, HAS_SEQUENCES ? steps.run[t] : 0};
}
// Of two neighbouring steps, the first of which is even.
__device__ __forceinline__ void moments_of(Moment (&both)[2], const Steps& steps, int t) {
    const float2 sum = *reinterpret_cast<const float2*>(&steps.sum[t]);
    both[0] = {sum.x, 0.0f, 0}, both[1] = {sum.y, 0.0f, 0};
    if constexpr (IS_FLOAT) {
        const float2 rest = *reinterpret_cast<const float2*>(&steps.rest[t]);
        both[0].rest = rest.x, both[1].rest = rest.y;
    }
    if constexpr (HAS_SEQUENCES) {
        const int2 run = *reinterpret_cast<const int2*>(&steps.run[t]);
        both[0].run = run.x, both[1].run = run.y;
    }
}
// `number` as it has decayed from one step to a later one; 0 where it is not later, which is looked
// at only if ON_DIAGONAL, with what `in_order` says. No branch: the work of a lane is many of these.
template <bool ON_DIAGONAL>
__device__ __forceinline__ float decayed(float number, const Moment& from, const Moment& to,
                                         bool in_order) {
    float difference = to.sum - from.sum;
    if constexpr (IS_FLOAT) difference += to.rest - from.rest;
    bool passes = !ON_DIAGONAL || in_order;
    if constexpr (HAS_SEQUENCES) passes = passes && from.run == to.run;
    if constexpr (ON_DIAGONAL || HAS_SEQUENCES) {
        difference = passes ? difference : NOTHING_LEFT;
        number = passes ? number : 0.0f;
    }
    return number * exp2_fast(difference);
}
__device__ __forceinline__ float2 pair_at(const float (&numbers)[CHUNK], int t) {
    return *reinterpret_cast<const float2*>(&numbers[t]);
}

// Where the steps of a head come from.
struct StepSource {
    const void* dt;
    const int* seq_idx;
    long long dt_start, dt_stride, seq_stride;
    int dt_kind;
    long long seqlen;
    float A, bias, low, high;
    bool softplus;

    __device__ __forceinline__ StepSource(const void* dt, const void* A, const void* bias,
                                          const int* seq_idx, Options options, long long low_bits,
                                          long long high_bits, long long seqlen, long long batch,
                                          long long head, long long dt_stride_batch,
                                          long long dt_stride_time, long long dt_stride_head,
                                          long long seq_stride_batch, long long seq_stride_time)
        : dt(dt),
          seq_idx(seq_idx + (HAS_SEQUENCES ? batch * seq_stride_batch : 0)),
          dt_start(batch * dt_stride_batch + head * dt_stride_head),
          dt_stride(dt_stride_time),
          seq_stride(seq_stride_time),
          dt_kind(options.dt()),
          seqlen(seqlen),
          A(number_at(A, head, options.A())),
          bias(bias ? number_at(bias, head, options.bias()) : 0.0f),
          low(static_cast<float>(__longlong_as_double(low_bits))),
          high(static_cast<float>(__longlong_as_double(high_bits))),
          softplus(options.softplus()) {
        // What is infinite would leave no number where a step is 0.
        if (this->A < -3e38f) this->A = -3e38f;
    }

    // Step lengths before the limits, of dt and its bias.
    __device__ __forceinline__ float free_step(float raw) const {
        raw += bias;
        return softplus && raw <= 20.0f ? log1pf(expf(raw)) : raw;
    }
    __device__ __forceinline__ float slope(float raw) const {
        const float step = free_step(raw);
        if (step < low || step > high) return 0.0f;
        raw += bias;
        return softplus && raw <= 20.0f ? 1.0f / (1.0f + expf(-raw)) : 1.0f;
    }
    __device__ __forceinline__ float limited(float step) const {
        return step < low ? low : step > high ? high : step;
    }
};

// Numbers that one warp reads ahead of their use, as they lie in memory: what is made of a number
// is waited for.
struct RawSteps {
    static constexpr int count = CHUNK / 32;
    unsigned raw[count];
    int sequence[count], sequence_before;

    __device__ __forceinline__ void load(const StepSource& source, long long first, int lane) {
        const long long t0 = first + lane * count;
        const long long place = source.dt_start + t0 * source.dt_stride;
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const bool there = t0 + i >= 0 && t0 + i < source.seqlen;
            const long long at = place + i * source.dt_stride;
            raw[i] = 0;
            if (there)
                raw[i] = source.dt_kind ? static_cast<const unsigned short*>(source.dt)[at]
                                        : static_cast<const unsigned*>(source.dt)[at];
            if constexpr (HAS_SEQUENCES)
                sequence[i] = there ? source.seq_idx[(t0 + i) * source.seq_stride] : -1;
        }
        if constexpr (HAS_SEQUENCES)
            sequence_before = t0 > 0 && t0 < source.seqlen
                                  ? source.seq_idx[(t0 - 1) * source.seq_stride]
                                  : 0;
    }

    // Writes the steps of the chunk; whoever reads them waits for the block.
    __device__ __forceinline__ void finish(Steps& steps, const StepSource& source, long long first,
                                           int lane) const {
        // Sums of fp32 numbers are of no more digits than the differences that are made of them.
        using Sum = typename Chosen<IS_FLOAT, double, float>::type;
        float dt[count], numbers[count];
        bool changes[count], padding[count];
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const bool there = first + lane * count + i < source.seqlen;
            const unsigned short half = static_cast<unsigned short>(raw[i]);
            numbers[i] = source.dt_kind == 0   ? __uint_as_float(raw[i])
                         : source.dt_kind == 1 ? to_float(half_t{half})
                                               : to_float(bfloat16_t{half});
            changes[i] = HAS_SEQUENCES && there &&
                         sequence[i] != (i ? sequence[i ? i - 1 : 0] : sequence_before);
            padding[i] = !there || (HAS_SEQUENCES && sequence[i] < 0);
        }
        Sum sums[count];
        int runs[count];
#pragma unroll
        for (int i = 0; i < count; ++i) {
            dt[i] = padding[i] ? 0.0f : source.limited(source.free_step(numbers[i]));
            float decay = dt[i] * source.A * LOG2_E;
            if (decay < MOST_DECAY) decay = MOST_DECAY;
            sums[i] = decay;
            runs[i] = changes[i];
            if (i) sums[i] += sums[i - 1], runs[i] += runs[i - 1];
        }
        Sum total = sums[count - 1];
        int changed = runs[count - 1];
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const Sum before = __shfl_up_sync(0xffffffffu, total, offset);
            const int others = __shfl_up_sync(0xffffffffu, changed, offset);
            if (lane >= offset) total += before, changed += others;
        }
        Sum before = __shfl_up_sync(0xffffffffu, total, 1);
        int others = __shfl_up_sync(0xffffffffu, changed, 1);
        if (lane == 0) before = 0, others = 0;
        const Sum of_all = __shfl_sync(0xffffffffu, total, 31);
        const int changes_of_all = __shfl_sync(0xffffffffu, changed, 31);
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const int t = lane * count + i;
            const Sum sum = before + sums[i];
            const int run = others + runs[i];
            steps.dt[t] = dt[i];
            steps.sum[t] = static_cast<float>(sum);
            steps.rest[t] = static_cast<float>(sum - static_cast<Sum>(steps.sum[t]));
            steps.run[t] = run;
            const float left = exp2_fast(static_cast<float>(of_all - sum));
            steps.since_start[t] = run == 0 ? exp2_fast(static_cast<float>(sum)) : 0.0f;
            steps.to_end[t] = run == changes_of_all ? dt[i] * left : 0.0f;
#ifdef WITH_SLOPES
            steps.left_at_end[t] = run == changes_of_all ? left : 0.0f;
            steps.slope[t] = padding[i] ? 0.0f : source.slope(numbers[i]);
            steps.passes[t] = !changes[i] && dt[i] * source.A * LOG2_E > LEAST_PASSED;
#endif
        }
    }
};

// Of two pairs, which lie eight columns apart and whose columns begin with 2 q, four neighbouring
// numbers: a row of four lanes has sixteen together, which are stored in one access of 32 bytes.
// Returns their column.
template <typename T>
__device__ __forceinline__ int gathered(Packed<T, 4>& to, const float (&pair)[2],
                                        const float (&other)[2], int lane) {
    const bool odd = lane % 2;
    const unsigned own = packed_pair(pair[0], pair[1], T{});
    const unsigned right = packed_pair(other[0], other[1], T{});
    const unsigned given = __shfl_xor_sync(0xffffffffu, odd ? own : right, 1);
    to.set_words(odd ? given : own, odd ? right : given);
    return odd ? 8 + (lane % 4 - 1) * 2 : lane % 4 * 2;
}

#ifdef WITH_SLOPES
// What the backward pass reads again of the steps of a chunk, an array after the other: dt, sum, the
// slope (less than 0 where nothing passes), and rest and run where they are of use.
constexpr int KEPT_ARRAYS = 3 + IS_FLOAT + HAS_SEQUENCES;

__device__ __forceinline__ void keep_steps(float* to, const Steps& steps, int lane) {
    for (int t = lane; t < CHUNK; t += 32) {
        to[t] = steps.dt[t];
        to[CHUNK + t] = steps.sum[t];
        to[2 * CHUNK + t] = steps.passes[t] ? steps.slope[t] : -1.0f - steps.slope[t];
        if constexpr (IS_FLOAT) to[3 * CHUNK + t] = steps.rest[t];
        if constexpr (HAS_SEQUENCES)
            to[(3 + IS_FLOAT) * CHUNK + t] = static_cast<float>(steps.run[t]);
    }
}

// One step of these, and the last, read ahead of their use.
struct KeptStep {
    float dt, slope;
    Moment own, last;

    __device__ __forceinline__ void load(const float* from, int t) {
        dt = from[t];
        slope = from[2 * CHUNK + t];
        own = moment(from, t);
        last = moment(from, CHUNK - 1);
    }
    __device__ __forceinline__ void set(Steps& steps, int t) const {
        steps.dt[t] = dt;
        steps.sum[t] = own.sum;
        steps.rest[t] = own.rest;
        steps.run[t] = own.run;
        const float difference = last.sum - own.sum + (last.rest - own.rest);
        const float left = own.run == last.run ? exp2_fast(difference) : 0.0f;
        steps.since_start[t] = own.run == 0 ? exp2_fast(own.sum + own.rest) : 0.0f;
        steps.left_at_end[t] = left;
        steps.to_end[t] = dt * left;
        steps.passes[t] = slope >= 0.0f;
        steps.slope[t] = slope >= 0.0f ? slope : -1.0f - slope;
    }

    static __device__ __forceinline__ Moment moment(const float* from, int t) {
        return {from[CHUNK + t], IS_FLOAT ? from[3 * CHUNK + t] : 0.0f,
                HAS_SEQUENCES ? static_cast<int>(from[(3 + IS_FLOAT) * CHUNK + t]) : 0};
    }
};
#endif

// The state of a warp's sixteen channels: [p = 16 warp + g (+ 8)][n = 8 j + 2 q (+ 1)].
struct State {
    float numbers[STATES / 8][4];

    static __device__ __forceinline__ int left_of(int n, int j) {
        return 8 * j + 8 <= DSTATE ? 8 : DSTATE - n - 8 * j;
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < STATES / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) numbers[j][i] = 0.0f;
    }
    __device__ __forceinline__ void load(const float* from, int channel, int channels, int lane) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int p = channel + lane / 4 + half * 8, n = lane % 4 * 2;
            const float* row = from + p * DSTATE + n;
#pragma unroll
            for (int j = 0; j < STATES / 8; ++j) {
                const int left = p < channels ? left_of(n, j) : 0;
                numbers[j][2 * half] = left > 0 ? row[8 * j] : 0.0f;
                numbers[j][2 * half + 1] = left > 1 ? row[8 * j + 1] : 0.0f;
            }
        }
    }
    template <typename T>
    __device__ __forceinline__ void store(T* to, int channel, int channels, int lane) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int p = channel + lane / 4 + half * 8, n = lane % 4 * 2;
            T* row = to + p * DSTATE;
#pragma unroll
            for (int j = 0; j < STATES / 8; ++j) {
                const float pair[2] = {numbers[j][2 * half], numbers[j][2 * half + 1]};
                if constexpr (ALIGNED && sizeof(T) == 2) {
                    if (j % 2) continue;
                    const float other[2] = {numbers[j + 1][2 * half], numbers[j + 1][2 * half + 1]};
                    Packed<T, 4> packed;
                    const int place = 8 * j + gathered(packed, pair, other, lane);
                    if (p < channels && place < DSTATE) packed.store(row + place);
                    continue;
                }
                if (p >= channels) continue;
                const int left = left_of(n, j);
                if constexpr (ALIGNED && sizeof(T) == 4) {
                    Packed<T, 2> packed;
                    packed.pack(pair);
                    if (left > 0) packed.store(row + n + 8 * j);
                } else {
                    if (left > 0) row[n + 8 * j] = from_float<T>(pair[0]);
                    if (left > 1) row[n + 8 * j + 1] = from_float<T>(pair[1]);
                }
            }
        }
    }
    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (int j = 0; j < STATES / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) numbers[j][i] *= factor;
    }
    // += x^T B: of x the sixteen channels of `steps` 16 k to 16 k + 15, from scaled_steps.
    __device__ __forceinline__ void add(const Fragment<MADE>& x, int k,
                                        const Reader<Tile<CHUNK, STATES>>& B) {
#pragma unroll
        for (int j = 0; j < STATES / 16; ++j) {
            Fragment<> b;
            b.load_transposed(B, 16 * k, 16 * j);
            add_product<0, 2, 1, 3, 0, 1>(numbers[2 * j], x, b);
            add_product<0, 2, 1, 3, 2, 3>(numbers[2 * j + 1], x, b);
        }
    }
};

// Sixteen rows of x, as loaded transposed, each times the weight of its step.
__device__ __forceinline__ Fragment<MADE> scaled_steps(const Fragment<>& x,
                                                       const float (&weights)[CHUNK], int first,
                                                       int lane) {
    Fragment<MADE> result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 weight = pair_at(weights, first + 8 * half + lane % 4 * 2);
#pragma unroll
        for (int i = half; i < 4; i += 2) {
            const Pair<GIVEN> pair = x.get(i);
            result.set(i, pair.low() * weight.x, pair.high() * weight.y);
        }
    }
    return result;
}
