// Expanded attention: many queries of one sequence over its context, keys and values of each head computed from latents.
//
// Per head and chunk of the context they fit into the second-level cache and are gone afterwards: memory does not grow
// with the context, and what the causal mask hides is not computed.
#include "attention.h"

namespace dsv3 {

constexpr int64_t CHUNK = 1024, QUERIES = 48;

struct Latents;
struct Keys;
struct Values;
struct QueryRows;
struct RunningSums;
struct RunningMixes;

template <class T>
class ExpandedAttention {
  public:
    ExpandedAttention(const Queries& q, const T* cache, const int64_t* slots, int64_t context, int64_t tokens,
                      const Expansion& expansion, int threads)
        : q_(q), cache_(cache), slots_(slots), context_(context), tokens_(tokens), expansion_(expansion),
          threads_(threads) {
        width_ = q.nope_width + q.rope_width;
        padded_ = round_up(expansion.latent, P::step);
        latents_ = scratch<Latents, T>(CHUNK * padded_);
        running_ = scratch<RunningSums, Running>(q.heads * tokens);
        mixes_ = scratch<RunningMixes, float>(q.heads * tokens * expansion.value);
    }

    void run(T* out) {
        std::fill(running_, running_ + q_.heads * tokens_, Running{});
        std::fill(mixes_, mixes_ + q_.heads * tokens_ * expansion_.value, 0.0f);
        for (int64_t first = 0; first < context_; first += CHUNK) {
            const int64_t count = std::min(CHUNK, context_ - first);
            parallel_for(count, 64, threads_, [&](int64_t begin, int64_t end) { gather(first, begin, end); });
            parallel_for(q_.heads, 1, threads_, [&](int64_t begin, int64_t end) {
                for (int64_t head = begin; head < end; head++) attend(head, first, count);
            });
        }
        parallel_for(tokens_ * q_.heads, 64, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                const int64_t from = i % q_.heads * tokens_ + i / q_.heads;
                scale_to(mixes_ + from * expansion_.value, 1 / running_[from].total, expansion_.value,
                         out + i * expansion_.value);
            }
        });
    }

  private:
    using P = Unscaled<T>;

    // The chunk's latents one after another, padded for the dot products.
    void gather(int64_t first, int64_t begin, int64_t end) {
        const int64_t latent = expansion_.latent;
        for (int64_t k = begin; k < end; k++) {
            std::memcpy(latents_ + k * padded_, row(first + k), latent * sizeof(T));
            std::memset(latents_ + k * padded_ + latent, 0, (padded_ - latent) * sizeof(T));
        }
    }

    const T* row(int64_t position) const {
        return cache_ + slots_[position] * (expansion_.latent + q_.rope_width);
    }

    // A head's queries that see keys [first, first + count), tile by tile.
    void attend(int64_t head, int64_t first, int64_t count) {
        const int64_t stride = round_up(count, TILE) + 32;  // rows a power of two apart would share few cache sets
        T* keys = scratch<Keys, T>((width_ + 1) * stride);
        T* values = scratch<Values, T>(round_up(count, BLOCK) * expansion_.value);
        expand_keys(head, first, count, keys, stride);
        expand_values(head, count, values);
        const int64_t cached = context_ - tokens_;
        // Whole tiles of queries, from the one that holds the first to see this chunk.
        for (int64_t t = std::max<int64_t>(0, first - cached) / QUERIES * QUERIES; t < tokens_; t += QUERIES)
            attend_tile(head, t, std::min(QUERIES, tokens_ - t), first, count, keys, stride, values);
    }

    void attend_tile(int64_t head, int64_t t, int64_t queries, int64_t first, int64_t count, const T* keys,
                     int64_t stride, const T* values) {
        const int64_t value = expansion_.value, last = context_ - tokens_ + t + queries - 1;
        const T* rows = gather_queries(head, t, queries);
        float* scores = scratch<Scores, float>(QUERIES * TILE);
        T* probabilities = scratch<Probabilities, T>(QUERIES * TILE);
        float* mixes = mixes_ + (head * tokens_ + t) * value;
        auto& pointers = *[] { static thread_local std::vector<const T*> reused; return &reused; }();
        pointers.resize(std::max(width_, TILE));
        for (int64_t key = 0; key < count && first + key <= last; key += TILE) {
            const int64_t visible = std::min(TILE, count - key);
            for (int64_t d = 0; d < width_; d++) pointers[d] = keys + d * stride + key;
            mix(Rows<T>{pointers.data(), width_, TILE, 0}, rows, width_ + 1, queries, scores, TILE, false);
            for (int64_t q = 0; q < queries; q++)
                soften(scores + q * TILE, std::min(visible, last - queries + 1 + q - first - key + 1), expansion_.scale,
                       running_[head * tokens_ + t + q], probabilities + q * TILE, mixes + q * value, value);
            for (int64_t k = 0; k < visible; k++) pointers[k] = values + (key + k) * value;
            mix(Rows<T>{pointers.data(), visible, value, 0}, probabilities, TILE, queries, mixes, value, true);
        }
    }

    // [nope | rope] of each query, with the one number more that pairs of an odd width read.
    const T* gather_queries(int64_t head, int64_t t, int64_t queries) {
        T* rows = scratch<QueryRows, T>(QUERIES * (width_ + 1));
        for (int64_t q = 0; q < queries; q++) {
            T* to = rows + q * (width_ + 1);
            const T* nope = static_cast<const T*>(q_.nope) + (t + q) * q_.nope_token + head * q_.nope_head;
            const T* rope = static_cast<const T*>(q_.rope) + (t + q) * q_.rope_token + head * q_.rope_head;
            std::memcpy(to, nope, q_.nope_width * sizeof(T));
            std::memcpy(to + q_.nope_width, rope, q_.rope_width * sizeof(T));
            std::memset(to + width_, 0, sizeof(T));
        }
        return rows;
    }

    // Keys of a head, transposed: [nope + rope, count].
    void expand_keys(int64_t head, int64_t first, int64_t count, T* keys, int64_t stride) {
        const int64_t latent = expansion_.latent, rope = q_.rope_width;
        const T* weight = static_cast<const T*>(expansion_.up_key) + head * q_.nope_width * latent;
        const std::vector<Segment> segments{{0, latent, 0}};
        const Packed<P> packed(weight, latent, q_.nope_width, segments);
        const Matrix latents{latents_, nullptr, count, latent, padded_, 0, 0, 0, 0, 0, 0, 0, 0};
        for (int64_t key = 0; key < count; key += BLOCK) {
            multiply_block<P>(
                Place::of(latents, key), Place::of(latents, key + BLOCK), segments, q_.nope_width,
                [&](int64_t n) { return packed.row(n); },
                [&](int64_t n, __m128 low, __m128 high) {
                    store4(keys + n * stride + key, low, 4);
                    store4(keys + n * stride + key + 4, high, 4);
                });
        }
        for (int64_t key = 0; key < count; key++) {
            const T* from = row(first + key) + latent;
            for (int64_t r = 0; r < rope; r++) keys[(q_.nope_width + r) * stride + key] = from[r];
        }
        // What a last tile reads behind the keys is masked later, but must not be infinite.
        for (int64_t d = 0; d < width_; d++)
            std::memset(keys + d * stride + count, 0, (round_up(count, TILE) - count) * sizeof(T));
    }

    // Values of a head [count, value].
    void expand_values(int64_t head, int64_t count, T* values) {
        const int64_t latent = expansion_.latent, value = expansion_.value;
        const Matrix w{static_cast<const T*>(expansion_.up_value) + head * value * latent, nullptr, value, latent, latent,
                       0, 0, 0, 0, 0, 0, 0, 0};
        const std::vector<Segment> segments{{0, latent, 0}};
        for (int64_t row = 0; row < value; row += BLOCK) {
            multiply_block<P>(
                Place::of(w, row), Place::of(w, row + BLOCK), segments, count,
                [&](int64_t key) { return latents_ + key * padded_; },
                [&](int64_t key, __m128 low, __m128 high) {
                    T* to = values + key * value + row;
                    store4(to, low, value - row);
                    if (value - row > 4) store4(to + 4, high, value - row - 4);
                });
        }
    }

    const Queries& q_;
    const T* cache_;
    const int64_t* slots_;
    int64_t context_, tokens_;
    const Expansion& expansion_;
    int threads_;
    int64_t width_, padded_;
    T* latents_;
    Running* running_;
    float* mixes_;
};

}  // namespace dsv3

using namespace dsv3;

// out [tokens, heads, value] of the last `tokens` positions of a context whose rows lie in `slots`.
DSV3_EXPORT int32_t dsv3_expanded_attention(void* out, const Queries* q, const void* cache, const int64_t* slots,
                                            int64_t context, int64_t tokens, const Expansion* expansion, int32_t type,
                                            int32_t threads) {
    return with_type(type, [&]<class T>(T*) {
        ExpandedAttention<T>(*q, static_cast<const T*>(cache), slots, context, tokens, *expansion, threads)
            .run(static_cast<T*>(out));
    });
}
