// Sums of rows, each multiplied by a number: out[m] (+)= Σ_s p[m][s] · row_s. The rows lie anywhere, as cached ones do.
//
// bf16 rows are taken in pairs, whose elements are interleaved in registers, so that one instruction adds two products.
#pragma once

#include <algorithm>

#include "dot.h"

namespace dsv3 {

template <int N>
using Constant = std::integral_constant<int, N>;

// 32 columns of a row or of a pair of rows, as two vectors to multiply with broadcast numbers.
struct Bf16Pairs {
    using T = Bf16;
    static constexpr int rows = 2;
    using Vector = __m512i;
    static void columns(const T* const* rows, int64_t left, int64_t column, __mmask32 mask, Vector* v) {
        const __m512i a = _mm512_maskz_loadu_epi16(mask, rows[0] + column);
        const __m512i b = left > 1 ? _mm512_maskz_loadu_epi16(mask, rows[1] + column) : _mm512_setzero_si512();
        v[0] = _mm512_unpacklo_epi16(a, b);
        v[1] = _mm512_unpackhi_epi16(a, b);
    }
    static Vector number(const T* p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, sizeof(pair));
        return _mm512_set1_epi32(pair);
    }
    static __m512 add_product(__m512 sum, Vector v, Vector p) { return _mm512_dpbf16_ps(sum, (__m512bh)v, (__m512bh)p); }
    // Interleaving left four columns here, four there.
    static void ordered(__m512 a, __m512 b, __m512* out) {
        const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
        out[0] = _mm512_permutex2var_ps(a, first, b);
        out[1] = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b);
    }
};

struct FloatRows {
    using T = float;
    static constexpr int rows = 1;
    using Vector = __m512;
    static void columns(const T* const* rows, int64_t, int64_t column, __mmask32 mask, Vector* v) {
        v[0] = _mm512_maskz_loadu_ps(mask & 0xFFFF, rows[0] + column);
        v[1] = _mm512_maskz_loadu_ps(mask >> 16, rows[0] + column + 16);
    }
    static Vector number(const T* p) { return _mm512_set1_ps(*p); }
    static __m512 add_product(__m512 sum, Vector v, Vector p) { return _mm512_fmadd_ps(v, p, sum); }
    static void ordered(__m512 a, __m512 b, __m512* out) { out[0] = a, out[1] = b; }
};

template <class T>
using MixPolicy = std::conditional_t<std::is_same_v<T, Bf16>, Bf16Pairs, FloatRows>;

// `ahead` is how many elements behind each row lies what to fetch next; 0 for nothing.
template <class T>
struct Rows {
    const T* const* at;
    int64_t count, columns, ahead;
};

// M sums of 32 · V columns. `p` of an odd number of bf16 rows has a number more, which is multiplied by zero.
template <class T, int M, int V>
inline void mix_tile(const Rows<T>& rows, int64_t column, const T* p, int64_t p_stride, float* out, int64_t out_stride,
                     bool add) {
    using P = MixPolicy<T>;
    __m512 sum[M][2 * V];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int v = 0; v < 2 * V; v++) sum[m][v] = _mm512_setzero_ps();
    const __mmask32 last = first32(rows.columns - column - 32 * (V - 1));
    for (int64_t s = 0; s < rows.count; s += P::rows) {
        typename P::Vector vectors[2 * V];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            P::columns(rows.at + s, rows.count - s, column + 32 * v, v == V - 1 ? last : ~0u, vectors + 2 * v);
            if (rows.ahead) {
                for (int r = 0; r < P::rows; r++)
                    _mm_prefetch(rows.at[s] + column + 32 * v + rows.ahead + r * rows.columns, _MM_HINT_T1);
            }
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const auto number = P::number(p + m * p_stride + s);
#pragma GCC unroll 16
            for (int v = 0; v < 2 * V; v++) sum[m][v] = P::add_product(sum[m][v], vectors[v], number);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            __m512 ordered[2];
            P::ordered(sum[m][2 * v], sum[m][2 * v + 1], ordered);
            for (int half = 0; half < 2; half++) {
                const __mmask16 mask = (v == V - 1 ? last : ~0u) >> (16 * half) & 0xFFFF;
                float* to = out + m * out_stride + column + 32 * v + 16 * half;
                store(to, add ? _mm512_add_ps(load(to, mask), ordered[half]) : ordered[half], mask);
            }
        }
}

// All columns of `count` sums, in strips that stay in the first-level cache while all sums pass over them.
template <class T>
void mix(const Rows<T>& rows, const T* p, int64_t p_stride, int64_t count, float* out, int64_t out_stride, bool add) {
    const int64_t strip = count >= 12 ? 32 : 128;
    auto columns = [&](auto sums, auto vectors, int64_t m, int64_t begin, int64_t end) {
        constexpr int M = decltype(sums)::value, V = decltype(vectors)::value;
        int64_t column = begin;
        for (; column + 32 * (V - 1) < end; column += 32 * V)
            mix_tile<T, M, V>(rows, column, p + m * p_stride, p_stride, out + m * out_stride, out_stride, add);
        for (; column < end; column += 32)
            mix_tile<T, M, 1>(rows, column, p + m * p_stride, p_stride, out + m * out_stride, out_stride, add);
    };
    for (int64_t begin = 0; begin < rows.columns; begin += strip) {
        const int64_t end = std::min(begin + strip, rows.columns);
        int64_t m = 0;
        for (; m + 12 <= count && m + 16 != count; m += 12) columns(Constant<12>{}, Constant<1>{}, m, begin, end);
        for (; m + 8 <= count; m += 8) columns(Constant<8>{}, Constant<1>{}, m, begin, end);
        for (; m + 4 <= count; m += 4) columns(Constant<4>{}, Constant<2>{}, m, begin, end);
        for (; m < count; m++) columns(Constant<1>{}, Constant<4>{}, m, begin, end);
    }
}

}  // namespace dsv3
