// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3): checks and memory around
// the kernels of cuda_kernels.cuh. ops/reference.py is the definition.
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>
#include <optional>
#include <tuple>

#include "arguments.h"
#include "cuda_call.h"

// Other than CUDA only where the kernels are emulated, to test their arithmetic without a GPU.
#ifndef M2F_DEVICE_OF_KERNELS
#define M2F_DEVICE_OF_KERNELS at::kCUDA
#endif

namespace mask2former {
namespace {

const Accepted kAccepted{M2F_DEVICE_OF_KERNELS, {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}, true};

at::ScalarType accumulator_of(const at::Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void fill(Call& call, const Arguments& arguments) {
  const int64_t num_levels = arguments.levels.size();
  TORCH_CHECK(num_levels <= kMaxLevels, "at most ", kMaxLevels, " levels, got ", num_levels);
  // A block serves at least one query of one head; the number of blocks has 31 bits, as the number of points has.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t blocks = arguments.batch() * arguments.queries() * arguments.heads();
  TORCH_CHECK(blocks <= kMost, "at most ", kMost, " queries of all heads and pictures together, got ", blocks);
  const int64_t points = num_levels * arguments.points();
  constexpr int64_t kMostPoints = 1024;
  TORCH_CHECK(points <= kMostPoints, "at most ", kMostPoints, " points for a query and head, got ", points);
  call.value_dtype = arguments.value.scalar_type();
  call.points_dtype = arguments.coordinates.scalar_type();
  call.batch = arguments.batch();
  call.tokens = arguments.tokens();
  call.queries = arguments.queries();
  call.heads = static_cast<int32_t>(arguments.heads());
  call.channels = static_cast<int32_t>(arguments.channels());
  call.num_levels = static_cast<int32_t>(num_levels);
  call.points = static_cast<int32_t>(arguments.points());
  for (int64_t i = 0; i < num_levels; ++i) {
    const Level& level = arguments.levels[i];
    // One row and column more: the cell to the left above a point may lie outside.
    const bool fits = level.height < kMaxCells && level.width < kMaxCells / (level.height + 1);
    TORCH_CHECK(fits, "at most ", kMaxCells, " cells in a level, got ", level.height, " x ", level.width);
    call.levels.height[i] = static_cast<int32_t>(level.height);
    call.levels.width[i] = static_cast<int32_t>(level.width);
    call.levels.start[i] = level.start;
  }
  call.value = arguments.value.const_data_ptr();
  call.coordinates = arguments.coordinates.const_data_ptr();
  call.weights = arguments.weights.const_data_ptr();
  call.reference = arguments.reference.defined() ? arguments.reference.const_data_ptr() : nullptr;
  call.reference_stride = arguments.reference_stride();
  call.stream = c10::cuda::getCurrentCUDAStream(arguments.value.get_device()).stream();
}

at::Tensor forward(
    const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& coordinates, const at::Tensor& weights,
    const std::optional<at::Tensor>& reference_points) {
  const Arguments arguments{kAccepted, value, sizes, coordinates, weights, reference_points.value_or(at::Tensor())};
  const c10::cuda::OptionalCUDAGuard guard(value.device());
  auto out = at::empty(arguments.output_shape(), value.options());
  if (out.numel() != 0) {
    ForwardCall call{};
    fill(call, arguments);
    call.out = out.mutable_data_ptr();
    C10_CUDA_CHECK(launch(call));
  }
  return out;
}

// -> gradients of coordinates and weights, and that of the reference points through each head (B, T, n, L, 2). The
// gradient of the value is added to `grad_value`.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& coordinates,
    const at::Tensor& weights, const std::optional<at::Tensor>& reference_points, at::Tensor& grad_value,
    const std::optional<at::Tensor>& fixed_point_scale, bool with_reference_points) {
  const Arguments arguments{kAccepted, value, sizes, coordinates, weights, reference_points.value_or(at::Tensor())};
  const c10::cuda::OptionalCUDAGuard guard(value.device());
  const auto accumulator = accumulator_of(value);
  check("grad_output", grad_output, arguments.output_shape(), value.scalar_type(), value.device());
  check("grad_value", grad_value, value.sizes(), fixed_point_scale ? at::kLong : accumulator, value.device());
  TORCH_CHECK(grad_value.is_contiguous(), "grad_value must be contiguous");
  if (fixed_point_scale) {
    check("fixed_point_scale", *fixed_point_scale, {}, accumulator, value.device());
  }
  const auto dense = grad_output.contiguous();
  auto grad_coordinates = at::empty_like(arguments.coordinates), grad_weights = at::empty_like(arguments.weights);
  std::vector<int64_t> reference_shape{0};
  if (with_reference_points) {
    reference_shape = {arguments.batch(), arguments.queries(), arguments.heads(), int64_t(arguments.levels.size()), 2};
  }
  auto grad_reference = at::empty(reference_shape, value.options().dtype(accumulator));
  if (dense.numel() != 0) {
    BackwardCall call{};
    fill(call, arguments);
    call.grad_output = dense.const_data_ptr();
    call.grad_value = grad_value.mutable_data_ptr();
    call.grad_coordinates = grad_coordinates.mutable_data_ptr();
    call.grad_weights = grad_weights.mutable_data_ptr();
    call.grad_reference = with_reference_points ? grad_reference.mutable_data_ptr() : nullptr;
    call.fixed_point_scale = fixed_point_scale ? fixed_point_scale->const_data_ptr() : nullptr;
    C10_CUDA_CHECK(launch(call));
  } else {
    grad_coordinates.zero_(), grad_weights.zero_(), grad_reference.zero_();  // heads without channels
  }
  return {grad_coordinates, grad_weights, grad_reference};
}

}  // namespace
}  // namespace mask2former

TORCH_LIBRARY(mask2former_cuda, library) {
  mask2former::define_origin(library);
  library.def(
      "forward(Tensor value, int[] sizes, Tensor coordinates, Tensor weights, Tensor? reference_points) -> Tensor",
      &mask2former::forward);
  library.def(
      "backward(Tensor grad_output, Tensor value, int[] sizes, Tensor coordinates, Tensor weights,"
      " Tensor? reference_points, Tensor(a!) grad_value, Tensor? fixed_point_scale, bool with_reference_points)"
      " -> (Tensor, Tensor, Tensor)",
      &mask2former::backward);
}
