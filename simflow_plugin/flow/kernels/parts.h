// What a block is made of, as addresses. Mirrors library.py, field by field.
#pragma once

#include <cstdint>

namespace simflow {

enum NormKind : int64_t { kNoNorm = 0, kLayerNorm = 1, kRmsNorm = 2 };
enum Activation : int64_t { kGelu = 0, kSwiglu = 1, kGeglu = 2 };

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

// adaLN's vectors (rows, width) of attention or MLP; null without.
struct Modulation {
  const float *shift, *scale, *gate;
};

struct LayerParts {
  LinearMap qkv, proj, up, value, down;  // `value` is the half that a gated activation multiplies
  Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
  Modulation attention_modulation, mlp_modulation;
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

}  // namespace simflow
