// What both forms of attention share: their arguments, and a softmax over keys that come in tiles.
#pragma once

#include <cmath>
#include <limits>

#include "matrix.h"
#include "mix.h"

namespace dsv3 {

constexpr int64_t TILE = 64;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

// Queries [tokens, heads] in their two parts; strides in elements.
struct Queries {
    const void *nope, *rope;
    int64_t nope_token, nope_head, rope_token, rope_head;
    int64_t heads, nope_width, rope_width;
};
struct Expansion {
    const void *up_key, *up_value;  // [heads, nope, latent], [heads, value, latent]
    int64_t latent, value;
    float scale;
};

template <class T>
using Unscaled = std::conditional_t<std::is_same_v<T, Bf16>, Bf16ByBf16, FloatByFloat>;

struct Scores;
struct Probabilities;

// One softmax over keys that come in tiles: the running maximum and sum of each query, next to its mix of rows.
struct Running {
    float peak = -INFINITE, total = 0;
};

// Turns scores of `count` visible keys into probabilities relative to a new peak; the rest of the tile becomes 0.
template <class T>
inline void soften(float* scores, int64_t count, float scale, Running& running, T* probabilities, float* mix, int64_t width) {
    __m512 best = _mm512_set1_ps(running.peak);
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t k = 0; k < count; k += 16) {
        const __mmask16 mask = first16(count - k);
        const __m512 scaled = _mm512_mul_ps(load(scores + k, mask), factor);
        _mm512_storeu_ps(scores + k, scaled);
        best = _mm512_mask_max_ps(best, mask, best, scaled);
    }
    const float peak = _mm512_reduce_max_ps(best);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < TILE; k += 16) {
        const __mmask16 mask = count > k ? first16(count - k) : 0;
        const __m512 p = _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(load(scores + k), _mm512_set1_ps(peak))));
        sum = _mm512_add_ps(sum, p);
        store(probabilities + k, p);
    }
    if (count <= 0) return;
    if (running.peak != peak) {
        const float shrink = std::exp(running.peak - peak);
        running.total *= shrink;
        scale_to(mix, shrink, width, mix);
        running.peak = peak;
    }
    running.total += _mm512_reduce_add_ps(sum);
}

}  // namespace dsv3
