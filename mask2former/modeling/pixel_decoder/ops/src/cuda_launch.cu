// Chooses the kernel for a call of multi-scale deformable attention and how it spreads over the device.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>

#include "cuda_kernels.cuh"

namespace mask2former {
namespace {

constexpr int kLanesOfWarp = 32, kSmallestGroup = 4, kThreads = 128;
constexpr size_t kSharedBytes = 48 * 1024;  // what every device gives a block unasked

// Calls `function` with a null pointer of each C++ type that the call's numbers have: value, points, accumulator.
template <typename Function>
cudaError_t with_types(const Call& call, const Function& function) {
  const bool is_narrow = call.points_dtype == call.value_dtype;
  switch (call.value_dtype) {
    case c10::ScalarType::Double:
      return function(static_cast<double*>(nullptr), static_cast<double*>(nullptr), double());
    case c10::ScalarType::Float:
      return function(static_cast<float*>(nullptr), static_cast<float*>(nullptr), float());
    case c10::ScalarType::Half:
      return is_narrow ? function(static_cast<c10::Half*>(nullptr), static_cast<c10::Half*>(nullptr), float())
                       : function(static_cast<c10::Half*>(nullptr), static_cast<float*>(nullptr), float());
    case c10::ScalarType::BFloat16:
      return is_narrow ? function(static_cast<c10::BFloat16*>(nullptr), static_cast<c10::BFloat16*>(nullptr), float())
                       : function(static_cast<c10::BFloat16*>(nullptr), static_cast<float*>(nullptr), float());
    default:
      return cudaErrorInvalidValue;
  }
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// The smallest group whose lanes hold a head at once, unless its block would need more shared memory than there is.
template <typename call_t>
cudaError_t spread_and_launch(
    void (*kernel)(call_t, Spread), const call_t& call, int channels_per_lane, size_t bytes_per_row) {
  const int lanes = (call.channels + channels_per_lane - 1) / channels_per_lane;
  int group = kSmallestGroup, threads = kThreads;
  while (group < std::min(lanes, kLanesOfWarp)) {
    group *= 2;
  }
  while (threads / group * bytes_per_row > kSharedBytes && threads > kLanesOfWarp) {
    threads /= 2;
  }
  while (threads / group * bytes_per_row > kSharedBytes && group < kLanesOfWarp) {
    group *= 2;
  }
  const int64_t rows = threads / group, query_blocks = (call.queries + rows - 1) / rows;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(query_blocks * call.heads * call.batch));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = rows * bytes_per_row;
  config.stream = call.stream;
  return cudaLaunchKernelEx(&config, kernel, call, Spread{group, static_cast<unsigned>(query_blocks)});
}

template <typename acc_t>
size_t bytes_per_row(const Call& call) {
  return sizeof(Point<acc_t>) * call.num_levels * call.points;
}

}  // namespace

cudaError_t launch(const ForwardCall& call) {
  return with_types(call, [&](auto* value, auto* points, auto accumulator) {
    using value_t = std::remove_pointer_t<decltype(value)>;
    using points_t = std::remove_pointer_t<decltype(points)>;
    using acc_t = decltype(accumulator);
    constexpr int kWidth = 16 / sizeof(value_t);
    if (call.channels % kWidth == 0 && is_aligned(call.value) && is_aligned(call.out)) {
      return spread_and_launch(
          forward_kernel<value_t, points_t, acc_t, kWidth>, call, kWidth, bytes_per_row<acc_t>(call));
    }
    return spread_and_launch(forward_kernel<value_t, points_t, acc_t, 1>, call, 1, bytes_per_row<acc_t>(call));
  });
}

cudaError_t launch(const BackwardCall& call) {
  return with_types(call, [&](auto* value, auto* points, auto accumulator) {
    using value_t = std::remove_pointer_t<decltype(value)>;
    using points_t = std::remove_pointer_t<decltype(points)>;
    using acc_t = decltype(accumulator);
    constexpr int kWidth = 16 / sizeof(value_t);
    const bool is_wide = call.channels % kWidth == 0 && is_aligned(call.value) && is_aligned(call.grad_output) &&
        is_aligned(call.grad_value);
    const size_t bytes = bytes_per_row<acc_t>(call);
    if (call.fixed_point_scale == nullptr) {
      return is_wide
          ? spread_and_launch(backward_kernel<value_t, points_t, acc_t, acc_t, kWidth>, call, kWidth, bytes)
          : spread_and_launch(backward_kernel<value_t, points_t, acc_t, acc_t, 1>, call, 1, bytes);
    }
    return is_wide ? spread_and_launch(backward_kernel<value_t, points_t, acc_t, int64_t, kWidth>, call, kWidth, bytes)
                   : spread_and_launch(backward_kernel<value_t, points_t, acc_t, int64_t, 1>, call, 1, bytes);
  });
}

}  // namespace mask2former
