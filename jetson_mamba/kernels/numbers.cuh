// Number types shared by the kernels: storage types and their conversion to and from float, and
// 16-byte vectors of them. NVRTC comes without cuda_fp16.h and cuda_bf16.h, and bfloat16 has no
// instructions before sm_80, so the conversions are spelled out here.
#pragma once

struct alignas(2) half_t {
    unsigned short bits;
};
struct alignas(2) bfloat16_t {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(half_t value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
__device__ __forceinline__ float to_float(bfloat16_t value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ half_t from_float<half_t>(float value) {
    half_t result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
template <>
__device__ __forceinline__ bfloat16_t from_float<bfloat16_t>(float value) {
    bfloat16_t result;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
    const unsigned bits = __float_as_uint(value);
    // Round to nearest, ties to even; a NaN stays a NaN.
    result.bits = (bits & 0x7fffffffu) > 0x7f800000u
                      ? 0x7fffu
                      : static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
    return result;
}

// A compile-time bool that a generic lambda can take.
template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

template <typename A, typename B>
struct IsSame : Flag<false> {};
template <typename A>
struct IsSame<A, A> : Flag<true> {};

// Neighbouring numbers, kept as the 32-bit words that one access of 2 to 16 bytes moves. A load is
// waited for where it is first unpacked, so they stay packed until they are used.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T) < 4 ? 4 : COUNT * sizeof(T)) Packed {
    static constexpr int bytes = COUNT * sizeof(T);
    static constexpr int count = (bytes + 3) / 4;
    unsigned words[count];

    __device__ __forceinline__ void load(const T* address) {
        if constexpr (bytes == 16) {
            const uint4 raw = *reinterpret_cast<const uint4*>(address);
            words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
        } else if constexpr (bytes == 8) {
            const uint2 raw = *reinterpret_cast<const uint2*>(address);
            words[0] = raw.x, words[1] = raw.y;
        } else if constexpr (bytes == 4) {
            words[0] = *reinterpret_cast<const unsigned*>(address);
        } else {
            words[0] = *reinterpret_cast<const unsigned short*>(address);
        }
    }

    // Spelled out: the compiler takes a vector apart where the store stands under a condition.
    __device__ __forceinline__ void store(T* address) const {
        if constexpr (bytes == 16)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                         :
                         : "l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                           "r"(words[3]));
        else if constexpr (bytes == 8)
            asm volatile("st.global.v2.b32 [%0], {%1, %2};"
                         :
                         : "l"(address), "r"(words[0]), "r"(words[1]));
        else if constexpr (bytes == 4)
            *reinterpret_cast<unsigned*>(address) = words[0];
        else
            *reinterpret_cast<unsigned short*>(address) = static_cast<unsigned short>(words[0]);
    }

    // i must be a constant once loops are unrolled.
    __device__ __forceinline__ T at(int i) const {
        if constexpr (sizeof(T) == 4)
            return __uint_as_float(words[i]);
        else
            return T{static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2)))};
    }
    __device__ __forceinline__ float number(int i) const {
        if constexpr (sizeof(T) == 4)
            return __uint_as_float(words[i]);
        else
            return unpack(words[i / 2], i % 2, T{});
    }

    __device__ __forceinline__ void pack(const float (&numbers)[COUNT]) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) words[i] = __float_as_uint(numbers[i]);
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; i += 2)
                words[i / 2] = pair(numbers[i], i + 1 < COUNT ? numbers[i + 1] : 0.0f, T{});
        }
    }

    // Of eight bytes, as their words.
    __device__ __forceinline__ void set_words(unsigned first, unsigned second) {
        static_assert(bytes == 8);
        words[0] = first, words[1] = second;
    }

    // An element at a time, those from `limit` on left out (zero when loaded).
    __device__ __forceinline__ void load_some(const T* address, int limit) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                words[i] = i < limit ? __float_as_uint(address[i]) : 0u;
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; i += 2)
                words[i / 2] = (i < limit ? address[i].bits : 0u) |
                               (i + 1 < COUNT && i + 1 < limit ? address[i + 1].bits << 16 : 0u);
        }
    }
    __device__ __forceinline__ void store_some(T* address, int limit) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (i < limit) address[i] = at(i);
    }

   private:
    static __device__ __forceinline__ float unpack(unsigned word, int high, bfloat16_t) {
        return __uint_as_float(high ? word & 0xffff0000u : word << 16);
    }
    static __device__ __forceinline__ float unpack(unsigned word, int high, half_t) {
        return to_float(half_t{static_cast<unsigned short>(word >> (16 * high))});
    }
    template <typename U>
    static __device__ __forceinline__ unsigned pair(float low, float high, U) {
        unsigned result;
#if __CUDA_ARCH__ >= 800
        if constexpr (IsSame<U, bfloat16_t>::value)
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
        else
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#else
        result = from_float<U>(low).bits | (static_cast<unsigned>(from_float<U>(high).bits) << 16);
#endif
        return result;
    }
};

// What a kernel reads but once: past the L1 cache, and no sooner or later than it says.
template <typename T, int COUNT>
__device__ __forceinline__ void load_once(Packed<T, COUNT>& packed, const T* address) {
    if constexpr (Packed<T, COUNT>::bytes == 16)
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(packed.words[0]), "=r"(packed.words[1]), "=r"(packed.words[2]),
                       "=r"(packed.words[3])
                     : "l"(address));
    else
        packed.load(address);
}

// Brings numbers, `count` of them in runs of COUNT, as near as the L2 cache, where every kernel sees
// what is written meanwhile.
template <int COUNT, typename T>
__device__ __forceinline__ void fetch_ahead(const T* address, int count) {
#if __CUDA_ARCH__ >= 900
    if constexpr (COUNT * sizeof(T) % 16 == 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
                     :
                     : "l"(address), "r"(count * static_cast<int>(sizeof(T))));
#endif
}

// An address that is kept: the compiler would compute it again at each use, to save registers.
template <typename T>
__device__ __forceinline__ T* settled(T* address) {
    asm volatile("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

// The opposite: what follows from the value is computed again at each use, to save registers.
__device__ __forceinline__ long long hidden(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// Ahead of the first access to memory of a kernel that may start while the one launched before it
// drains: returns when that one is done.
__device__ __forceinline__ void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}
// Lets the blocks of such a kernel take their places; of use where every block is past this.
__device__ __forceinline__ void let_the_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

// Copies to shared memory that need no register while they are under way: after commit_copies,
// wait_for_copies<LEFT> returns when all of the thread's groups but the last LEFT are there.
// Before sm_80, and below 4 bytes, the copy is done at once.
template <typename T, int COUNT>
__device__ __forceinline__ void copy_async(Packed<T, COUNT>* shared, const T* global) {
    constexpr int bytes = Packed<T, COUNT>::bytes;
#if __CUDA_ARCH__ >= 800
    if constexpr (bytes >= 4) {
        const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(shared));
        if constexpr (bytes == 16)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                         :
                         : "r"(place), "l"(global)
                         : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                         :
                         : "r"(place), "l"(global), "n"(bytes)
                         : "memory");
        return;
    }
#endif
    shared->load(global);
}
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}
template <int LEFT>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
#endif
}

// 2^x and log2(x) by the special function unit, denormals flushed to zero.
__device__ __forceinline__ float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float log2_fast(float x) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float sigmoid(float x) {
    return reciprocal_fast(1.0f + exp2_fast(-1.4426950408889634f * x));
}
