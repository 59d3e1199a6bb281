// The CUDA kernels of multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3).
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points; a row is one head
// of one query.
//
// A group of 4 to 32 lanes of a warp serves one row; its lanes hold different channels, `kWidth` adjacent ones each, so
// that 16 bytes move at once. A block serves neighboring queries of one head: what they read overlaps and stays in the
// cache close to them. Heads run fastest over the blocks, so that blocks that run together share lines of memory.
//
// First the lanes of a group share out the points: each works out where a point lies and how much it counts, once for
// all channels, and leaves that in shared memory. Locations and weights are never written to global memory.
//
// All lanes of a warp stay together up to the end, those without a row included: warp functions need them.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "cuda_call.h"

namespace mask2former {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Packed {
  T at[kWidth];
};

// ---- points --------------------------------------------------------------------------------------------------------

// One point as its group sees it, 16 bytes in float32. `place` holds which of the four cells around the point exist (one
// bit each) and, above these bits, the number within its level of the cell to the left above, which may be negative.
// When the backward kernel is done with a point, it leaves three gradients here.
template <typename acc_t>
struct alignas(4 * sizeof(acc_t)) Point {
  union {
    acc_t right;   // share of the cells to the right
    acc_t grad_x;  // in cells
  };
  union {
    acc_t below;
    acc_t grad_y;
  };
  acc_t weight;
  union {
    int32_t place;
    acc_t grad_weight;
  };
};

enum Corner : int32_t { kLeftAbove = 1, kRightAbove = 2, kLeftBelow = 4, kRightBelow = 8 };
constexpr int kCornerBits = 4;

// A place that is not a number reads zeros like one outside.
template <typename acc_t>
__device__ __forceinline__ void set_place(Point<acc_t>& point, acc_t x, acc_t y, int32_t height, int32_t width) {
  if (!(x > -1 && y > -1 && x < width && y < height)) {
    point.right = point.below = 0;
    point.place = 0;
    return;
  }
  const acc_t left = floor(x), above = floor(y);
  const int32_t column = int32_t(left), row = int32_t(above);
  const bool has_left = column >= 0, has_right = column + 1 < width;
  const bool has_above = row >= 0, has_below = row + 1 < height;
  const int32_t corners = (has_above && has_left ? kLeftAbove : 0) | (has_above && has_right ? kRightAbove : 0) |
      (has_below && has_left ? kLeftBelow : 0) | (has_below && has_right ? kRightBelow : 0);
  point.right = x - left;
  point.below = y - above;
  point.place = (row * width + column) * (1 << kCornerBits) | corners;
}

template <typename acc_t>
__device__ __forceinline__ acc_t group_sum(acc_t x, int group) {
  for (int distance = group / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, distance);
  }
  return x;
}

template <typename acc_t>
__device__ __forceinline__ acc_t group_max(acc_t x, int group) {
  for (int distance = group / 2; distance > 0; distance /= 2) {
    const acc_t other = __shfl_xor_sync(kAllLanes, x, distance);
    x = other > x ? other : x;
  }
  return x;
}

__device__ __forceinline__ float exponential(float x) {
  return expf(x);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}

// How a launch spreads over the device: lanes of a group, and blocks that the queries of one head of a picture take.
struct Spread {
  int group;
  unsigned query_blocks;
};

// Where this thread works.
struct Row {
  int64_t batch, query;
  int head, lane;
  bool exists;

  __device__ __forceinline__ Row(const Call& call, const Spread& spread) {
    const unsigned block = blockIdx.x / call.heads, rows = blockDim.x / spread.group;
    head = int(blockIdx.x % call.heads);
    batch = block / spread.query_blocks;
    query = int64_t(block % spread.query_blocks) * rows + threadIdx.x / spread.group;
    lane = int(threadIdx.x % spread.group);
    exists = query < call.queries;
  }

  __device__ __forceinline__ int64_t index(const Call& call) const {
    return (batch * call.queries + query) * call.heads + head;
  }
};

// Fills the points of a row; -> where they stand in shared memory. With reference points the weights are the softmax of
// what is given.
template <typename points_t, typename acc_t>
__device__ __forceinline__ Point<acc_t>* find_points(const Call& call, const Row& row, int group) {
  extern __shared__ unsigned char shared_memory[];
  Point<acc_t>* points =
      reinterpret_cast<Point<acc_t>*>(shared_memory) + threadIdx.x / group * call.num_levels * call.points;
  const int count = row.exists ? call.num_levels * call.points : 0;
  const int64_t first = row.index(call) * call.num_levels * call.points;
  const points_t* coordinates = static_cast<const points_t*>(call.coordinates) + 2 * first;
  const points_t* weights = static_cast<const points_t*>(call.weights) + first;
  const acc_t* reference = static_cast<const acc_t*>(call.reference);
  acc_t scale = 1;
  if (reference != nullptr) {
    reference += row.batch * call.reference_stride + row.query * call.num_levels * 2;
    acc_t highest = -INFINITY, total = 0;
    for (int i = row.lane; i < count; i += group) {
      points[i].weight = acc_t(weights[i]);
      highest = points[i].weight > highest ? points[i].weight : highest;
    }
    highest = group_max(highest, group);
    for (int i = row.lane; i < count; i += group) {
      points[i].weight = exponential(points[i].weight - highest);
      total += points[i].weight;
    }
    scale = 1 / group_sum(total, group);
  }
  for (int i = row.lane; i < count; i += group) {
    const int level = i / call.points;
    const int32_t height = call.levels.height[level], width = call.levels.width[level];
    acc_t x = acc_t(coordinates[2 * i]), y = acc_t(coordinates[2 * i + 1]);
    if (reference != nullptr) {
      x += reference[2 * level] * width - acc_t(0.5);
      y += reference[2 * level + 1] * height - acc_t(0.5);
      points[i].weight *= scale;
    } else {
      x = x * width - acc_t(0.5);
      y = y * height - acc_t(0.5);
      points[i].weight = acc_t(weights[i]);
    }
    set_place(points[i], x, y, height, width);
  }
  __syncwarp();  // a group lies in one warp
  return points;
}

// ---- channels ------------------------------------------------------------------------------------------------------

template <int kWidth, typename value_t>
__device__ __forceinline__ Packed<value_t, kWidth> read(const value_t* from) {
  return *reinterpret_cast<const Packed<value_t, kWidth>*>(from);
}

// The cell's channels, zeros where it does not exist.
template <int kWidth, typename value_t>
__device__ __forceinline__ Packed<value_t, kWidth> read_if(bool exists, const value_t* from) {
  Packed<value_t, kWidth> packed{};
  if (exists) {
    packed = read<kWidth>(from);
  }
  return packed;
}

template <int kWidth, typename value_t, typename acc_t>
__device__ __forceinline__ void add_scaled(acc_t* total, const Packed<value_t, kWidth>& packed, acc_t scale) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    total[i] += acc_t(packed.at[i]) * scale;
  }
}

template <int kWidth, typename value_t, typename acc_t>
__device__ __forceinline__ acc_t product(const Packed<value_t, kWidth>& packed, const acc_t* other) {
  acc_t sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    sum += acc_t(packed.at[i]) * other[i];
  }
  return sum;
}

// Adds to four adjacent numbers, which are aligned to 16 bytes: one instruction where the device has it.
__device__ __forceinline__ void add_four(float* to, const float* grad, float scale) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(
      reinterpret_cast<float4*>(to), make_float4(scale * grad[0], scale * grad[1], scale * grad[2], scale * grad[3]));
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    atomicAdd(to + i, scale * grad[i]);
  }
#endif
}

// Adds scale * grad[i] to to[i]. Others add to the same numbers at the same time.
template <int kWidth>
__device__ __forceinline__ void add_shared(float* to, const float* grad, float scale) {
  if constexpr (kWidth % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      add_four(to + i, grad + i, scale);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      atomicAdd(to + i, scale * grad[i]);
    }
  }
}

template <int kWidth>
__device__ __forceinline__ void add_shared(double* to, const double* grad, double scale) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    atomicAdd(to + i, scale * grad[i]);
  }
}

// Sums of integers do not depend on their order. `scale` contains the number of steps per unit.
template <int kWidth, typename acc_t>
__device__ __forceinline__ void add_shared(int64_t* to, const acc_t* grad, acc_t scale) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    // Two's complement: adding the bits adds the numbers, whatever their signs.
    atomicAdd(
        reinterpret_cast<unsigned long long*>(to + i), static_cast<unsigned long long>(int64_t(scale * grad[i])));
  }
}

// Writes what the backward kernel left in the points of a row.
template <typename points_t, typename acc_t>
__device__ __forceinline__ void write_gradients(
    const BackwardCall& call, const Row& row, int group, const Point<acc_t>* points) {
  const int count = row.exists ? call.num_levels * call.points : 0;
  const int64_t first = row.index(call) * call.num_levels * call.points;
  points_t* grad_coordinates = static_cast<points_t*>(call.grad_coordinates) + 2 * first;
  points_t* grad_weights = static_cast<points_t*>(call.grad_weights) + first;
  const bool is_fused = call.reference != nullptr;
  acc_t mean = 0;  // of the softmax
  if (is_fused) {
    for (int i = row.lane; i < count; i += group) {
      mean += points[i].weight * points[i].grad_weight;
    }
    mean = group_sum(mean, group);
  }
  for (int i = row.lane; i < count; i += group) {
    const int level = i / call.points;
    const acc_t scale_x = is_fused ? acc_t(1) : acc_t(call.levels.width[level]);
    const acc_t scale_y = is_fused ? acc_t(1) : acc_t(call.levels.height[level]);
    grad_coordinates[2 * i] = points_t(points[i].grad_x * scale_x);
    grad_coordinates[2 * i + 1] = points_t(points[i].grad_y * scale_y);
    grad_weights[i] = points_t(is_fused ? points[i].weight * (points[i].grad_weight - mean) : points[i].grad_weight);
  }
  if (call.grad_reference == nullptr) {
    return;
  }
  acc_t* grad_reference = static_cast<acc_t*>(call.grad_reference) + row.index(call) * call.num_levels * 2;
  for (int level = row.lane; level * call.points < count; level += group) {
    acc_t grad_x = 0, grad_y = 0;
    for (int k = 0; k < call.points; ++k) {
      grad_x += points[level * call.points + k].grad_x;
      grad_y += points[level * call.points + k].grad_y;
    }
    grad_reference[2 * level] = grad_x * call.levels.width[level];
    grad_reference[2 * level + 1] = grad_y * call.levels.height[level];
  }
}

// ---- kernels -------------------------------------------------------------------------------------------------------

template <typename value_t, typename points_t, typename acc_t, int kWidth>
__global__ void forward_kernel(const __grid_constant__ ForwardCall call, const Spread spread) {
  const int group = spread.group;
  const Row row(call, spread);
  Point<acc_t>* points = find_points<points_t, acc_t>(call, row, group);
  if (!row.exists) {
    return;  // no warp function follows
  }
  const int64_t stride = call.heads * int64_t(call.channels);
  const value_t* value =
      static_cast<const value_t*>(call.value) + row.batch * call.tokens * stride + row.head * call.channels;
  value_t* out = static_cast<value_t*>(call.out) + row.index(call) * call.channels;
  for (int64_t c = row.lane * kWidth; c < call.channels; c += group * kWidth) {
    acc_t total[kWidth] = {};
    const Point<acc_t>* next = points;
    for (int level = 0; level < call.num_levels; ++level) {
      const value_t* map = value + call.levels.start[level] * stride + c;
      const int64_t below_stride = call.levels.width[level] * stride;
#pragma unroll 4
      for (int k = 0; k < call.points; ++k, ++next) {
        const Point<acc_t> point = *next;
        const value_t* corner = map + int64_t(point.place >> kCornerBits) * stride;
        const auto left_above = read_if<kWidth>(point.place & kLeftAbove, corner);
        const auto right_above = read_if<kWidth>(point.place & kRightAbove, corner + stride);
        const auto left_below = read_if<kWidth>(point.place & kLeftBelow, corner + below_stride);
        const auto right_below = read_if<kWidth>(point.place & kRightBelow, corner + below_stride + stride);
        const acc_t below = point.weight * point.below, above = point.weight - below;
        add_scaled(total, left_above, above - above * point.right);
        add_scaled(total, right_above, above * point.right);
        add_scaled(total, left_below, below - below * point.right);
        add_scaled(total, right_below, below * point.right);
      }
    }
    Packed<value_t, kWidth> packed;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      packed.at[i] = value_t(total[i]);
    }
    *reinterpret_cast<Packed<value_t, kWidth>*>(out + c) = packed;
  }
}

// `sum_t` is what gradients of the value are added up in: acc_t, or int64 in steps of 1 / scale.
template <typename value_t, typename points_t, typename acc_t, typename sum_t, int kWidth>
__global__ void backward_kernel(const __grid_constant__ BackwardCall call, const Spread spread) {
  const int group = spread.group;
  const Row row(call, spread);
  Point<acc_t>* points = find_points<points_t, acc_t>(call, row, group);

  const int64_t stride = call.heads * int64_t(call.channels), channels = row.exists ? call.channels : 0;
  const int64_t head_offset = row.batch * call.tokens * stride + row.head * call.channels;
  const value_t* value = static_cast<const value_t*>(call.value) + head_offset;
  sum_t* grad_value = static_cast<sum_t*>(call.grad_value) + head_offset;
  const value_t* grad_output = static_cast<const value_t*>(call.grad_output) + row.index(call) * call.channels;
  const acc_t scale = call.fixed_point_scale == nullptr ? acc_t(1) : *static_cast<const acc_t*>(call.fixed_point_scale);

  // The first channels of every lane, which are all where the head is no wider than the group, are read once.
  const int64_t first = row.lane * kWidth;
  const auto first_grad = read_if<kWidth>(first < channels, grad_output + first);
  for (int level = 0; level < call.num_levels; ++level) {
    const int64_t start = call.levels.start[level] * stride, below_stride = call.levels.width[level] * stride;
    for (int k = 0; k < call.points; ++k) {
      Point<acc_t>& place = points[level * call.points + k];
      const Point<acc_t> point = row.exists ? place : Point<acc_t>{};
      const int64_t corner = start + int64_t(point.place >> kCornerBits) * stride;
      const acc_t right = point.right, left = 1 - right, below = point.below, above = 1 - below;
      acc_t along_x = 0, along_y = 0, sample = 0;
      for (int64_t c = first; c < channels; c += group * kWidth) {
        const auto packed_grad = c == first ? first_grad : read<kWidth>(grad_output + c);
        acc_t grad[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          grad[i] = acc_t(packed_grad.at[i]);
        }
        const int64_t at = corner + c;
        const auto left_above = read_if<kWidth>(point.place & kLeftAbove, value + at);
        const auto right_above = read_if<kWidth>(point.place & kRightAbove, value + at + stride);
        const auto left_below = read_if<kWidth>(point.place & kLeftBelow, value + at + below_stride);
        const auto right_below = read_if<kWidth>(point.place & kRightBelow, value + at + below_stride + stride);
        const acc_t product_00 = product(left_above, grad), product_01 = product(right_above, grad);
        const acc_t product_10 = product(left_below, grad), product_11 = product(right_below, grad);
        along_x += above * (product_01 - product_00) + below * (product_11 - product_10);
        along_y += left * (product_10 - product_00) + right * (product_11 - product_01);
        sample += above * (left * product_00 + right * product_01) + below * (left * product_10 + right * product_11);
        const acc_t share = point.weight * scale;
        if (point.place & kLeftAbove) {
          add_shared<kWidth>(grad_value + at, grad, share * above * left);
        }
        if (point.place & kRightAbove) {
          add_shared<kWidth>(grad_value + at + stride, grad, share * above * right);
        }
        if (point.place & kLeftBelow) {
          add_shared<kWidth>(grad_value + at + below_stride, grad, share * below * left);
        }
        if (point.place & kRightBelow) {
          add_shared<kWidth>(grad_value + at + below_stride + stride, grad, share * below * right);
        }
      }
      along_x = group_sum(along_x, group);
      along_y = group_sum(along_y, group);
      sample = group_sum(sample, group);
      __syncwarp();  // all have read the point
      if (row.lane == 0 && row.exists) {
        place.grad_x = point.weight * along_x;
        place.grad_y = point.weight * along_y;
        place.grad_weight = sample;
      }
    }
  }
  __syncwarp();
  write_gradients<points_t>(call, row, group, points);
}

}  // namespace
}  // namespace mask2former
