// One decode step of a block: one new position of every row through all layers, float32, one parallel region.
//
// A step of a few rows is bound by reading weights and cache once, so everything else has to cost nothing: no
// kernel launches, no temporaries outside the caches of the cores, threads that meet at barriers only. Weights are packed in
// panels of kPanel outputs, [panel][input][kPanel], so that a panel is one stream of memory. Every output is
// summed in the same order whatever the number of threads, so results do not depend on it.
//
// The structs mirror those of library.py, field by field. Matrices are row-major; their strides are padded to
// kPanel, the number of rows to kRows, and what is in the padding does not matter.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kRows = 8;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8, kRows = 4;
#else
constexpr int64_t kLanes = 4, kRows = 4;
#endif
constexpr int64_t kPanel = 2 * kLanes;  // kRows x kPanel sums stay in registers

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

enum NormKind : int64_t { kNoNorm = 0, kLayerNorm = 1, kRmsNorm = 2 };
enum Activation : int64_t { kGelu = 0, kSwiglu = 1, kGeglu = 2 };

}  // namespace

extern "C" {

struct LinearMap {
  const float* weight;  // packed; null where there is no such map
  const float* bias;    // padded; null for none
  int64_t inputs, outputs;
};

struct Norm {
  const float *weight, *bias;  // null for none
  int64_t kind;
  double eps;
};

struct LayerParts {
  LinearMap qkv, proj, up, value, down;  // `value` is the half that a gated activation multiplies
  Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
  const float *query_scale, *key_scale;  // (d,), null without QK norm
  float *keys, *values;                  // (rows, key heads, capacity, d)
};

struct BlockParts {
  int64_t rows, width, query_heads, key_heads, head_dim, is_gated, activation, capacity, num_layers, num_threads;
  double qk_eps;
  const LayerParts* layers;
  LinearMap in, out;
  Norm final_norm;
  const float* rotation;   // (capacity, d), pairs cos, sin; or null
  const float* positions;  // (steps, width), or null
  const float* added;      // (rows, width), or null
  float* scratch;          // simflow_scratch_size floats
};

}  // extern "C"

namespace {

int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
void store(float* to, Vec values) { *reinterpret_cast<LooseVec*>(to) = values; }

float sum(Vec values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(values);
#else
  float total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += values[lane];
  return total;
#endif
}

// exp to 2 units in the last place: 2^n e^r with |r| <= log(2) / 2 and the polynomial of Cephes' expf.
Vec exp_of(Vec x) {
  const float low = -87.0f, high = 88.0f, magic = 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  x = x < low ? Vec{} + low : x;  // NaN stays NaN
  x = x > high ? Vec{} + high : x;
  const Vec n = (x * 1.44269504088896341f + magic) - magic;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)exponent;  // the same bits, not the same numbers
}

Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp_of(-x)); }

// x Phi(x), erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
Vec gelu(Vec x) {
  const Vec z = x * 0.70710678118654752f, magnitude = z < 0 ? -z : z;
  const Vec t = 1.0f / (1.0f + 0.3275911f * magnitude);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec tail = p * t * exp_of(-magnitude * magnitude);  // erfc(|z|)
  return 0.5f * x * (z < 0 ? tail : 2.0f - tail);
}

Vec gelu_tanh(Vec x) { return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x)); }

struct Range {
  int64_t begin, end;
};

struct Team {
  int64_t id, size;
  Range share(int64_t count) const { return {count * id / size, count * (id + 1) / size}; }
};

// The sums of kRows rows of x (stride apart) with one panel of weights.
struct Sums {
  Vec at[kRows][2];
};

Sums multiply(const float* weight, const float* x, int64_t stride, int64_t inputs) {
  Sums sums = {};
  for (int64_t k = 0; k < inputs; ++k, weight += kPanel) {
    const Vec first = load(weight), second = load(weight + kLanes);
#pragma GCC unroll 8
    for (int64_t row = 0; row < kRows; ++row) {
      const float factor = x[row * stride + k];
      sums.at[row][0] += factor * first;
      sums.at[row][1] += factor * second;
    }
  }
  return sums;
}

Sums apply(const LinearMap& map, int64_t panel, const float* x, int64_t stride) {
  Sums sums = multiply(map.weight + panel * map.inputs * kPanel, x, stride, map.inputs);
  if (map.bias) {
    const Vec first = load(map.bias + panel * kPanel), second = load(map.bias + panel * kPanel + kLanes);
    for (auto& row : sums.at) row[0] += first, row[1] += second;
  }
  return sums;
}

// This thread's panels of `map`, over all rows: keep(row, column, vector) gets two vectors a row and panel.
template <typename Keep>
void for_each_output(const Team& team, const LinearMap& map, const float* x, int64_t stride, int64_t rows, Keep keep) {
  const Range panels = team.share(padded(map.outputs, kPanel) / kPanel);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel)
    for (int64_t first = 0; first < rows; first += kRows) {
      const Sums sums = apply(map, panel, x + first * stride, stride);
      for (int64_t row = 0; row < kRows; ++row)
        for (int64_t half = 0; half < 2; ++half)
          keep(first + row, panel * kPanel + half * kLanes, sums.at[row][half]);
    }
}

// The sum of (x - shift)^power over x, in lanes: a plain loop would wait for each addition.
template <int power>
float moment(const float* x, int64_t size, float shift) {
  Vec totals = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Vec centred = load(x + i) - shift;
    totals += power == 1 ? centred : centred * centred;
  }
  float total = sum(totals);
  for (; i < size; ++i) total += power == 1 ? x[i] - shift : (x[i] - shift) * (x[i] - shift);
  return total;
}

void normalize(const Norm& norm, const float* x, float* result, int64_t width) {
  const float mean = norm.kind == kLayerNorm ? moment<1>(x, width, 0) / width : 0;
  const float scale = norm.kind == kNoNorm ? 1 : 1 / std::sqrt(moment<2>(x, width, mean) / width + norm.eps);
  for (int64_t i = 0; i < width; ++i) {
    const float value = (x[i] - mean) * scale;
    result[i] = (norm.weight ? norm.weight[i] * value : value) + (norm.bias ? norm.bias[i] : 0);
  }
}

void turn(float* head, const float* rotation, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; i += 2) {
    const float even = head[i], odd = head[i + 1], cosine = rotation[i], sine = rotation[i + 1];
    head[i] = even * cosine - odd * sine;
    head[i + 1] = even * sine + odd * cosine;
  }
}

float dot(const float* a, const float* b, int64_t size) {
  Vec total = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) total += load(a + i) * load(b + i);
  float result = sum(total);
  for (; i < size; ++i) result += a[i] * b[i];
  return result;
}

// softmax(scores) in place, without the division; returns the sum. The memory behind `count` is padded, and what
// stands there becomes 1e-38.
float exponentials(float* scores, int64_t count) {
  const float largest = *std::max_element(scores, scores + count);
  for (int64_t i = count; i < padded(count, kLanes); ++i) scores[i] = -INFINITY;
  Vec total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec values = exp_of(load(scores + i) - largest);
    store(scores + i, values);
    total += values;
  }
  return sum(total);
}

void weighted_sum(const float* weights, const float* values, int64_t count, int64_t size, float* result) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    Vec sums[4] = {};
    for (int64_t j = 0; j < count; ++j)
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v) sums[v] += weights[j] * load(values + j * size + i + v * kLanes);
    for (int64_t v = 0; v < 4; ++v) store(result + i + v * kLanes, sums[v]);
  }
  for (; i + kLanes <= size; i += kLanes) {
    Vec total = {};
    for (int64_t j = 0; j < count; ++j) total += weights[j] * load(values + j * size + i);
    store(result + i, total);
  }
  for (; i < size; ++i) {
    float total = 0;
    for (int64_t j = 0; j < count; ++j) total += weights[j] * values[j * size + i];
    result[i] = total;
  }
}

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
    normalize_all(layer.attention_norm);
    for_each_output(team_, layer.qkv, normed_, sizes_.hidden_stride, sizes_.rows,
                    [&](int64_t row, int64_t column, Vec values) {
                      store(heads_ + row * sizes_.heads_stride + column, values);
                    });
#pragma omp barrier
    const Range tasks = team_.share(block_.rows * block_.key_heads);
    for (int64_t task = tasks.begin; task < tasks.end; ++task)
      attend(layer, task / block_.key_heads, task % block_.key_heads);
#pragma omp barrier
    add(layer.proj, layer.attention_post_norm, attended_, sizes_.attended_stride);
    normalize_all(layer.mlp_norm);
    activate(layer);
#pragma omp barrier
    add(layer.down, layer.mlp_post_norm, inner_, sizes_.inner_stride);
  }

  // Every thread normalises all rows for itself: cheaper than to wait for each other once more.
  void normalize_all(const Norm& norm) {
    for (int64_t row = 0; row < block_.rows; ++row)
      normalize(norm, hidden_ + row * sizes_.hidden_stride, normed_ + row * sizes_.hidden_stride, block_.width);
  }

  // hidden += post_norm(map(x)); ends with a barrier.
  void add(const LinearMap& map, const Norm& post_norm, const float* x, int64_t stride) {
    if (post_norm.kind == kNoNorm) {
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
      normalize(post_norm, update, update, block_.width);
      for (int64_t i = 0; i < block_.width; ++i) hidden[i] += update[i];
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
