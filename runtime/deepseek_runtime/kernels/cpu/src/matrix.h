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

constexpr int BLOCK = 8;

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

// Eight weight rows, the last one repeated where there are fewer, with the scales of their blocks.
template <class P>
struct RowBlock {
    const typename P::W* rows[BLOCK];
    const float* scales[BLOCK];

    // Row r of `half` rows comes from `w`, of the other half (for gate and up together) from `other`.
    void take(const Matrix& w, int64_t slot, int64_t first, int from, int to) {
        const auto* values = static_cast<const typename P::W*>(w.values) + slot * w.stack_stride;
        for (int r = from; r < to; r++) {
            const int64_t row = std::min(first + r - from, w.rows - 1);
            rows[r] = values + row * w.stride;
            if (P::scaled)
                scales[r] = w.scale + slot * w.scale_stack_stride + (w.row_offset + row) / w.block_rows * w.scale_stride;
        }
    }
};

// What to fetch while a block is multiplied by so many tokens: the next block's rows, which lie `BLOCK / 2`
// together. Measured on Zen 5: the processor's own prefetching is better where each row is just streamed, apart from a
// row's first lines, and blind to the gaps of computation otherwise.
template <class P>
Ahead ahead_of(const RowBlock<P>& next, int64_t tokens) {
    constexpr int lines_of_step = BLOCK / 2 * (P::step * sizeof(typename P::W)) / 64;
    Ahead ahead;
    if (tokens <= 2 && !P::scaled) {
        for (const auto* row : next.rows)
            for (int line = 0; line < 2; line++) _mm_prefetch(reinterpret_cast<const char*>(row) + 64 * line, _MM_HINT_T0);
        return ahead;
    }
    ahead.at[0] = reinterpret_cast<const char*>(next.rows[0]);
    ahead.at[1] = reinterpret_cast<const char*>(next.rows[BLOCK / 2]);
    const int64_t tiles = (tokens + 2) / 3;
    ahead.lines = static_cast<int>((lines_of_step + tiles - 1) / tiles);
    return ahead;
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
    while (tokens - m > 4 || tokens - m == 3) run(m, std::integral_constant<int, 3>{}), m += 3;
    while (tokens - m >= 2) run(m, std::integral_constant<int, 2>{}), m += 2;
    if (m < tokens) run(m, std::integral_constant<int, 1>{});
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
