// Dot products of rows of weights with rows of activations, both contiguous along the sum, so nothing is repacked.
//
// A policy says how one step of a weight row is loaded and multiplied. The order of every sum depends on the policy and
// on the length only, never on how many rows or tokens are computed together: results are bitwise batch-invariant.
#pragma once

#include "simd.h"

namespace dsv3 {

// Elements [at, at + count) of a weight row share one scale; `packed` is where their activations begin.
struct Segment {
    int64_t at, count, packed;
};

// Cache lines of the weights that come next, fetched while the current ones are computed with.
struct Ahead {
    const char* at[2] = {nullptr, nullptr};
    int64_t lines = 0;

    void fetch() {
        for (int64_t i = 0; i < lines; i++) next();
    }

    // Where their number is known.
    template <int Lines>
    void fetch() {
#pragma GCC unroll 8
        for (int i = 0; i < Lines; i++) next();
    }

  private:
    void next() {
        _mm_prefetch(at[0], _MM_HINT_T0);
        _mm_prefetch(at[1], _MM_HINT_T0);
        at[0] += 64, at[1] += 64;
    }
};

struct Bf16Vectors {
    using X = Bf16;
    using Vector = __m512i;
    static Vector activations(const X* x) { return _mm512_loadu_si512(x); }
    static __m512 add_product(__m512 sum, Vector w, Vector x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
};

struct FloatVectors {
    using X = float;
    using Vector = __m512;
    static Vector activations(const X* x) { return _mm512_loadu_ps(x); }
    static __m512 add_product(__m512 sum, Vector w, Vector x) { return _mm512_fmadd_ps(w, x, sum); }
};

struct Bf16ByBf16 : Bf16Vectors {
    using W = Bf16;
    static constexpr int step = 32, vectors = 1;
    static constexpr bool scaled = false, ordered = true;
    static void weights(const W* w, Vector* v) { v[0] = _mm512_loadu_si512(w); }
    static void weights(const W* w, int64_t count, Vector* v) { v[0] = _mm512_maskz_loadu_epi16(first32(count), w); }
    static void pack(const X* x, X* packed) { _mm512_storeu_si512(packed, _mm512_loadu_si512(x)); }
};

struct FloatByFloat : FloatVectors {
    using W = float;
    static constexpr int step = 16, vectors = 1;
    static constexpr bool scaled = false, ordered = true;
    static void weights(const W* w, Vector* v) { v[0] = _mm512_loadu_ps(w); }
    static void weights(const W* w, int64_t count, Vector* v) { v[0] = _mm512_maskz_loadu_ps(first16(count), w); }
    static void pack(const X* x, X* packed) { _mm512_storeu_ps(packed, _mm512_loadu_ps(x)); }
};

// Halves of the 32 elements of a bf16 vector in float32: the even ones, then the odd ones.
inline void widen(__m512i pairs, __m512* v) {
    v[0] = as_float(_mm512_slli_epi32(pairs, 16));
    v[1] = as_float(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}
inline void split_pairs(__m512 low, __m512 high, float* packed) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    _mm512_storeu_ps(packed, _mm512_permutex2var_ps(low, even, high));
    _mm512_storeu_ps(packed + 16, _mm512_permutex2var_ps(low, odd, high));
}

struct FloatByBf16 : FloatVectors {
    using W = Bf16;
    static constexpr int step = 32, vectors = 2;
    static constexpr bool scaled = false, ordered = false;
    static void weights(const W* w, Vector* v) { widen(_mm512_loadu_si512(w), v); }
    static void weights(const W* w, int64_t count, Vector* v) {
        widen(_mm512_maskz_loadu_epi16(first32(count), w), v);
    }
    static void pack(const X* x, X* packed) { split_pairs(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16), packed); }
};

// The 128 magnitudes of e4m3 as bf16, which holds them exactly, high and low bytes apart: what vpermi2b looks up.
struct E4m3Table {
    alignas(64) uint8_t high[128], low[128];

    constexpr E4m3Table() : high(), low() {
        for (int code = 0; code < 128; code++) {
            int exponent = code >> 3, mantissa = code & 7, bits = 0;
            if (code == 127) {
                bits = 0x7FC0;
            } else if (exponent > 0) {
                bits = (exponent + 120) << 7 | mantissa << 4;
            } else if (mantissa > 0) {
                int shift = mantissa >= 4 ? 0 : mantissa >= 2 ? 1 : 2;
                bits = (120 - shift) << 7 | ((mantissa << shift) & 3) << 5;
            }
            high[code] = static_cast<uint8_t>(bits >> 8);
            low[code] = static_cast<uint8_t>(bits & 0xFF);
        }
    }
};
inline constexpr E4m3Table e4m3_table;

// 64 e4m3 values as bf16: the even eights of them, then the odd eights, which is how bytes interleave within lanes.
inline void decode(__m512i codes, __m512i* v) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(e4m3_table.high), codes,
                                            _mm512_load_si512(e4m3_table.high + 64));
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(e4m3_table.low), codes,
                                                 _mm512_load_si512(e4m3_table.low + 64));
    high = _mm512_ternarylogic_epi64(high, codes, sign, 0xF8);  // high | (codes & sign)
    v[0] = _mm512_unpacklo_epi8(low, high);
    v[1] = _mm512_unpackhi_epi8(low, high);
}

struct Bf16ByE4m3 : Bf16Vectors {
    using W = E4m3;
    static constexpr int step = 64, vectors = 2;
    static constexpr bool scaled = true, ordered = false;
    static void weights(const W* w, Vector* v) { decode(_mm512_loadu_si512(w), v); }
    static void weights(const W* w, int64_t count, Vector* v) {
        decode(_mm512_maskz_loadu_epi8(first64(count), w), v);
    }
    static void pack(const X* x, X* packed) {
        const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 32);
        const __m512i even = _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0);
        const __m512i odd = _mm512_add_epi64(even, _mm512_set1_epi64(2));
        _mm512_storeu_si512(packed, _mm512_permutex2var_epi64(a, even, b));
        _mm512_storeu_si512(packed + 32, _mm512_permutex2var_epi64(a, odd, b));
    }
};

struct FloatByE4m3 : FloatVectors {
    using W = E4m3;
    static constexpr int step = 64, vectors = 4;
    static constexpr bool scaled = true, ordered = false;
    static void widened(__m512i codes, Vector* v) {
        __m512i halves[2];
        decode(codes, halves);
        widen(halves[0], v);
        widen(halves[1], v + 2);
    }
    static void weights(const W* w, Vector* v) { widened(_mm512_loadu_si512(w), v); }
    static void weights(const W* w, int64_t count, Vector* v) {
        widened(_mm512_maskz_loadu_epi8(first64(count), w), v);
    }
    static void pack(const X* x, X* packed) {
        auto eight = [x](int index) { return _mm512_castps256_ps512(_mm256_loadu_ps(x + 8 * index)); };
        auto join = [&](int a, int b) { return _mm512_insertf32x8(eight(a), _mm256_loadu_ps(x + 8 * b), 1); };
        split_pairs(join(0, 2), join(4, 6), packed);
        split_pairs(join(1, 3), join(5, 7), packed + 32);
    }
};

// The sums over the lanes of four vectors.
inline __m128 lane_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    auto halve = [](__m512 p, __m512 q) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xEE));
    };
    const __m512 ab = halve(a, b), cd = halve(c, d);
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
    return _mm512_castps512_ps128(
        _mm512_permutexvar_ps(_mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0), v));
}

// R rows of weights with C rows of packed activations; sums[c][r / 4] has the sums of four rows.
template <class P, int R, int C>
inline void tile(const typename P::W* const* rows, const typename P::X* const* x, const Segment* segments, int64_t count,
                 const float* const* scales, Ahead& ahead, __m128 (&sums)[C][R / 4]) {
    constexpr int lanes = 64 / sizeof(typename P::X);
    __m512 total[P::scaled ? R : 1][C];
    __m512 sum[R][C];
    if constexpr (P::scaled) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) total[r][c] = _mm512_setzero_ps();
    }
    for (int64_t s = 0; s < count; s++) {
        const Segment segment = segments[s];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) sum[r][c] = _mm512_setzero_ps();
        auto step = [&](int64_t k, auto&& load_weights) __attribute__((always_inline)) {
            typename P::Vector v[C][P::vectors];
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
#pragma GCC unroll 8
                for (int i = 0; i < P::vectors; i++) v[c][i] = P::activations(x[c] + segment.packed + k + i * lanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                typename P::Vector w[P::vectors];
                load_weights(rows[r] + segment.at + k, w);
#pragma GCC unroll 8
                for (int i = 0; i < P::vectors; i++)
#pragma GCC unroll 8
                    for (int c = 0; c < C; c++) sum[r][c] = P::add_product(sum[r][c], w[i], v[c][i]);
            }
            ahead.fetch();
        };
        const int64_t whole = segment.count / P::step * P::step;
        for (int64_t k = 0; k < whole; k += P::step)
            step(k, [](const typename P::W* w, typename P::Vector* v) { P::weights(w, v); });
        if (whole < segment.count)
            step(whole, [&](const typename P::W* w, typename P::Vector* v) { P::weights(w, segment.count - whole, v); });
        if constexpr (P::scaled) {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    total[r][c] = _mm512_fmadd_ps(sum[r][c], _mm512_set1_ps(scales[r][s]), total[r][c]);
        }
    }
    auto& all = [&]() -> auto& {
        if constexpr (P::scaled) return total; else return sum;
    }();
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r += 4) sums[c][r / 4] = lane_sums(all[r][c], all[r + 1][c], all[r + 2][c], all[r + 3][c]);
}

}  // namespace dsv3
