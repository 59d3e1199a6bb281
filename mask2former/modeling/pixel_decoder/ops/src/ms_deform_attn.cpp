// Multi-scale deformable attention on the CPU (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3): checks, memory,
// threads and the choice of the instruction set around the loops of kernels.h. ops/reference.py is the definition.
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace mask2former {
namespace {

struct Level {
  int64_t height, width, start;
};

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
#include "kernels.h"
#undef M2F_VARIANT
#undef M2F_TARGET
#undef M2F_BYTES

#if defined(__x86_64__)
#define M2F_VARIANT avx2
#define M2F_BYTES 32
#define M2F_TARGET __attribute__((target("avx2,fma")))
#include "kernels.h"
#undef M2F_VARIANT
#undef M2F_TARGET
#undef M2F_BYTES

#define M2F_VARIANT avx512
#define M2F_BYTES 64
#define M2F_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#include "kernels.h"
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

// The arguments of one call, dense and checked. `reference` is undefined where coordinates are locations.
struct Arguments {
  at::Tensor value, coordinates, weights, reference;
  std::vector<Level> levels;

  Arguments(
      const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& coordinates, const at::Tensor& weights,
      const at::Tensor& reference = {});

  Sizes sizes() const {
    return {value.size(0), value.size(1), value.size(2), value.size(3), coordinates.size(1), coordinates.size(4),
            int64_t(levels.size()), levels.data()};
  }

  template <typename acc_t>
  Places<acc_t> places() const {
    if (!reference.defined()) {
      return {coordinates.const_data_ptr<acc_t>(), nullptr, 0};
    }
    const int64_t stride = reference.size(0) == 1 ? 0 : reference.size(1) * reference.size(2) * 2;
    return {coordinates.const_data_ptr<acc_t>(), reference.const_data_ptr<acc_t>(), stride};
  }
};

void check(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK(tensor.device().is_cpu(), name, " must be on the CPU, got ", tensor.device());
  TORCH_CHECK(tensor.sizes() == shape, name, " must be ", shape, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
}

Arguments::Arguments(
    const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& coordinates, const at::Tensor& weights,
    const at::Tensor& reference)
    : value(value.contiguous()), coordinates(coordinates.contiguous()), weights(weights.contiguous()) {
  TORCH_CHECK(value.dim() == 4, "value must be (B, S, heads, channels), got ", value.sizes());
  TORCH_CHECK(
      value.scalar_type() == at::kFloat || value.scalar_type() == at::kDouble || value.scalar_type() == at::kBFloat16,
      "value must be float32, float64 or bfloat16, got ", value.scalar_type());
  TORCH_CHECK(!sizes.empty() && sizes.size() % 2 == 0, "sizes must hold pairs (height, width), got ", sizes);
  int64_t start = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    TORCH_CHECK(sizes[i] > 0 && sizes[i + 1] > 0, "sizes must be positive, got ", sizes);
    levels.push_back({sizes[i], sizes[i + 1], start});
    start += sizes[i] * sizes[i + 1];
  }
  TORCH_CHECK(start == value.size(1), "sizes ", sizes, " must add up to the ", value.size(1), " tokens of value");
  TORCH_CHECK(coordinates.dim() == 6, "coordinates must be (B, T, heads, L, points, 2), got ", coordinates.sizes());
  const int64_t num_levels = levels.size(), queries = coordinates.size(1), points = coordinates.size(4);
  const auto dtype = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  check("value", value, value.sizes(), value.scalar_type());
  check("coordinates", coordinates, {value.size(0), queries, value.size(2), num_levels, points, 2}, dtype);
  check("weights", weights, {value.size(0), queries, value.size(2), num_levels, points}, dtype);
  TORCH_CHECK(points > 0, "coordinates must hold at least one point, got ", coordinates.sizes());
  if (reference.defined()) {
    TORCH_CHECK(reference.dim() == 4, "reference points must be (B or 1, T, L, 2), got ", reference.sizes());
    const int64_t shared = reference.size(0) == 1 ? 1 : value.size(0);
    check("reference points", reference, {shared, queries, num_levels, 2}, dtype);
    this->reference = reference.contiguous();
  }
}

template <typename value_t, typename acc_t>
void run_forward(const Arguments& arguments, at::Tensor& out) {
  const auto kernel = M2F_SELECT(forward<value_t, acc_t>);
  const Sizes sizes = arguments.sizes();
  const auto places = arguments.places<acc_t>();
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
  const Sizes sizes = arguments.sizes();
  auto out = at::empty({sizes.batch, sizes.queries, sizes.heads * sizes.channels}, arguments.value.options());
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
  const Sizes sizes = arguments.sizes();
  const auto places = arguments.places<acc_t>();
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
  const Sizes sizes = arguments.sizes();
  const std::vector<int64_t> shape{sizes.batch, sizes.queries, sizes.heads * sizes.channels};
  check("grad_output", grad_output, shape, arguments.value.scalar_type());
  Gradients gradients{
      at::empty_like(arguments.value), at::empty_like(arguments.coordinates), at::empty_like(arguments.weights)};
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
  return forward_of({value, sizes, locations, weights});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& locations,
    const at::Tensor& weights) {
  Gradients gradients = backward_of(grad_output, {value, sizes, locations, weights});
  return {gradients.value, gradients.coordinates, gradients.weights};
}

at::Tensor fused_ms_deform_attn(
    const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& reference_points, const at::Tensor& offsets,
    const at::Tensor& logits) {
  return forward_of({value, sizes, offsets, logits, reference_points});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> fused_ms_deform_attn_backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& reference_points,
    const at::Tensor& offsets, const at::Tensor& logits) {
  const auto weights = logits.flatten(3).softmax(-1);
  const Arguments arguments{value, sizes, offsets, weights.view(logits.sizes()), reference_points};
  Gradients gradients = backward_of(grad_output, arguments);
  const auto grad_logits =
      at::_softmax_backward_data(gradients.weights.flatten(3), weights, -1, weights.scalar_type()).view(logits.sizes());

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

std::string built_for() {
  return TORCH_VERSION;
}

}  // namespace
}  // namespace mask2former

TORCH_LIBRARY(mask2former_cpp, library) {
  library.def("built_for() -> str", &mask2former::built_for);
  library.def("forward(Tensor value, int[] sizes, Tensor locations, Tensor weights) -> Tensor");
  library.def(
      "backward(Tensor grad_output, Tensor value, int[] sizes, Tensor locations, Tensor weights)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "fused_forward(Tensor value, int[] sizes, Tensor reference_points, Tensor offsets, Tensor logits) -> Tensor");
  library.def(
      "fused_backward(Tensor grad_output, Tensor value, int[] sizes, Tensor reference_points, Tensor offsets,"
      " Tensor logits) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mask2former_cpp, CPU, library) {
  library.impl("forward", &mask2former::ms_deform_attn);
  library.impl("backward", &mask2former::ms_deform_attn_backward);
  library.impl("fused_forward", &mask2former::fused_ms_deform_attn);
  library.impl("fused_backward", &mask2former::fused_ms_deform_attn_backward);
}
