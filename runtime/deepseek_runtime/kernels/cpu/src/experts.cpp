// SwiGLU layers: down(silu(gate x) · up x), and the weighted sum of those that a router chose for each token.
#include "matrix.h"

namespace dsv3 {

struct SwiGLU {
    Matrix gate, up, down;
};

// The (token, choice) pairs of each expert, experts without any left out.
struct Groups {
    std::vector<int64_t> experts, starts, pairs;

    Groups(const int64_t* slots, int64_t count, int64_t stack) {
        std::vector<int64_t> place(stack + 1, 0);
        for (int64_t i = 0; i < count; i++)
            if (slots[i] >= 0) place[slots[i] + 1]++;
        for (int64_t e = 0; e < stack; e++) {
            if (place[e + 1]) experts.push_back(e), starts.push_back(place[e]);
            place[e + 1] += place[e];
        }
        starts.push_back(place[stack]);
        pairs.resize(place[stack]);
        for (int64_t i = 0; i < count; i++)
            if (slots[i] >= 0) pairs[place[slots[i]]++] = i;
    }

    int64_t count() const { return experts.size(); }
    int64_t tokens(int64_t group) const { return starts[group + 1] - starts[group]; }
};

// hidden[pair] = silu(gate x) · up x. Blocks are four rows of gate and the same four of up.
template <class P>
void gate_and_up(typename P::X* hidden, const Packed<P>& x, const std::vector<Segment>& segments, const SwiGLU& w,
                 const Groups& groups, int64_t choices, int threads) {
    const int64_t width = w.gate.rows, blocks = (width + HALF - 1) / HALF, all = groups.count() * blocks;
    parallel_for(all, 16, threads, [&](int64_t begin, int64_t end) {
        auto place = [&](int64_t index) {
            const int64_t row = index % blocks * HALF;
            return Place{w.gate, w.up, row, row, groups.experts[index / blocks]};
        };
        for (int64_t index = begin; index < end; index++) {
            const int64_t group = index / blocks, row = index % blocks * HALF, first = groups.starts[group];
            multiply_block<P>(
                place(index), place(std::min(index + 1, all - 1)), segments, groups.tokens(group),
                [&](int64_t m) { return x.row(groups.pairs[first + m] / choices); },
                [&](int64_t m, __m128 gate, __m128 up) {
                    store4(hidden + (first + m) * width + row, _mm_mul_ps(silu(gate), up), width - row);
                });
        }
    });
}

// out[token] += weight · down hidden, experts in the order of their slots: a thread has its own columns of every token.
template <class P>
void down(float* out, const Packed<P>& hidden, const std::vector<Segment>& segments, const SwiGLU& w,
          const Groups& groups, const float* weights, int64_t choices, int threads) {
    const int64_t width = w.down.rows, blocks = (width + BLOCK - 1) / BLOCK;
    parallel_for(blocks, 8, threads, [&](int64_t begin, int64_t end) {
        const int64_t own = end - begin, all = groups.count() * own;
        auto place = [&](int64_t index) {
            return Place::of(w.down, (begin + index % own) * BLOCK, groups.experts[index / own]);
        };
        for (int64_t index = 0; index < all; index++) {
            const int64_t group = index / own, row = (begin + index % own) * BLOCK, left = width - row;
            const int64_t first = groups.starts[group];
            multiply_block<P>(
                place(index), place(std::min(index + 1, all - 1)), segments, groups.tokens(group),
                [&](int64_t m) { return hidden.row(first + m); },
                [&](int64_t m, __m128 low, __m128 high) {
                    const int64_t pair = groups.pairs[first + m];
                    float* to = out + pair / choices * width + row;
                    const __m256 sums = _mm256_mul_ps(_mm256_set_m128(high, low), _mm256_set1_ps(weights[pair]));
                    const __mmask8 mask = left >= BLOCK ? 0xFF : (1 << left) - 1;
                    _mm256_mask_storeu_ps(to, mask, _mm256_add_ps(_mm256_maskz_loadu_ps(mask, to), sums));
                });
        }
    });
}

struct HiddenRows;

template <class P>
void experts(float* out, const typename P::X* x, int64_t x_stride, int64_t tokens, const Groups& groups,
             const float* weights, int64_t choices, const SwiGLU& w, int threads) {
    using X = typename P::X;
    std::fill(out, out + tokens * w.down.rows, 0.0f);
    if (!groups.count()) return;
    const int64_t pairs = groups.pairs.size(), width = w.gate.rows;
    X* hidden = scratch<HiddenRows, X>(pairs * width);
    {
        const auto segments = segments_of<P>(w.gate);
        gate_and_up<P>(hidden, Packed<P>(x, x_stride, tokens, segments), segments, w, groups, choices, threads);
    }
    const auto segments = segments_of<P>(w.down);
    down<P>(out, Packed<P>(hidden, width, pairs, segments), segments, w, groups, weights, choices, threads);
}

struct WideResult;

}  // namespace dsv3

using namespace dsv3;

// out [tokens, D] of x's type: one layer for all tokens.
DSV3_EXPORT int32_t dsv3_swiglu(void* out, const void* x, int32_t x_type, int64_t x_stride, int64_t tokens,
                                const SwiGLU* w, int32_t threads) {
    return !with_policy(x_type, w->gate.type, [&]<class P>(P) {
        using X = typename P::X;
        const std::vector<int64_t> slots(tokens, 0);
        const std::vector<float> weights(tokens, 1.0f);
        float* wide = scratch<WideResult, float>(tokens * w->down.rows);
        experts<P>(wide, static_cast<const X*>(x), x_stride, tokens, Groups(slots.data(), tokens, 1), weights.data(), 1, *w,
                   threads);
        convert(wide, tokens * w->down.rows, static_cast<X*>(out));
    });
}

// out [tokens, D] float32: the sum over `choices` experts of each token, slot -1 meaning none.
// 1 where the types have no kernel.
DSV3_EXPORT int32_t dsv3_experts(float* out, const void* x, int32_t x_type, int64_t x_stride, int64_t tokens,
                                 const int64_t* slots, const float* weights, int64_t choices, int64_t stack,
                                 const SwiGLU* w, int32_t threads) {
    return !with_policy(x_type, w->gate.type, [&]<class P>(P) {
        const Groups groups(slots, tokens * choices, stack);
        experts<P>(out, static_cast<const typename P::X*>(x), x_stride, tokens, groups, weights, choices, *w, threads);
    });
}
