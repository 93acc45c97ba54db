// Which experts a token visits, and with what weight; float32 throughout. Equal scores go to the lowest id.
#include <cmath>
#include <limits>

#include "matrix.h"

namespace dsv3 {

// As `model.config.RouterConfig`.
struct Routing {
    int64_t experts, chosen, groups, chosen_groups, group_best;  // a group's score is the sum of its best `group_best`
    int32_t softmax, normalise;
    float scale;
};

constexpr float NONE = -std::numeric_limits<float>::infinity();

struct Logits;
struct Inputs;

// Ids of the `count` largest values, the first of equal ones first; a taken value is set to minus infinity.
inline void take_best(float* values, int64_t size, int64_t count, int64_t* ids, float* best) {
    for (int64_t k = 0; k < count; k++) {
        int64_t at = -1;
        for (int64_t i = 0; i < size; i++)
            if (values[i] != NONE && (at < 0 || values[i] > values[at])) at = i;
        at = std::max<int64_t>(at, 0);
        ids[k] = at;
        best[k] = values[at];
        values[at] = NONE;
    }
}

inline void score(float* values, const Routing& routing) {
    if (!routing.softmax) {
        for (int64_t e = 0; e < routing.experts; e++) values[e] = 1.0f / (1.0f + std::exp(-values[e]));
        return;
    }
    const float peak = *std::max_element(values, values + routing.experts);
    float sum = 0;
    for (int64_t e = 0; e < routing.experts; e++) sum += values[e] = std::exp(values[e] - peak);
    for (int64_t e = 0; e < routing.experts; e++) values[e] /= sum;
}

class Router {
  public:
    explicit Router(const Routing& routing)
        : routing_(routing), choice_(routing.experts), copy_(routing.experts), group_(routing.groups),
          best_(std::max(routing.experts, routing.chosen)), ids_(best_.size()) {}

    // Chooses by biased scores within the best groups, weighs by the unbiased ones; `scores` holds logits at first.
    void choose(float* scores, const float* bias, int64_t* ids, float* weights) {
        score(scores, routing_);
        for (int64_t e = 0; e < routing_.experts; e++) choice_[e] = bias ? scores[e] + bias[e] : scores[e];
        if (routing_.groups > 1) mask_groups();
        take_best(choice_.data(), routing_.experts, routing_.chosen, ids, best_.data());
        float sum = 1e-20f;
        for (int64_t k = 0; k < routing_.chosen; k++) sum += weights[k] = scores[ids[k]];
        for (int64_t k = 0; k < routing_.chosen; k++)
            weights[k] = (routing_.normalise ? weights[k] / sum : weights[k]) * routing_.scale;
    }

  private:
    // Minus infinity for the experts outside the best groups: zero would win over negative biased scores.
    void mask_groups() {
        const int64_t size = routing_.experts / routing_.groups, best = std::min(routing_.group_best, size);
        copy_ = choice_;
        for (int64_t g = 0; g < routing_.groups; g++) {
            take_best(copy_.data() + g * size, size, best, ids_.data(), best_.data());
            group_[g] = 0;
            for (int64_t k = 0; k < best; k++) group_[g] += best_[k];
        }
        take_best(group_.data(), routing_.groups, routing_.chosen_groups, ids_.data(), best_.data());
        const auto kept = ids_.begin() + routing_.chosen_groups;
        for (int64_t g = 0; g < routing_.groups; g++)
            if (std::find(ids_.begin(), kept, g) == kept)
                std::fill_n(choice_.begin() + g * size, size, NONE);
    }

    const Routing& routing_;
    std::vector<float> choice_, copy_, group_, best_;
    std::vector<int64_t> ids_;
};

}  // namespace dsv3

using namespace dsv3;

DSV3_EXPORT void dsv3_route(int64_t* ids, float* weights, const void* x, int32_t x_type, int64_t x_stride, int64_t tokens,
                            const float* bias, const Matrix* gate, const Routing* routing, int32_t threads) {
    const int64_t experts = routing->experts, width = gate->columns;
    float* logits = scratch<Logits, float>(tokens * experts);
    const float* inputs = static_cast<const float*>(x);
    if (x_type == BFLOAT16) {
        float* wide = scratch<Inputs, float>(tokens * width);
        for (int64_t t = 0; t < tokens; t++) convert(static_cast<const Bf16*>(x) + t * x_stride, width, wide + t * width);
        inputs = wide, x_stride = width;
    }
    dsv3_linear(logits, inputs, FLOAT32, x_stride, tokens, gate, threads);
    parallel_for(tokens, 4, threads, [&](int64_t begin, int64_t end) {
        Router router(*routing);
        for (int64_t t = begin; t < end; t++)
            router.choose(logits + t * experts, bias, ids + t * routing->chosen, weights + t * routing->chosen);
    });
}
