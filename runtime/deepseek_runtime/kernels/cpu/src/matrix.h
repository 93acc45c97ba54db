// Weights as the callers describe them, activations packed for a policy, and blocks of eight rows times all tokens.
#pragma once

#include <cstring>

#include "dot.h"
#include "parallel.h"

namespace dsv3 {

enum Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT8 = 2 };

// A matrix [rows, columns], or a stack of them. `scale` and what follows matter to FLOAT8 only: one multiplier per block,
// counted in the whole matrix of which this is the part that begins `row_offset`, `column_offset` within its first block.
// The layout is that of `kernels.Matrix` in Python.
struct Matrix {
    const void* values;
    const float* scale;
    int64_t rows, columns, stride, stack_stride;
    int64_t scale_stride, scale_stack_stride;
    int64_t block_rows, block_columns, row_offset, column_offset;
    int32_t type;
};

constexpr int BLOCK = 8, HALF = BLOCK / 2;

// The segments of a row, and where each begins in packed activations.
template <class P>
std::vector<Segment> segments_of(const Matrix& w) {
    std::vector<Segment> segments;
    int64_t packed = 0;
    for (int64_t at = 0; at < w.columns;) {
        int64_t count = w.columns - at;
        if (P::scaled) count = std::min(count, w.block_columns - (w.column_offset + at) % w.block_columns);
        segments.push_back({at, count, packed});
        at += count;
        packed += round_up(count, P::step);
    }
    return segments;
}

inline int64_t packed_width(const std::vector<Segment>& segments, int64_t step) {
    return segments.empty() ? 0 : segments.back().packed + round_up(segments.back().count, step);
}

// Rows of activations in the order a policy wants them, padded with zeros; the given rows themselves where that is it.
template <class P>
class Packed {
  public:
    using X = typename P::X;

    Packed(const X* x, int64_t stride, int64_t rows, const std::vector<Segment>& segments) : rows_(rows) {
        const auto& last = segments.back();
        at_ = x, stride_ = stride;
        if (P::ordered && last.count % P::step == 0) return;
        stride_ = packed_width(segments, P::step);
        X* to = scratch<P, X>(rows * stride_);
        for (int64_t row = 0; row < rows; row++)
            for (const auto& s : segments) pack(x + row * stride + s.at, s.count, to + row * stride_ + s.packed);
        at_ = to;
    }

    const X* row(int64_t index) const { return at_ + index * stride_; }
    int64_t rows() const { return rows_; }

  private:
    static void pack(const X* from, int64_t count, X* to) {
        int64_t k = 0;
        for (; k + P::step <= count; k += P::step) P::pack(from + k, to + k);
        if (k == count) return;
        X last[P::step] = {};
        std::memcpy(last, from + k, (count - k) * sizeof(X));
        P::pack(last, to + k);
    }

    const X* at_;
    int64_t stride_, rows_;
};

// Row `row` of matrix `slot` of a stack, the last one where there are fewer.
template <class P>
const typename P::W* row_at(const Matrix& w, int64_t slot, int64_t row) {
    return static_cast<const typename P::W*>(w.values) + slot * w.stack_stride + std::min(row, w.rows - 1) * w.stride;
}

// Where eight weight rows lie: four that begin at row `first` of `a`, and four at `second` of `b`, the last ones repeated
// where there are fewer.
struct Place {
    const Matrix &a, &b;
    int64_t first, second, slot;

    // Eight rows of one matrix.
    static Place of(const Matrix& w, int64_t row, int64_t slot = 0) { return {w, w, row, row + HALF, slot}; }

    bool whole() const { return first + HALF <= a.rows && second + HALF <= b.rows; }

    const Matrix& matrix(int r) const { return r < HALF ? a : b; }
    int64_t row(int r) const { return std::min(r < HALF ? first + r : second + r - HALF, matrix(r).rows - 1); }

    // The multipliers of row r's blocks.
    const float* scales(int r) const {
        const Matrix& w = matrix(r);
        return w.scale + slot * w.scale_stack_stride + (w.row_offset + row(r)) / w.block_rows * w.scale_stride;
    }
};

// Eight weight rows that lie anywhere, with the scales of their blocks.
template <class P>
struct RowBlock {
    const typename P::W* rows[BLOCK];
    const float* scales[BLOCK];

    RowBlock() = default;
    explicit RowBlock(const Place& place) {
        for (int r = 0; r < BLOCK; r++) {
            rows[r] = row_at<P>(place.matrix(r), place.slot, place.row(r));
            if (P::scaled) scales[r] = place.scales(r);
        }
    }
};

// Cache lines of the rows of half a block in one step.
template <class P>
constexpr int lines_of_step = HALF * P::step * sizeof(typename P::W) / 64;

// Tokens of a tile. Eight rows with three would need two registers more than there are, besides addresses, and be a sixth
// slower; four rows with three fit.
template <class P>
constexpr int most_tokens = P::scaled ? 3 : 2;

// What to fetch while a block is multiplied by so many tokens: eight rows that come next, four from `a` and four from `b`.
// Measured on Zen 5: the processor's own prefetching is better where bf16 rows are just streamed, and blind behind the
// gaps of computation otherwise.
template <class P>
Ahead ahead_of(const typename P::W* a, const typename P::W* b, int64_t tokens) {
    Ahead ahead{{reinterpret_cast<const char*>(a), reinterpret_cast<const char*>(b)}};
    const int64_t tiles = (tokens + 2) / 3;  // as if all had three tokens, which is early enough
    if (tokens > 2 || P::scaled) ahead.lines = (lines_of_step<P> + tiles - 1) / tiles;
    return ahead;
}
template <class P>
Ahead ahead_of(const Place& next, int64_t tokens) {
    return ahead_of<P>(row_at<P>(next.a, next.slot, next.first), row_at<P>(next.b, next.slot, next.second), tokens);
}

// The sums of a whole block for one token, in the order in which `tile` adds.
//
// Inlined, so that addresses stay in registers: were they read back from memory that was just written in other widths, each
// block would wait until the one before it has arrived, which cost a third of a core's bandwidth.
template <class P>
inline __attribute__((always_inline)) __m256 multiply_one(const Place& place, const Place& next,
                                                          const std::vector<Segment>& segments, const typename P::X* x) {
    constexpr int lanes = 64 / sizeof(typename P::X);
    const auto *a = row_at<P>(place.a, place.slot, place.first), *b = row_at<P>(place.b, place.slot, place.second);
    const int64_t stride_a = place.a.stride, stride_b = place.b.stride;
    Ahead ahead;
    if constexpr (P::scaled) ahead = ahead_of<P>(next, 1);
    __m512 sum[BLOCK], total[BLOCK];
    const float* scales[BLOCK];
    if constexpr (P::scaled)
        for (int r = 0; r < BLOCK; r++) scales[r] = place.scales(r);
#pragma GCC unroll 8
    for (int r = 0; r < BLOCK; r++) sum[r] = total[r] = _mm512_setzero_ps();
    for (size_t s = 0; s < segments.size(); s++) {
        const Segment segment = segments[s];
        const auto *low = a + segment.at, *high = b + segment.at;
        const auto* activations = x + segment.packed;
        auto step = [&](auto&& load_weights) __attribute__((always_inline)) {
            typename P::Vector v[P::vectors];
#pragma GCC unroll 8
            for (int i = 0; i < P::vectors; i++) v[i] = P::activations(activations + i * lanes);
#pragma GCC unroll 8
            for (int r = 0; r < BLOCK; r++) {
                typename P::Vector w[P::vectors];
                load_weights(r < HALF ? low + r * stride_a : high + (r - HALF) * stride_b, w);
#pragma GCC unroll 8
                for (int i = 0; i < P::vectors; i++) sum[r] = P::add_product(sum[r], w[i], v[i]);
            }
            low += P::step, high += P::step, activations += P::step;
            if constexpr (P::scaled) ahead.template fetch<lines_of_step<P>>();
        };
        int64_t left = segment.count;
        for (; left >= P::step; left -= P::step) step([](const auto* w, auto* v) { P::weights(w, v); });
        if (left) step([&](const auto* w, auto* v) { P::weights(w, left, v); });
        if constexpr (P::scaled) {
#pragma GCC unroll 8
            for (int r = 0; r < BLOCK; r++) {
                total[r] = _mm512_fmadd_ps(sum[r], _mm512_set1_ps(scales[r][s]), total[r]);
                sum[r] = _mm512_setzero_ps();
            }
        }
    }
    const auto& all = P::scaled ? total : sum;
    return _mm256_set_m128(lane_sums(all[4], all[5], all[6], all[7]), lane_sums(all[0], all[1], all[2], all[3]));
}

// sink(token, low, high) gets the sums of a block's rows 0-3 and 4-7 for every token; x(token) is its packed row.
template <class P, class Rows, class Sink>
void multiply_block(const RowBlock<P>& block, const std::vector<Segment>& segments, int64_t tokens, Rows&& x,
                    Ahead ahead, Sink&& sink) {
    auto run = [&](int64_t m, auto width) {
        constexpr int C = decltype(width)::value;
        const typename P::X* rows[C];
        for (int c = 0; c < C; c++) rows[c] = x(m + c);
        __m128 sums[C][2];
        if constexpr (!P::scaled || C == 1) {
            tile<P, 8, C>(block.rows, rows, segments.data(), segments.size(), block.scales, ahead, sums);
        } else {
            // Two accumulators per sum: half as many rows fit into the registers.
            for (int half = 0; half < 2; half++) {
                __m128 four[C][1];
                tile<P, 4, C>(block.rows + 4 * half, rows, segments.data(), segments.size(), block.scales + 4 * half,
                              ahead, four);
                for (int c = 0; c < C; c++) sums[c][half] = four[c][0];
            }
        }
        for (int c = 0; c < C; c++) sink(m + c, sums[c][0], sums[c][1]);
    };
    int64_t m = 0;
    if constexpr (most_tokens<P> == 3)
        while (tokens - m > 4 || tokens - m == 3) run(m, std::integral_constant<int, 3>{}), m += 3;
    while (tokens - m >= 2) run(m, std::integral_constant<int, 2>{}), m += 2;
    if (m < tokens) run(m, std::integral_constant<int, 1>{});
}

// The same for rows at a place, with those at `next` fetched meanwhile.
template <class P, class Rows, class Sink>
inline __attribute__((always_inline)) void multiply_block(const Place& place, const Place& next,
                                                          const std::vector<Segment>& segments, int64_t tokens, Rows&& x,
                                                          Sink&& sink) {
    if (tokens == 1 && place.whole()) {
        const __m256 sums = multiply_one<P>(place, next, segments, x(0));
        return sink(0, _mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    }
    multiply_block<P>(RowBlock<P>(place), segments, tokens, x, ahead_of<P>(next, tokens), sink);
}

// Calls f with the policy for activations and weights of these types; false where there is none.
template <class F>
bool with_policy(int32_t x, int32_t w, F&& f) {
    if (x == BFLOAT16 && w == BFLOAT16) return f(Bf16ByBf16{}), true;
    if (x == BFLOAT16 && w == FLOAT8) return f(Bf16ByE4m3{}), true;
    if (x == FLOAT32 && w == FLOAT32) return f(FloatByFloat{}), true;
    if (x == FLOAT32 && w == BFLOAT16) return f(FloatByBf16{}), true;
    if (x == FLOAT32 && w == FLOAT8) return f(FloatByE4m3{}), true;
    return false;
}

// Calls f with a null pointer of the element type; 1 where it is none of activations'.
template <class F>
int32_t with_type(int32_t type, F&& f) {
    if (type == BFLOAT16) return f(static_cast<Bf16*>(nullptr)), 0;
    if (type == FLOAT32) return f(static_cast<float*>(nullptr)), 0;
    return 1;
}

}  // namespace dsv3

// 0, or 1 where the types have no kernel. `out` is [tokens, w.rows] of x's type.
DSV3_EXPORT int32_t dsv3_linear(void* out, const void* x, int32_t x_type, int64_t x_stride, int64_t tokens,
                                const dsv3::Matrix* w, int32_t threads);
