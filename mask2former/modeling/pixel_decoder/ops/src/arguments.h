// What a call of multi-scale deformable attention is given, made dense and checked: for the libraries of all devices.
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points.

#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

// Given by the build: see ops/sources.py.
#ifndef M2F_SOURCES
#define M2F_SOURCES unknown
#endif
#define M2F_TEXT_OF(word) #word
#define M2F_TEXT(macro) M2F_TEXT_OF(macro)

namespace mask2former {
namespace {

// What loading a library compares before anything of it is used.
inline void define_origin(torch::Library& library) {
  library.def("built_for() -> str", [] { return std::string(TORCH_VERSION); });
  library.def("built_from() -> str", [] { return std::string(M2F_TEXT(M2F_SOURCES)); });
}

struct Level {
  int64_t height, width, start;
};

// What a library takes. Coordinates and weights are float64 where the value is, otherwise float32 or, with
// `narrow_points`, of the dtype of the value. Reference points are never narrow.
struct Accepted {
  at::DeviceType device;
  std::vector<at::ScalarType> value_dtypes;
  bool narrow_points;
};

inline void check(
    const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype, at::Device device) {
  TORCH_CHECK(tensor.device() == device, name, " must be on ", device, ", got ", tensor.device());
  TORCH_CHECK(tensor.sizes() == shape, name, " must be ", shape, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
}

// `coordinates` (B, T, n, L, K, 2) are locations in [0, 1] and `weights` (B, T, n, L, K) weights where `reference` is
// undefined; else offsets in cells from the reference points (B or 1, T, L, 2), and logits.
struct Arguments {
  at::Tensor value, coordinates, weights, reference;
  std::vector<Level> levels;

  Arguments(
      const Accepted& accepted, const at::Tensor& value, at::IntArrayRef sizes, const at::Tensor& coordinates,
      const at::Tensor& weights, const at::Tensor& reference = {})
      : value(value.contiguous()), coordinates(coordinates.contiguous()), weights(weights.contiguous()) {
    TORCH_CHECK(
        value.device().type() == accepted.device, "value must be on ", accepted.device, ", got ", value.device());
    TORCH_CHECK(value.dim() == 4, "value must be (B, S, heads, channels), got ", value.sizes());
    const auto& dtypes = accepted.value_dtypes;
    TORCH_CHECK(
        std::find(dtypes.begin(), dtypes.end(), value.scalar_type()) != dtypes.end(), "value must be one of ", dtypes,
        ", got ", value.scalar_type());
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
    TORCH_CHECK(points > 0, "coordinates must hold at least one point, got ", coordinates.sizes());
    const auto wide = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const bool narrow = accepted.narrow_points && coordinates.scalar_type() == value.scalar_type();
    const auto dtype = narrow ? value.scalar_type() : wide;
    const auto device = value.device();
    check("coordinates", coordinates, {value.size(0), queries, value.size(2), num_levels, points, 2}, dtype, device);
    check("weights", weights, {value.size(0), queries, value.size(2), num_levels, points}, dtype, device);
    if (reference.defined()) {
      TORCH_CHECK(reference.dim() == 4, "reference points must be (B or 1, T, L, 2), got ", reference.sizes());
      const int64_t shared = reference.size(0) == 1 ? 1 : value.size(0);
      check("reference points", reference, {shared, queries, num_levels, 2}, wide, device);
      this->reference = reference.contiguous();
    }
  }

  int64_t batch() const {
    return value.size(0);
  }
  int64_t tokens() const {
    return value.size(1);
  }
  int64_t heads() const {
    return value.size(2);
  }
  int64_t channels() const {
    return value.size(3);
  }
  int64_t queries() const {
    return coordinates.size(1);
  }
  int64_t points() const {
    return coordinates.size(4);
  }

  // Numbers between the reference points of two pictures; 0 where all pictures share them.
  int64_t reference_stride() const {
    return !reference.defined() || reference.size(0) == 1 ? 0 : reference.size(1) * reference.size(2) * 2;
  }

  std::vector<int64_t> output_shape() const {
    return {batch(), queries(), heads() * channels()};
  }
};

}  // namespace
}  // namespace mask2former
