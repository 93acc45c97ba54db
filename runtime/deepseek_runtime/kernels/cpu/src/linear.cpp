// x [tokens, columns] times weightᵀ.
#include "matrix.h"

namespace dsv3 {

// Activations of one pass over the weights stay in the second-level cache.
constexpr int64_t PASS_BYTES = 384 * 1024;

template <class P, class Out>
void linear(Out* out, const typename P::X* x, int64_t x_stride, int64_t tokens, const Matrix& w, int threads) {
    const auto segments = segments_of<P>(w);
    const Packed<P> packed(x, x_stride, tokens, segments);
    const int64_t width = packed_width(segments, P::step) * sizeof(typename P::X);
    const int64_t pass = std::max<int64_t>(12, PASS_BYTES / width / 3 * 3);
    for (int64_t first = 0; first < tokens; first += pass) {
        const int64_t count = std::min(pass, tokens - first);
        const int64_t blocks = (w.rows + BLOCK - 1) / BLOCK;
        parallel_for(blocks, 8, threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin * BLOCK; row < std::min(end * BLOCK, w.rows); row += BLOCK) {
                const int64_t left = w.rows - row;
                multiply_block<P>(
                    Place::of(w, row), Place::of(w, row + BLOCK), segments, count,
                    [&](int64_t token) { return packed.row(first + token); },
                    [&](int64_t token, __m128 low, __m128 high) {
                        Out* to = out + (first + token) * w.rows + row;
                        store4(to, low, left);
                        if (left > 4) store4(to + 4, high, left - 4);
                    });
            }
        });
    }
}

}  // namespace dsv3

using namespace dsv3;

int32_t dsv3_linear(void* out, const void* x, int32_t x_type, int64_t x_stride, int64_t tokens, const Matrix* w,
                    int32_t threads) {
    return !with_policy(x_type, w->type, [&]<class P>(P) {
        using X = typename P::X;
        linear<P>(static_cast<X*>(out), static_cast<const X*>(x), x_stride, tokens, *w, threads);
    });
}
