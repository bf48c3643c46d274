// One decode step of a block: one new position of every row through all layers, float32, one parallel region.
//
// A step of a few rows is bound by reading weights and cache once, so everything else has to cost nothing: no
// kernel launches, no temporaries outside the caches of the cores, threads that meet at barriers only. Weights are
// packed in panels of kPanel outputs, [panel][input][kPanel], so that a panel is one stream of memory. Every output
// is summed in the same order whatever the number of threads, so results do not depend on it.
//
// Matrices are row-major; their strides are padded to kPanel, the number of rows to kRows, and what is in the
// padding does not matter.

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parts.h"
#include "vectors.h"

using namespace simflow;

namespace {

// Strides and memory of a step. Shared matrices first, then what each thread has of its own.
struct Scratch {
  int64_t rows, hidden_stride, heads_stride, attended_stride, inner_stride, scores_size, own_size, shared_size;

  explicit Scratch(const BlockParts& block) {
    int64_t inner = 0;
    for (int64_t i = 0; i < block.num_layers; ++i) inner = std::max(inner, block.layers[i].up.outputs);
    rows = padded(block.rows, kRows);
    hidden_stride = padded(block.width, kPanel);
    const int64_t num_heads = block.query_heads * (block.is_gated ? 2 : 1) + 2 * block.key_heads;
    heads_stride = padded(num_heads * block.head_dim, kPanel);
    attended_stride = padded(block.query_heads * block.head_dim, kPanel);
    inner_stride = padded(inner, kPanel);
    scores_size = padded(block.capacity, kPanel);
    own_size = rows * hidden_stride + scores_size + padded(block.head_dim, kPanel);
    shared_size = rows * (2 * hidden_stride + heads_stride + attended_stride + inner_stride);
  }
};

class Step {
 public:
  Step(const BlockParts& block, const Scratch& sizes, const Team& team, int64_t slot)
      : block_(block), sizes_(sizes), team_(team), slot_(slot) {
    float* next = block.scratch;
    const auto take = [&next](int64_t size) {
      float* const begin = next;
      next += size;
      return begin;
    };
    hidden_ = take(sizes.rows * sizes.hidden_stride);
    update_ = take(sizes.rows * sizes.hidden_stride);
    heads_ = take(sizes.rows * sizes.heads_stride);
    attended_ = take(sizes.rows * sizes.attended_stride);
    inner_ = take(sizes.rows * sizes.inner_stride);
    next += team.id * sizes.own_size;
    normed_ = take(sizes.rows * sizes.hidden_stride);
    scores_ = take(sizes.scores_size);
    query_ = take(padded(block.head_dim, kPanel));
  }

  void run(const float* inputs, int64_t step, float* raw) {
    embed(inputs, step);
    for (int64_t i = 0; i < block_.num_layers; ++i) run_layer(block_.layers[i]);
    normalize_all(block_.final_norm);
    const int64_t stride = padded(block_.out.outputs, kPanel);
    for_each_output(team_, block_.out, normed_, sizes_.hidden_stride, sizes_.rows,
                    [=](int64_t row, int64_t column, Vec values) { store(raw + row * stride + column, values); });
  }

 private:
  void embed(const float* inputs, int64_t step) {
    const float* position = block_.positions ? block_.positions + step * block_.width : nullptr;
    for_each_output(team_, block_.in, inputs, block_.in.inputs, sizes_.rows,
                    [&](int64_t row, int64_t column, Vec values) {
                      store(hidden_ + row * sizes_.hidden_stride + column, values);
                      const int64_t end = row < block_.rows ? std::min(column + kLanes, block_.width) : 0;
                      for (int64_t c = column; c < end; ++c) {
                        float& value = hidden_[row * sizes_.hidden_stride + c];
                        if (position) value += position[c];
                        if (block_.added) value += block_.added[row * block_.width + c];
                      }
                    });
#pragma omp barrier
  }

  void run_layer(const LayerParts& layer) {
    normalize_all(layer.attention_norm, layer.attention_modulation);
    for_each_output(team_, layer.qkv, normed_, sizes_.hidden_stride, sizes_.rows,
                    [&](int64_t row, int64_t column, Vec values) {
                      store(heads_ + row * sizes_.heads_stride + column, values);
                    });
#pragma omp barrier
    const Range tasks = team_.share(block_.rows * block_.key_heads);
    for (int64_t task = tasks.begin; task < tasks.end; ++task)
      attend(layer, task / block_.key_heads, task % block_.key_heads);
#pragma omp barrier
    add(layer.proj, layer.attention_post_norm, layer.attention_modulation, attended_, sizes_.attended_stride);
    normalize_all(layer.mlp_norm, layer.mlp_modulation);
    activate(layer);
#pragma omp barrier
    add(layer.down, layer.mlp_post_norm, layer.mlp_modulation, inner_, sizes_.inner_stride);
  }

  // Every thread normalises all rows for itself: cheaper than to wait for each other once more.
  void normalize_all(const Norm& norm, const Modulation& modulation = {}) {
    for (int64_t row = 0; row < block_.rows; ++row) {
      float* result = normed_ + row * sizes_.hidden_stride;
      normalize(norm, hidden_ + row * sizes_.hidden_stride, result, block_.width);
      if (modulation.scale) modulate(modulation, row, result, block_.width);
    }
  }

  // hidden += gate post_norm(map(x)); ends with a barrier.
  void add(const LinearMap& map, const Norm& post_norm, const Modulation& modulation, const float* x, int64_t stride) {
    if (post_norm.kind == kNoNorm && !modulation.gate) {
      for_each_output(team_, map, x, stride, sizes_.rows, [&](int64_t row, int64_t column, Vec values) {
        float* to = hidden_ + row * sizes_.hidden_stride + column;
        store(to, load(to) + values);
      });
#pragma omp barrier
      return;
    }
    for_each_output(team_, map, x, stride, sizes_.rows, [&](int64_t row, int64_t column, Vec values) {
      store(update_ + row * sizes_.hidden_stride + column, values);
    });
#pragma omp barrier
    const Range rows = team_.share(block_.rows);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      float* update = update_ + row * sizes_.hidden_stride;
      float* hidden = hidden_ + row * sizes_.hidden_stride;
      if (post_norm.kind != kNoNorm) normalize(post_norm, update, update, block_.width);
      const float* gate = modulation.gate ? modulation.gate + row * block_.width : nullptr;
      for (int64_t i = 0; i < block_.width; ++i) hidden[i] += gate ? gate[i] * update[i] : update[i];
    }
#pragma omp barrier
  }

  void activate(const LayerParts& layer) {
    float* const inner = inner_;
    const int64_t stride = sizes_.inner_stride;
    if (block_.activation == kGelu) {
      for_each_output(team_, layer.up, normed_, sizes_.hidden_stride, sizes_.rows,
                      [=](int64_t row, int64_t column, Vec values) { store(inner + row * stride + column, gelu(values)); });
      return;
    }
    const bool is_silu = block_.activation == kSwiglu;
    for_each_output(team_, layer.up, normed_, sizes_.hidden_stride, sizes_.rows,
                    [=](int64_t row, int64_t column, Vec values) {
                      store(inner + row * stride + column, is_silu ? values * sigmoid(values) : gelu_tanh(values));
                    });
    // The same thread has the same columns of both halves.
    for_each_output(team_, layer.value, normed_, sizes_.hidden_stride, sizes_.rows,
                    [=](int64_t row, int64_t column, Vec values) {
                      float* to = inner + row * stride + column;
                      store(to, load(to) * values);
                    });
  }

  // One key head of one row: write the cache, then the query heads that share it.
  void attend(const LayerParts& layer, int64_t row, int64_t key_head) {
    const int64_t size = block_.head_dim, group = block_.query_heads / block_.key_heads, count = slot_ + 1;
    const float* heads = heads_ + row * sizes_.heads_stride;
    const int64_t begin = (row * block_.key_heads + key_head) * block_.capacity * size;
    float *keys = layer.keys + begin, *values = layer.values + begin;
    const float* gates = heads + (block_.query_heads + 2 * block_.key_heads) * size;
    settle(heads + (block_.query_heads + key_head) * size, layer.key_scale, keys + slot_ * size);
    std::copy_n(heads + (block_.query_heads + block_.key_heads + key_head) * size, size, values + slot_ * size);
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      settle(heads + head * size, layer.query_scale, query_);
      const float scale = 1 / std::sqrt(static_cast<float>(size));
      for (int64_t i = 0; i < size; ++i) query_[i] *= scale;
      for (int64_t j = 0; j < count; ++j) scores_[j] = dot(query_, keys + j * size, size);
      const float total = exponentials(scores_, count);
      float* result = attended_ + row * sizes_.attended_stride + head * size;
      weighted_sum(scores_, values, count, size, result);
      for (int64_t i = 0; i < size; ++i) result[i] /= total;
      if (block_.is_gated)
        for (int64_t i = 0; i < size; ++i) result[i] /= 1 + std::exp(-gates[head * size + i]);
    }
  }

  // QK norm and rotation of one head.
  void settle(const float* head, const float* scale, float* result) {
    if (scale)
      normalize({scale, nullptr, kRmsNorm, block_.qk_eps}, head, result, block_.head_dim);
    else
      std::copy_n(head, block_.head_dim, result);
    if (block_.rotation) turn(result, block_.rotation + slot_ * block_.head_dim, block_.head_dim);
  }

  const BlockParts& block_;
  const Scratch& sizes_;
  const Team team_;
  const int64_t slot_;
  float *hidden_, *update_, *heads_, *attended_, *inner_, *normed_, *scores_, *query_;
};

}  // namespace

extern "C" {

int64_t simflow_panel() { return kPanel; }

int64_t simflow_row_unit() { return kRows; }

int64_t simflow_sizes_of_parts() { return sizeof(BlockParts) * 1000000 + sizeof(LayerParts); }

int64_t simflow_scratch_size(const BlockParts* block) {
  const Scratch sizes(*block);
  return sizes.shared_size + block->num_threads * sizes.own_size;
}

// Run step `step`, whose position in the cache is `slot`: inputs (padded rows, D) -> raw (padded rows, padded outputs).
void simflow_decode(const BlockParts* block, const float* inputs, int64_t step, int64_t slot, float* raw) {
  const Scratch sizes(*block);
#pragma omp parallel num_threads(static_cast<int>(block->num_threads))
  Step(*block, sizes, {omp_get_thread_num(), omp_get_num_threads()}, slot).run(inputs, step, raw);
}

}  // extern "C"
