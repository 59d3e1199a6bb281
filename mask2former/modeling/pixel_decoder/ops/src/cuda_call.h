// What the host tells the CUDA kernels: plain numbers and pointers, without anything of ATen.
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points.

#pragma once

#include <c10/core/ScalarType.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mask2former {

constexpr int kMaxLevels = 32;
// The kernels number the cells of a level in 28 bits, with a sign.
constexpr int64_t kMaxCells = int64_t(1) << 27;

struct LevelTable {
  int32_t height[kMaxLevels], width[kMaxLevels];
  int64_t start[kMaxLevels];
};

// All tensors are dense. Numbers of `accumulator type` are float64 where the value is, otherwise float32.
struct Call {
  c10::ScalarType value_dtype;   // of value, out and grad_output
  c10::ScalarType points_dtype;  // of coordinates and weights and of their gradients
  int64_t batch, tokens, queries;
  int32_t heads, channels, num_levels, points;
  LevelTable levels;
  const void* value;            // (B, S, n, d)
  const void* coordinates;      // (B, T, n, L, K, 2): locations in [0, 1], or offsets in cells
  const void* weights;          // (B, T, n, L, K): weights, or logits
  const void* reference;        // (B or 1, T, L, 2) of accumulator type; null: coordinates are locations
  int64_t reference_stride;     // numbers between the pictures of a batch; 0 where they share the points
  cudaStream_t stream;
};

struct ForwardCall : Call {
  void* out;  // (B, T, n * d)
};

struct BackwardCall : Call {
  const void* grad_output;        // (B, T, n * d)
  void* grad_value;               // (B, S, n, d) of accumulator type, zeros; with a scale int64
  void* grad_coordinates;         // like coordinates
  void* grad_weights;             // like weights
  void* grad_reference;           // (B, T, n, L, 2) of accumulator type, one share for every head; may be null
  const void* fixed_point_scale;  // one number of accumulator type: integers per unit in grad_value; null: no integers
};

// Both launch on the call's stream and return at once; what the launch itself reports is returned.
cudaError_t launch(const ForwardCall& call);
cudaError_t launch(const BackwardCall& call);

}  // namespace mask2former
