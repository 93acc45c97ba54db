// Root-mean-square norms, rotary embedding, and the two together on the way to the latent cache. All in float32.
#include <cmath>

#include "matrix.h"

namespace dsv3 {

// to = x / √(mean(x²) + eps) · weight.
template <class T>
void rms_norm(const T* x, const T* weight, float eps, int64_t width, T* to) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 v = load(x + i, first16(width - i));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = first16(width - i);
        store(to + i, _mm512_mul_ps(_mm512_mul_ps(load(x + i, mask), factor), load(weight + i, mask)), mask);
    }
}

// Rotates the pairs (2i, 2i + 1) of x by rotations [cos, sin] of each pair.
template <class T>
void rotate(const T* x, const float* rotations, int64_t width, T* to) {
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = first16(width - i);
        const __m512 v = load(x + i, mask), r = load(rotations + i, mask);
        const __m512 crossed = _mm512_mul_ps(_mm512_permute_ps(v, 0xB1), _mm512_movehdup_ps(r));
        store(to + i, _mm512_fmaddsub_ps(v, _mm512_moveldup_ps(r), crossed), mask);
    }
}

template <class T>
void add(const T* a, const T* b, int64_t width, T* to) {
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = first16(width - i);
        store(to + i, _mm512_add_ps(load(a + i, mask), load(b + i, mask)), mask);
    }
}

// Rows worth a thread's time.
constexpr int64_t ROWS = 16;

}  // namespace dsv3

using namespace dsv3;

// to [rows, width]; with `added`, x + added goes to `summed` first and is what is normalised.
DSV3_EXPORT int32_t dsv3_rms_norm(void* to, void* summed, const void* x, const void* added, const void* weight, float eps,
                                  int64_t rows, int64_t stride, int64_t width, int32_t type, int32_t threads) {
    return with_type(type, [&]<class T>(T*) {
        parallel_for(rows, ROWS, threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row++) {
                const T* from = static_cast<const T*>(x) + row * stride;
                if (added) {
                    T* sum = static_cast<T*>(summed) + row * width;
                    add(from, static_cast<const T*>(added) + row * width, width, sum);
                    from = sum;
                }
                rms_norm(from, static_cast<const T*>(weight), eps, width, static_cast<T*>(to) + row * width);
            }
        });
    });
}

// to [tokens, heads, width] from x with strides of tokens and heads; one row of rotations a token.
DSV3_EXPORT int32_t dsv3_rotate(void* to, const void* x, const float* rotations, int64_t tokens, int64_t heads,
                                int64_t width, int64_t token_stride, int64_t head_stride, int32_t type, int32_t threads) {
    return with_type(type, [&]<class T>(T*) {
        parallel_for(tokens, ROWS, threads, [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; token++)
                for (int64_t head = 0; head < heads; head++)
                    rotate(static_cast<const T*>(x) + token * token_stride + head * head_stride,
                           rotations + token * width, width, static_cast<T*>(to) + (token * heads + head) * width);
        });
    });
}

// Rows [latent | key] of `joined` to the cache: the latent normalised, the key rotated.
DSV3_EXPORT int32_t dsv3_write_latents(void* cache, const int64_t* slots, const void* joined, const void* weight,
                                       float eps, const float* rotations, int64_t tokens, int64_t stride, int64_t latent,
                                       int64_t key, int32_t type, int32_t threads) {
    return with_type(type, [&]<class T>(T*) {
        parallel_for(tokens, ROWS, threads, [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; token++) {
                const T* from = static_cast<const T*>(joined) + token * stride;
                T* to = static_cast<T*>(cache) + slots[token] * (latent + key);
                rms_norm(from, static_cast<const T*>(weight), eps, latent, to);
                rotate(from + latent, rotations + token * key, key, to + latent);
            }
        });
    });
}
