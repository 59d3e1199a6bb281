// Multi-scale deformable attention on the CPU (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3): checks, memory,
// threads and the choice of the instruction set around the loops of cpu_kernels.h. ops/reference.py is the definition.
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points.

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"

namespace mask2former {
namespace {

struct Sizes {
  int64_t batch, tokens, heads, channels, queries, points, num_levels;
  const Level* levels;
};

// Where to read: coordinates (B, T, n, L, K, 2) are locations in [0, 1] or, with reference points (B or 1, T, L, 2),
// offsets from these in cells.
template <typename acc_t>
struct Places {
  const acc_t* coordinates;
  const acc_t* reference;
  int64_t reference_stride;  // between the pictures of a batch; 0 where they share the points
};

template <typename acc_t>
struct Neighbor {
  int64_t token;
  acc_t weight;
};

// What one thread does in the backward pass: nobody else writes the value gradient of this level of this head, so no
// atomic additions are needed and the result does not depend on the number of threads.
struct Task {
  int64_t batch, head, level;
};

// Channels of a row in the backward pass: a multiple of 64 bytes where that adds little, of 16 otherwise.
template <typename acc_t>
int64_t padded_width(int64_t channels) {
  constexpr int64_t kLanes = 64 / sizeof(acc_t);
  const int64_t lanes = channels % kLanes > kLanes / 2 || channels % kLanes == 0 ? kLanes : kLanes / 4;
  return (channels + lanes - 1) / lanes * lanes;
}

}  // namespace
}  // namespace mask2former

// The library must run on any machine of its architecture, so -march=native is out. On x86-64 the loops are compiled for
// three instruction sets and torch's own choice at run time (which ATEN_CPU_CAPABILITY lowers) picks one; elsewhere the
// baseline has vector instructions (NEON). ATen's Vectorized is of no use here: in an extension it is the slow fallback
// unless the whole file is compiled for one instruction set.
#define M2F_VARIANT baseline
#define M2F_BYTES 16
#define M2F_TARGET
#include "cpu_kernels.h"
#undef M2F_VARIANT
#undef M2F_TARGET
#undef M2F_BYTES

#if defined(__x86_64__)
#define M2F_VARIANT avx2
#define M2F_BYTES 32
#define M2F_TARGET __attribute__((target("avx2,fma")))
#include "cpu_kernels.h"
#undef M2F_VARIANT
#undef M2F_TARGET
#undef M2F_BYTES

#define M2F_VARIANT avx512
#define M2F_BYTES 64
#define M2F_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#include "cpu_kernels.h"
#undef M2F_VARIANT
#undef M2F_TARGET
#undef M2F_BYTES
#endif

namespace mask2former {
namespace {

template <typename Function>
Function select(Function baseline, [[maybe_unused]] Function avx2, [[maybe_unused]] Function avx512) {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512;
  }
  if (capability == "AVX2") {
    return avx2;
  }
#endif
  return baseline;
}

#if defined(__x86_64__)
#define M2F_SELECT(...) select(&baseline::__VA_ARGS__, &avx2::__VA_ARGS__, &avx512::__VA_ARGS__)
#else
#define M2F_SELECT(...) select(&baseline::__VA_ARGS__, &baseline::__VA_ARGS__, &baseline::__VA_ARGS__)
#endif

const Accepted kAccepted{at::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}, false};

Sizes sizes_of(const Arguments& arguments) {
  return {arguments.batch(),   arguments.tokens(), arguments.heads(),                 arguments.channels(),
          arguments.queries(), arguments.points(), int64_t(arguments.levels.size()), arguments.levels.data()};
}

template <typename acc_t>
Places<acc_t> places_of(const Arguments& arguments) {
  const auto& reference = arguments.reference;
  return {
      arguments.coordinates.const_data_ptr<acc_t>(),
      reference.defined() ? reference.const_data_ptr<acc_t>() : nullptr, arguments.reference_stride()};
}

template <typename value_t, typename acc_t>
void run_forward(const Arguments& arguments, at::Tensor& out) {
  const auto kernel = M2F_SELECT(forward<value_t, acc_t>);
  const Sizes sizes = sizes_of(arguments);
  const auto places = places_of<acc_t>(arguments);
  const auto* value = arguments.value.const_data_ptr<value_t>();
  const auto* weights = arguments.weights.const_data_ptr<acc_t>();
  auto* result = out.mutable_data_ptr<value_t>();
  constexpr int64_t kRowsWorthAThread = 16;
  at::parallel_for(0, sizes.batch * sizes.queries, kRowsWorthAThread, [&](int64_t begin, int64_t end) {
    const int64_t points = sizes.num_levels * sizes.points;
    std::vector<Neighbor<acc_t>> neighbors(4 * points);
    std::vector<acc_t> scratch(points);
    kernel(sizes, places, value, weights, result, neighbors.data(), scratch.data(), begin, end);
  });
}

at::Tensor forward_of(const Arguments& arguments) {
  auto out = at::empty(arguments.output_shape(), arguments.value.options());
  switch (arguments.value.scalar_type()) {
    case at::kDouble:
      run_forward<double, double>(arguments, out);
      break;
    case at::kBFloat16:
      run_forward<c10::BFloat16, float>(arguments, out);
      break;
    default:
      run_forward<float, float>(arguments, out);
  }
  return out;
}

struct Gradients {
  at::Tensor value, coordinates, weights;
};

template <typename value_t, typename acc_t>
void run_backward(const Arguments& arguments, const at::Tensor& grad_output, Gradients& gradients) {
  const auto kernel = M2F_SELECT(backward<value_t, acc_t>);
  const Sizes sizes = sizes_of(arguments);
  const auto places = places_of<acc_t>(arguments);
  const auto* value = arguments.value.const_data_ptr<value_t>();
  const auto* weights = arguments.weights.const_data_ptr<acc_t>();
  const auto* grad_out = grad_output.const_data_ptr<value_t>();
  auto* grad_value = gradients.value.mutable_data_ptr<value_t>();
  auto* grad_coordinates = gradients.coordinates.mutable_data_ptr<acc_t>();
  auto* grad_weights = gradients.weights.mutable_data_ptr<acc_t>();
  int64_t largest = 0;
  for (const Level& level : arguments.levels) {
    largest = std::max(largest, level.height * level.width);
  }
  // Room for a slice of value, its gradient and one row, see `backward`; a tensor is aligned to 64 bytes.
  const int64_t room = padded_width<acc_t>(sizes.channels) * (2 * largest + 1);
  const auto options = arguments.weights.options();
  at::parallel_for(0, sizes.batch * sizes.heads * sizes.num_levels, 1, [&](int64_t begin, int64_t end) {
    auto scratch = at::detail::empty_cpu({room}, options);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t rest = i / sizes.num_levels;
      const Task task{rest / sizes.heads, rest % sizes.heads, i % sizes.num_levels};
      kernel(
          sizes, places, task, value, weights, grad_out, grad_value, grad_coordinates, grad_weights,
          scratch.template mutable_data_ptr<acc_t>());
    }
  });
}

// `arguments.weights` are weights here, not logits.
Gradients backward_of(const at::Tensor& grad_output, const Arguments& arguments) {
  const auto& value = arguments.value;
  check("grad_output", grad_output, arguments.output_shape(), value.scalar_type(), value.device());
  Gradients gradients{
      at::empty_like(value), at::empty_like(arguments.coordinates), at::empty_like(arguments.weights)};
  const auto dense = grad_output.contiguous();
  switch (arguments.value.scalar_type()) {
    case at::kDouble:
      run_backward<double, double>(arguments, dense, gradients);
      break;
    case at::kBFloat16:
      run_backward<c10::BFloat16, float>(arguments, dense, gradients);
      break;
    default:
      run_backward<float, float>(arguments, dense, gradients);
  }
  return gradients;
}

// ---- what Python calls ---------------------------------------------------------------------------------------------

at::Tensor ms_deform_attn(
    const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& locations, const at::Tensor& weights) {
  return forward_of({kAccepted, value, sizes, locations, weights});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& locations,
    const at::Tensor& weights) {
  Gradients gradients = backward_of(grad_output, {kAccepted, value, sizes, locations, weights});
  return {gradients.value, gradients.coordinates, gradients.weights};
}

at::Tensor fused_ms_deform_attn(
    const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& reference_points, const at::Tensor& offsets,
    const at::Tensor& logits) {
  return forward_of({kAccepted, value, sizes, offsets, logits, reference_points});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> fused_ms_deform_attn_backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& reference_points,
    const at::Tensor& offsets, const at::Tensor& logits, bool with_reference_points) {
  const auto weights = logits.flatten(3).softmax(-1);
  const Arguments arguments{kAccepted, value, sizes, offsets, weights.view(logits.sizes()), reference_points};
  Gradients gradients = backward_of(grad_output, arguments);
  const auto grad_logits =
      at::_softmax_backward_data(gradients.weights.flatten(3), weights, -1, weights.scalar_type()).view(logits.sizes());

  if (!with_reference_points) {
    return {gradients.value, reference_points.new_empty({0}), gradients.coordinates, grad_logits};
  }
  // A reference point moves all points of all heads; from cells to shares of the map.
  std::vector<int64_t> summed{2, 4};
  if (reference_points.size(0) == 1) {
    summed.push_back(0);
  }
  auto grad_reference = gradients.coordinates.sum(summed).view(reference_points.sizes());
  for (size_t l = 0; l < arguments.levels.size(); ++l) {
    grad_reference.select(2, l).select(-1, 0).mul_(arguments.levels[l].width);
    grad_reference.select(2, l).select(-1, 1).mul_(arguments.levels[l].height);
  }
  return {gradients.value, grad_reference, gradients.coordinates, grad_logits};
}

}  // namespace
}  // namespace mask2former

TORCH_LIBRARY(mask2former_cpp, library) {
  mask2former::define_origin(library);
  library.def("forward(Tensor value, int[] sizes, Tensor locations, Tensor weights) -> Tensor");
  library.def(
      "backward(Tensor grad_output, Tensor value, int[] sizes, Tensor locations, Tensor weights)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "fused_forward(Tensor value, int[] sizes, Tensor reference_points, Tensor offsets, Tensor logits) -> Tensor");
  library.def(
      "fused_backward(Tensor grad_output, Tensor value, int[] sizes, Tensor reference_points, Tensor offsets,"
      " Tensor logits, bool with_reference_points) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mask2former_cpp, CPU, library) {
  library.impl("forward", &mask2former::ms_deform_attn);
  library.impl("backward", &mask2former::ms_deform_attn_backward);
  library.impl("fused_forward", &mask2former::fused_ms_deform_attn);
  library.impl("fused_backward", &mask2former::fused_ms_deform_attn_backward);
}
