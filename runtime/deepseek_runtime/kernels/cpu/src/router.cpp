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

// Minus infinity for the experts outside the best groups: zero would win over negative biased scores.
inline void mask_groups(float* choice, const Routing& routing) {
    const int64_t size = routing.experts / routing.groups;
    float group[routing.groups], copy[size], best[std::max(size, routing.groups)];
    int64_t ids[std::max(size, routing.groups)];
    for (int64_t g = 0; g < routing.groups; g++) {
        std::copy(choice + g * size, choice + (g + 1) * size, copy);
        const int64_t count = std::min(routing.group_best, size);
        take_best(copy, size, count, ids, best);
        group[g] = 0;
        for (int64_t k = 0; k < count; k++) group[g] += best[k];
    }
    take_best(group, routing.groups, routing.chosen_groups, ids, best);
    for (int64_t g = 0; g < routing.groups; g++)
        if (std::find(ids, ids + routing.chosen_groups, g) == ids + routing.chosen_groups)
            std::fill(choice + g * size, choice + (g + 1) * size, NONE);
}

inline void choose(float* scores, const float* bias, const Routing& routing, int64_t* ids, float* weights) {
    float choice[routing.experts];
    score(scores, routing);
    for (int64_t e = 0; e < routing.experts; e++) choice[e] = bias ? scores[e] + bias[e] : scores[e];
    if (routing.groups > 1) mask_groups(choice, routing);
    take_best(choice, routing.experts, routing.chosen, ids, weights);
    float sum = 1e-20f;
    for (int64_t k = 0; k < routing.chosen; k++) sum += weights[k] = scores[ids[k]];
    for (int64_t k = 0; k < routing.chosen; k++) weights[k] = (routing.normalise ? weights[k] / sum : weights[k]) * routing.scale;
}

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
        for (int64_t t = begin; t < end; t++)
            choose(logits + t * experts, bias, *routing, ids + t * routing->chosen, weights + t * routing->chosen);
    });
}
