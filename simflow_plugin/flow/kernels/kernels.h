// The pieces of a step: products of a few rows with packed weights, norms, rotation, attention of one query.
#pragma once

#include <algorithm>
#include <cmath>

#include "parts.h"
#include "vectors.h"

namespace simflow {

struct Range {
  int64_t begin, end;
};

struct Team {
  int64_t id, size;
  Range share(int64_t count) const { return {count * id / size, count * (id + 1) / size}; }
};

// The sums of kRows rows of x (stride apart) with one panel of weights.
struct Sums {
  Vec at[kRows][kVectors];
};

// Ask for the weights of later products while these are computed: the processor's own prefetching stops at every
// page, and then memory and arithmetic take turns.
inline void fetch_ahead(const float* weight, int64_t k) {
  constexpr int64_t line = 16, distance = 2048;  // floats
  if (kPanel < line && k % (line / kPanel)) return;
  for (int64_t i = 0; i < kPanel; i += line) __builtin_prefetch(weight + distance + i);
}

inline Sums multiply(const float* weight, const float* x, int64_t stride, int64_t inputs) {
  Vec sums[kRows][kVectors] = {};  // in registers: every index that follows is known to the compiler
  for (int64_t k = 0; k < inputs; ++k, weight += kPanel) {
    fetch_ahead(weight, k);
#pragma GCC unroll 8
    for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[row][v] += x[row * stride + k] * load(weight + v * kLanes);
  }
  Sums result;
#pragma GCC unroll 8
  for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) result.at[row][v] = sums[row][v];
  return result;
}

inline Sums apply(const LinearMap& map, int64_t panel, const float* x, int64_t stride) {
  Sums sums = multiply(map.weight + panel * map.inputs * kPanel, x, stride, map.inputs);
  if (map.bias)
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec bias = load(map.bias + panel * kPanel + v * kLanes);
      for (auto& row : sums.at) row[v] += bias;
    }
  return sums;
}

// This thread's panels of `map`, over all rows: keep(row, column, vector) gets kVectors vectors a row and panel.
template <typename Keep>
void for_each_output(const Team& team, const LinearMap& map, const float* x, int64_t stride, int64_t rows, Keep keep) {
  const Range panels = team.share(padded(map.outputs, kPanel) / kPanel);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel)
    for (int64_t first = 0; first < rows; first += kRows) {
      const Sums sums = apply(map, panel, x + first * stride, stride);
      for (int64_t row = 0; row < kRows; ++row)
        for (int64_t v = 0; v < kVectors; ++v)
          keep(first + row, panel * kPanel + v * kLanes, sums.at[row][v]);
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

inline void normalize(const Norm& norm, const float* x, float* result, int64_t width) {
  const float mean = norm.kind == kLayerNorm ? moment<1>(x, width, 0) / width : 0;
  const float scale = norm.kind == kNoNorm ? 1 : 1 / std::sqrt(moment<2>(x, width, mean) / width + norm.eps);
  for (int64_t i = 0; i < width; ++i) {
    const float value = (x[i] - mean) * scale;
    result[i] = (norm.weight ? norm.weight[i] * value : value) + (norm.bias ? norm.bias[i] : 0);
  }
}

// values = values (1 + scale) + shift, by the vectors of this row.
inline void modulate(const Modulation& modulation, int64_t row, float* values, int64_t width) {
  const float *scale = modulation.scale + row * width, *shift = modulation.shift + row * width;
  for (int64_t i = 0; i < width; ++i) values[i] = values[i] * (1 + scale[i]) + shift[i];
}

inline void turn(float* head, const float* rotation, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; i += 2) {
    const float even = head[i], odd = head[i + 1], cosine = rotation[i], sine = rotation[i + 1];
    head[i] = even * cosine - odd * sine;
    head[i + 1] = even * sine + odd * cosine;
  }
}

inline float dot(const float* a, const float* b, int64_t size) {
  Vec total = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) total += load(a + i) * load(b + i);
  float result = sum(total);
  for (; i < size; ++i) result += a[i] * b[i];
  return result;
}

// softmax(scores) in place, without the division; returns the sum. The memory behind `count` is padded, and what
// stands there becomes 1e-38.
inline float exponentials(float* scores, int64_t count) {
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

inline void weighted_sum(const float* weights, const float* values, int64_t count, int64_t size, float* result) {
  constexpr int64_t wide = kLanes < 16 ? 8 : 4;  // a head of 64 goes in one pass: its values are one stream of memory
  int64_t i = 0;
  for (; i + wide * kLanes <= size; i += wide * kLanes) {
    Vec sums[wide] = {};
    for (int64_t j = 0; j < count; ++j)
#pragma GCC unroll 8
      for (int64_t v = 0; v < wide; ++v) sums[v] += weights[j] * load(values + j * size + i + v * kLanes);
#pragma GCC unroll 8
    for (int64_t v = 0; v < wide; ++v) store(result + i + v * kLanes, sums[v]);
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

}  // namespace simflow
