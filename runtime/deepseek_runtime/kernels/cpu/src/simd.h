// The element types, and 16 of them at a time as float32.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define DSV3_EXPORT extern "C" __attribute__((visibility("default")))

namespace dsv3 {

struct Bf16 {
    uint16_t bits;
};
struct E4m3 {
    uint8_t bits;
};

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

inline __mmask16 first16(int64_t count) { return count >= 16 ? 0xFFFF : (1u << count) - 1; }
inline __mmask32 first32(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }
inline __mmask64 first64(int64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

inline __m512i as_int(__m512 v) { return _mm512_castps_si512(v); }
inline __m512 as_float(__m512i v) { return _mm512_castsi512_ps(v); }

inline __m512 load(const float* from, __mmask16 mask = 0xFFFF) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load(const Bf16* from, __mmask16 mask = 0xFFFF) {
    return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

inline void store(float* to, __m512 v, __mmask16 mask = 0xFFFF) { _mm512_mask_storeu_ps(to, mask, v); }
inline void store(Bf16* to, __m512 v, __mmask16 mask = 0xFFFF) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

// The first `count` of four.
inline void store4(float* to, __m128 v, int64_t count) { _mm_mask_storeu_ps(to, first16(count) & 15, v); }
inline void store4(Bf16* to, __m128 v, int64_t count) {
    _mm_mask_storeu_epi16(to, first16(count) & 15, (__m128i)_mm_cvtneps_pbh(v));
}

// e^x within 2 ulp; 0 below -87, as softmax wants of masked scores.
inline __m512 exp(__m512 x) {
    const __m512 clamped = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.0f)), _mm512_set1_ps(88.7f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504f)), 0);
    // ln 2 in two parts, the first short enough that n times it is exact.
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clamped);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

inline __m128 silu(__m128 x) {
    const __m128 negative = _mm_sub_ps(_mm_setzero_ps(), x);
    const __m128 e = _mm512_castps512_ps128(exp(_mm512_castps128_ps512(negative)));
    return _mm_div_ps(x, _mm_add_ps(_mm_set1_ps(1.0f), e));
}

// to = from · factor, `to` += from · factor, and a change of type, over `count` elements.
template <class From, class To>
void scale_to(const From* from, float factor, int64_t count, To* to) {
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        store(to + i, _mm512_mul_ps(load(from + i, mask), _mm512_set1_ps(factor)), mask);
    }
}
inline void add_scaled(const float* from, float factor, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        store(to + i, _mm512_fmadd_ps(load(from + i, mask), _mm512_set1_ps(factor), load(to + i, mask)), mask);
    }
}
template <class From, class To>
void convert(const From* from, int64_t count, To* to) {
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first16(count - i);
        store(to + i, load(from + i, mask), mask);
    }
}

}  // namespace dsv3
