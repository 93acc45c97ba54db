// Absorbed attention: a few queries of each sequence over its cached rows, all heads at once.
//
// The keys of a sequence are cut into parts of fixed size, whose softmax sums are merged in order afterwards: threads have
// something to share even in one long sequence, and the result depends on nothing but the sequence.
#include "attention.h"

namespace dsv3 {

constexpr int64_t PART = 1024;

// What `model.step.Absorbed` says: [sequences, queries] twice, [sequences, blocks].
struct Paging {
    const int64_t *tokens, *lengths, *blocks;
    int64_t sequences, queries, blocks_stride, block_size, context;
};

struct AbsorbedQueries;
struct PartialSums;
struct PartialMixes;
struct HeadMix;
struct KeyRows;

template <class T>
class AbsorbedAttention {
  public:
    AbsorbedAttention(const Queries& q, const T* cache, const Paging& paging, const Expansion& expansion, int threads)
        : q_(q), cache_(cache), paging_(paging), expansion_(expansion), threads_(threads) {
        width_ = expansion.latent + q.rope_width;
        padded_ = round_up(width_, P::step);
        rows_ = paging.queries * q.heads;
        parts_ = (paging.context + PART - 1) / PART;
        queries_ = scratch<AbsorbedQueries, T>(paging.sequences * rows_ * padded_);
        running_ = scratch<PartialSums, Running>(paging.sequences * parts_ * rows_);
        mixes_ = scratch<PartialMixes, float>(paging.sequences * parts_ * rows_ * expansion.latent);
    }

    void run(T* out) {
        parallel_for(q_.heads, 1, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t head = begin; head < end; head++) absorb(head);
        });
        parallel_for(paging_.sequences * parts_, 1, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; item++) attend(item / parts_, item % parts_);
        });
        parallel_for(q_.heads, 1, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t head = begin; head < end; head++) expand(head, out);
        });
    }

  private:
    using P = Unscaled<T>;

    int64_t all() const { return paging_.sequences * paging_.queries; }
    T* query(int64_t index, int64_t head) const { return queries_ + (index * q_.heads + head) * padded_; }

    // W_UK of a head applied to all queries, and their rotated part behind it.
    void absorb(int64_t head) {
        const int64_t latent = expansion_.latent;
        const T* weight = static_cast<const T*>(expansion_.up_key) + head * q_.nope_width * latent;
        const T* nope = static_cast<const T*>(q_.nope) + head * q_.nope_head;
        const T* rope = static_cast<const T*>(q_.rope) + head * q_.rope_head;
        auto& rows = *[] { static thread_local std::vector<const T*> reused; return &reused; }();
        rows.resize(q_.nope_width);
        for (int64_t n = 0; n < q_.nope_width; n++) rows[n] = weight + n * latent;
        const Rows<T> view{rows.data(), q_.nope_width, latent, head + 1 < q_.heads ? q_.nope_width * latent : 0};
        T* gathered = scratch<Probabilities, T>(all() * (q_.nope_width + 1));
        float* mixed = scratch<HeadMix, float>(all() * latent);
        for (int64_t i = 0; i < all(); i++) {
            T* to = gathered + i * (q_.nope_width + 1);
            std::memcpy(to, nope + paging_.tokens[i] * q_.nope_token, q_.nope_width * sizeof(T));
            std::memset(to + q_.nope_width, 0, sizeof(T));
        }
        mix(view, gathered, q_.nope_width + 1, all(), mixed, latent, false);
        for (int64_t i = 0; i < all(); i++) {
            T* to = query(i, head);
            convert(mixed + i * latent, latent, to);
            std::memcpy(to + latent, rope + paging_.tokens[i] * q_.rope_token, q_.rope_width * sizeof(T));
            std::memset(to + width_, 0, (padded_ - width_) * sizeof(T));
        }
    }

    // One part of one sequence's keys.
    void attend(int64_t sequence, int64_t part) {
        const int64_t latent = expansion_.latent, first = (sequence * parts_ + part) * rows_;
        Running* running = running_ + first;
        float* mixes = mixes_ + first * latent;
        std::fill(running, running + rows_, Running{});
        const int64_t* lengths = paging_.lengths + sequence * paging_.queries;
        const int64_t longest = *std::max_element(lengths, lengths + paging_.queries);
        const int64_t stop = std::min((part + 1) * PART, longest);
        if (part * PART >= stop) return;
        std::fill(mixes, mixes + rows_ * latent, 0.0f);
        float* scores = scratch<Scores, float>(rows_ * TILE);
        T* probabilities = scratch<Probabilities, T>(rows_ * TILE);
        const int64_t keys = stop - part * PART;
        const T** rows = scratch<KeyRows, const T*>(PART + BLOCK);
        for (int64_t k = 0; k < round_up(keys, BLOCK) + BLOCK; k++)
            rows[k] = cached(sequence, part * PART + std::min(k, keys - 1));
        for (int64_t key = 0; key < keys; key += TILE) {
            const int64_t count = std::min(TILE, keys - key);
            score(query(sequence * paging_.queries, 0), rows + key, count, scores);
            for (int64_t r = 0; r < rows_; r++)
                soften(scores + r * TILE, std::min(count, lengths[r / q_.heads] - part * PART - key), expansion_.scale,
                       running[r], probabilities + r * TILE, mixes + r * latent, latent);
            mix(Rows<T>{rows + key, count, latent, 0}, probabilities, TILE, rows_, mixes, latent, true);
        }
    }

    const T* cached(int64_t sequence, int64_t position) const {
        const int64_t block = paging_.blocks[sequence * paging_.blocks_stride + position / paging_.block_size];
        return cache_ + (block * paging_.block_size + position % paging_.block_size) * width_;
    }

    // scores[row][key] of a tile, behind which a block of rows more is known.
    void score(const T* queries, const T* const* rows, int64_t count, float* scores) {
        const std::vector<Segment> segments{{0, width_, 0}};
        for (int64_t key = 0; key < count; key += BLOCK) {
            RowBlock<P> block;
            std::copy(rows + key, rows + key + BLOCK, block.rows);
            multiply_block<P>(
                block, segments, rows_, [&](int64_t row) { return queries + row * padded_; },
                ahead_of<P>(rows[key + BLOCK], rows[key + BLOCK + HALF], rows_),
                [&](int64_t row, __m128 low, __m128 high) {
                    store4(scores + row * TILE + key, low, 4);
                    store4(scores + row * TILE + key + 4, high, 4);
                });
        }
    }

    // The merged parts of a head through W_UV.
    void expand(int64_t head, T* out) {
        const int64_t latent = expansion_.latent, value = expansion_.value;
        T* merged = scratch<HeadMix, T>(all() * latent);
        for (int64_t i = 0; i < all(); i++) merge(i, head, merged + i * latent);
        const Matrix w{static_cast<const T*>(expansion_.up_value) + head * value * latent, nullptr, value, latent, latent,
                       0, 0, 0, 0, 0, 0, 0, 0};
        const auto segments = segments_of<P>(w);
        const Packed<P> packed(merged, latent, all(), segments);
        for (int64_t row = 0; row < value; row += BLOCK) {
            multiply_block<P>(
                Place::of(w, row), Place::of(w, row + BLOCK), segments, all(), [&](int64_t i) { return packed.row(i); },
                [&](int64_t i, __m128 low, __m128 high) {
                    T* to = out + (i * q_.heads + head) * value + row;
                    store4(to, low, value - row);
                    if (value - row > 4) store4(to + 4, high, value - row - 4);
                });
        }
    }

    // softmax-weighted latents of one query's head: the parts' sums relative to their common peak.
    void merge(int64_t index, int64_t head, T* to) {
        const int64_t latent = expansion_.latent, sequence = index / paging_.queries;
        const int64_t row = index % paging_.queries * q_.heads + head;
        auto at = [&](int64_t part) { return (sequence * parts_ + part) * rows_ + row; };
        float peak = -INFINITE, total = 0;
        for (int64_t part = 0; part < parts_; part++) peak = std::max(peak, running_[at(part)].peak);
        float* sum = scratch<Scores, float>(latent);
        std::fill(sum, sum + latent, 0.0f);
        for (int64_t part = 0; part < parts_; part++) {
            const Running& running = running_[at(part)];
            if (running.total == 0) continue;
            const float weight = std::exp(running.peak - peak);
            total += weight * running.total;
            add_scaled(mixes_ + at(part) * latent, weight, latent, sum);
        }
        scale_to(sum, 1 / total, latent, to);
    }

    const Queries& q_;
    const T* cache_;
    const Paging& paging_;
    const Expansion& expansion_;
    int threads_;
    int64_t width_, padded_, rows_, parts_;
    T* queries_;
    Running* running_;
    float* mixes_;
};

}  // namespace dsv3

using namespace dsv3;

// out [sequences · queries, heads, value]; everything of one type, `type`.
DSV3_EXPORT int32_t dsv3_absorbed_attention(void* out, const Queries* q, const void* cache, const Paging* paging,
                                            const Expansion* expansion, int32_t type, int32_t threads) {
    return with_type(type, [&]<class T>(T*) {
        AbsorbedAttention<T>(*q, static_cast<const T*>(cache), *paging, *expansion, threads).run(static_cast<T*>(out));
    });
}
