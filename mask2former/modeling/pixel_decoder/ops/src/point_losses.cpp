// Mask losses at uncertain points on the CPU (Mask2Former, arXiv:2112.01527, Sec. 3.3): one map after the other, whose
// intermediate results never leave the cache. modeling/point_losses.py and modeling/matcher.py are the definition.
//
// M maps, (h, w) cells of a map, N masks, (H, W) pixels of a mask, P points, C of them candidates, U chosen of these.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mask2former {
namespace {

// Where points lie on a map that has got a border of zeros: the cell above to the left, and the way from its center to
// those of its neighbors.
struct Points {
  int64_t count, stride;
  const int32_t* corner;
  const float *right, *below;
};

// Sums over the points of one map.
struct Sums {
  float entropy, probability, target, overlap;
};

// How many indices of either kind were found.
struct Split {
  int64_t num_below, num_near;
};

// Which lanes of a vector of eight a mask of eight bits names, first to last; then any.
struct Lanes {
  uint8_t of[256][8];
};

constexpr Lanes kLanes = [] {
  Lanes lanes{};
  for (int mask = 0; mask < 256; ++mask) {
    int count = 0;
    for (uint8_t lane = 0; lane < 8; ++lane) {
      if (mask >> lane & 1) {
        lanes.of[mask][count++] = lane;
      }
    }
  }
  return lanes;
}();

// So many numbers are added before their sum is: one sum of thousands of like numbers drifts by its rounding.
constexpr int64_t kSumLength = 512;

}  // namespace
}  // namespace mask2former

// As in ms_deform_attn.cpp: one library for all machines, whose loops exist for three instruction sets.
#define M2F_VARIANT points_baseline
#define M2F_VECTOR_BITS 0
#define M2F_TARGET
#include "point_losses_kernels.h"
#undef M2F_VARIANT
#undef M2F_VECTOR_BITS
#undef M2F_TARGET

#if defined(__x86_64__)
#define M2F_VARIANT points_avx2
#define M2F_VECTOR_BITS 256
#define M2F_TARGET __attribute__((target("avx2,fma,tune=haswell")))
#include "point_losses_kernels.h"
#undef M2F_VARIANT
#undef M2F_VECTOR_BITS
#undef M2F_TARGET

#define M2F_VARIANT points_avx512
#define M2F_VECTOR_BITS 512
#define M2F_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512,tune=skylake-avx512")))
#include "point_losses_kernels.h"
#undef M2F_VARIANT
#undef M2F_VECTOR_BITS
#undef M2F_TARGET
#endif

namespace mask2former {
namespace {

struct Loops {
  decltype(&points_baseline::read_points) read_points;
  decltype(&points_baseline::read_mask) read_mask;
  decltype(&points_baseline::read_chosen) read_chosen;
  decltype(&points_baseline::gather) gather;
  decltype(&points_baseline::split) split;
  decltype(&points_baseline::add_up) add_up;
  decltype(&points_baseline::activate) activate;
  decltype(&points_baseline::gradients) gradients;
};

#define M2F_LOOPS(VARIANT)                                               \
  Loops{&VARIANT::read_points, &VARIANT::read_mask, &VARIANT::read_chosen, &VARIANT::gather, &VARIANT::split, \
        &VARIANT::add_up, &VARIANT::activate, &VARIANT::gradients}

const Loops& loops() {
  static const Loops chosen = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") {
      return M2F_LOOPS(points_avx512);
    }
    if (capability == "AVX2") {
      return M2F_LOOPS(points_avx2);
    }
#endif
    return M2F_LOOPS(points_baseline);
  }();
  return chosen;
}

void check(const char* name, const at::Tensor& tensor, int64_t dimensions, at::ScalarType dtype) {
  TORCH_CHECK(tensor.device().is_cpu(), name, " must be on the CPU, got ", tensor.device());
  TORCH_CHECK(tensor.dim() == dimensions, name, " must have ", dimensions, " dimensions, got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
}

// The table of points for maps of one size.
class PointTable {
 public:
  PointTable(const at::Tensor& points_P2, int64_t height, int64_t width)
      : stride_(width + 2), corner_(points_P2.size(0)), right_(points_P2.size(0)), below_(points_P2.size(0)) {
    check("points", points_P2, 2, at::kFloat);
    TORCH_CHECK(points_P2.size(1) == 2, "points must be (P, 2), got ", points_P2.sizes());
    TORCH_CHECK((height + 2) * (width + 2) <= INT32_MAX, "maps of ", height, "x", width, " cells are too large");
    const auto dense = points_P2.contiguous();
    const float* place = dense.const_data_ptr<float>();
    for (size_t i = 0; i < corner_.size(); ++i) {
      const int64_t column = cell(place[2 * i], width, right_[i]), row = cell(place[2 * i + 1], height, below_[i]);
      corner_[i] = int32_t((row + 1) * stride_ + column + 1);
    }
  }

  Points view() const {
    return {int64_t(corner_.size()), stride_, corner_.data(), right_.data(), below_.data()};
  }

 private:
  // Along one axis: the cell before a place in [0, 1], -1 the border, and how far the place lies beyond its center.
  // Places outside, and what is not a number, read the border.
  static int64_t cell(float place, int64_t length, float& share) {
    float position = place * float(length) - 0.5f;
    position = position > -1 ? position : -1;
    position = position < float(length) ? position : float(length);
    const int64_t low = std::min(int64_t(std::floor(position)), length - 1);
    share = position - float(low);
    return low;
  }

  int64_t stride_;
  std::vector<int32_t> corner_;
  std::vector<float> right_, below_;
};

template <typename T>
void pad(const T* map, int64_t height, int64_t width, T* padded) {
  for (int64_t row = 0; row < height; ++row) {
    std::memcpy(padded + (row + 1) * (width + 2) + 1, map + row * width, width * sizeof(T));
  }
}

// Finds the `wanted` of `count` values that are closest to zero. Which of equally close ones is taken follows from the
// values alone.
class Selection {
 public:
  Selection(int64_t count, int64_t wanted)
      : count_(count), wanted_(wanted), values_(count), index_(count), found_(count + 16) {}

  // Writes their indices, in no order.
  void operator()(const float* values, int32_t* out) {
    if (wanted_ == 0) {
      return;
    }
    std::copy_n(values, count_, values_.begin());
    std::iota(index_.begin(), index_.end(), 0);
    // Those that are certainly wanted are noted, and those near the limit, some quarter, are looked at again.
    int64_t count = count_, num_found = 0;
    while (count > 4 * kSampleSize) {
      const int64_t wanted = wanted_ - num_found;
      const auto [low, high] = bracket(count, wanted);
      const auto [num_below, num_near] =
          loops().split(values_.data(), index_.data(), count, low, high, found_.data() + num_found);
      if (num_below > wanted || num_below + num_near < wanted) {  // the sample misled: look at all
        std::copy_n(values, count_, values_.begin());
        std::iota(index_.begin(), index_.end(), 0);
        count = count_;
        num_found = 0;
        break;
      }
      num_found += num_below;
      if (num_near == count) {  // equal, most of them
        break;
      }
      count = num_near;
    }
    places_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      places_[i] = int64_t(points_baseline::magnitude(values_[i])) << 32 | index_[i];
    }
    const auto end = places_.begin() + (wanted_ - num_found);
    std::nth_element(places_.begin(), end, places_.end());
    out = std::copy_n(found_.begin(), num_found, out);
    std::transform(places_.begin(), end, out, [](int64_t place) { return int32_t(place & UINT32_MAX); });
  }

 private:
  static constexpr int64_t kSampleSize = 256;

  // Magnitudes between which the last wanted one most likely lies: order statistics of a sample, four standard
  // deviations apart from its expected rank.
  std::pair<int32_t, int32_t> bracket(int64_t count, int64_t wanted) {
    std::array<int32_t, kSampleSize> sample;
    for (int64_t i = 0; i < kSampleSize; ++i) {
      sample[i] = points_baseline::magnitude(values_[i * count / kSampleSize]);
    }
    std::sort(sample.begin(), sample.end());
    const double share = double(wanted) / double(count);
    const int64_t margin = int64_t(4 * std::sqrt(kSampleSize * share * (1 - share))) + 1;
    const int64_t rank = int64_t(kSampleSize * share);
    return {rank > margin ? sample[rank - margin] : 0, rank + margin < kSampleSize ? sample[rank + margin] : INT32_MAX};
  }

  int64_t count_, wanted_;
  std::vector<float> values_;  // those that are still looked at
  std::vector<int32_t> index_;  // and what they are called
  std::vector<int32_t> found_;  // names of those that are certainly wanted
  std::vector<int64_t> places_;  // magnitude, then name
};

// The arguments that forward and backward pass share, dense and checked.
struct Comparison {
  at::Tensor maps, values, target;
  int64_t candidates, uncertain;
  PointTable table;

  Comparison(
      const at::Tensor& maps, const at::Tensor& points, const at::Tensor& values, const at::Tensor& target,
      int64_t candidates, int64_t uncertain)
      : maps(maps.contiguous()),
        values(values.contiguous()),
        target(target.contiguous()),
        candidates(candidates),
        uncertain(uncertain),
        table(points, maps.size(1), maps.size(2)) {
    check("maps", maps, 3, at::kFloat);
    check("values", values, 2, at::kFloat);
    check("target", target, 1, at::kLong);
    TORCH_CHECK(values.size(1) == points.size(0), "values must be (N, ", points.size(0), "), got ", values.sizes());
    TORCH_CHECK(target.size(0) == maps.size(0), "target must be (", maps.size(0), ",), got ", target.sizes());
    TORCH_CHECK(
        0 <= uncertain && uncertain <= candidates && candidates <= points.size(0), uncertain, " of ", candidates,
        " candidates cannot be chosen among ", points.size(0), " points");
    const auto* index = this->target.const_data_ptr<int64_t>();
    const bool exist = std::all_of(index, index + target.size(0), [&](int64_t n) { return 0 <= n && n < values.size(0); });
    TORCH_CHECK(exist, "target must index the ", values.size(0), " rows of values");
  }

  int64_t used() const { return uncertain + table.view().count - candidates; }
  int64_t padded_cells() const { return (maps.size(1) + 2) * (maps.size(2) + 2); }
  const float* map(int64_t m) const { return maps.const_data_ptr<float>() + m * maps.size(1) * maps.size(2); }
  const float* values_of(int64_t m) const {
    return values.const_data_ptr<float>() + target.const_data_ptr<int64_t>()[m] * values.size(1);
  }
};

std::tuple<at::Tensor, at::Tensor> point_losses(
    const at::Tensor& maps, const at::Tensor& points, const at::Tensor& values, const at::Tensor& target,
    int64_t candidates, int64_t uncertain) {
  const Comparison given(maps, points, values, target, candidates, uncertain);
  const Points places = given.table.view();
  const int64_t num_maps = maps.size(0), height = maps.size(1), width = maps.size(2), used = given.used();
  auto losses = at::empty({2, num_maps}, maps.options());
  auto chosen = at::empty({num_maps, uncertain}, maps.options().dtype(at::kInt));
  auto* loss = losses.mutable_data_ptr<float>();
  at::parallel_for(0, num_maps, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> padded(given.padded_cells()), logits(places.count), x(used), t(used);
    Selection select(candidates, uncertain);
    for (int64_t m = begin; m < end; ++m) {
      pad(given.map(m), height, width, padded.data());
      loops().read_points(padded.data(), places, 0, places.count, logits.data());
      auto* index = chosen.mutable_data_ptr<int32_t>() + m * uncertain;
      select(logits.data(), index);
      const float* target_values = given.values_of(m);
      loops().gather(logits.data(), index, uncertain, x.data());
      loops().gather(target_values, index, uncertain, t.data());
      std::copy(logits.begin() + candidates, logits.end(), x.begin() + uncertain);
      std::copy(target_values + candidates, target_values + places.count, t.begin() + uncertain);
      const Sums sums = loops().add_up(x.data(), t.data(), used, x.data());
      loss[m] = sums.entropy / float(used);
      loss[num_maps + m] = 1 - (2 * sums.overlap + 1) / (sums.probability + sums.target + 1);
    }
  });
  return {losses, chosen};
}

at::Tensor point_losses_backward(
    const at::Tensor& grad_losses, const at::Tensor& maps, const at::Tensor& points, const at::Tensor& values,
    const at::Tensor& target, const at::Tensor& chosen, int64_t candidates) {
  const Comparison given(maps, points, values, target, candidates, chosen.size(1));
  check("grad_losses", grad_losses, 2, at::kFloat);
  check("chosen", chosen, 2, at::kInt);
  const Points places = given.table.view();
  const int64_t num_maps = maps.size(0), height = maps.size(1), width = maps.size(2), used = given.used();
  const int64_t uncertain = chosen.size(1);
  const auto grads = grad_losses.contiguous(), indices = chosen.contiguous();
  const float* grad = grads.const_data_ptr<float>();
  auto grad_maps = at::empty({num_maps, height, width}, maps.options());
  at::parallel_for(0, num_maps, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> padded(given.padded_cells()), padded_grad(given.padded_cells()), x(used), t(used);
    std::vector<int32_t> index(used);
    for (int64_t j = uncertain; j < used; ++j) {
      index[j] = int32_t(candidates + j - uncertain);
    }
    for (int64_t m = begin; m < end; ++m) {
      std::copy_n(indices.const_data_ptr<int32_t>() + m * uncertain, uncertain, index.begin());
      pad(given.map(m), height, width, padded.data());
      loops().read_chosen(padded.data(), places, index.data(), used, x.data());
      loops().gather(given.values_of(m), index.data(), used, t.data());
      const Sums sums = loops().add_up(x.data(), t.data(), used, x.data());
      loops().gradients(x.data(), t.data(), used, sums, grad[m] / float(used), grad[num_maps + m], x.data());
      std::fill(padded_grad.begin(), padded_grad.end(), 0.0f);
      for (int64_t j = 0; j < used; ++j) {
        const int32_t k = index[j];
        float* cell = padded_grad.data() + places.corner[k];
        const float lower = x[j] * places.below[k], upper = x[j] - lower;
        const float upper_right = upper * places.right[k], lower_right = lower * places.right[k];
        cell[0] += upper - upper_right;
        cell[1] += upper_right;
        cell[places.stride] += lower - lower_right;
        cell[places.stride + 1] += lower_right;
      }
      float* out = grad_maps.mutable_data_ptr<float>() + m * height * width;
      for (int64_t row = 0; row < height; ++row) {
        std::copy_n(padded_grad.data() + (row + 1) * places.stride + 1, width, out + row * width);
      }
    }
  });
  return grad_maps;
}

// Values of masks, true or false, at points: (N, P).
at::Tensor sample_masks(const at::Tensor& masks, const at::Tensor& points) {
  check("masks", masks, 3, at::kBool);
  const int64_t num_masks = masks.size(0), height = masks.size(1), width = masks.size(2);
  const PointTable table(points, height, width);
  const Points places = table.view();
  const auto dense = masks.contiguous();
  const auto* pixels = reinterpret_cast<const uint8_t*>(dense.const_data_ptr<bool>());
  auto sampled = at::empty({num_masks, places.count}, masks.options().dtype(at::kFloat));
  auto* out = sampled.mutable_data_ptr<float>();
  at::parallel_for(0, num_masks, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> padded((height + 2) * (width + 2) + 3);
    for (int64_t n = begin; n < end; ++n) {
      pad(pixels + n * height * width, height, width, padded.data());
      loops().read_mask(padded.data(), places, out + n * places.count);
    }
  });
  return sampled;
}

// What costs are made of: the probabilities of logits (..., P) and, over P, the sums of softplus and probabilities.
std::tuple<at::Tensor, at::Tensor, at::Tensor> activate_logits(const at::Tensor& logits) {
  check("logits", logits, logits.dim(), at::kFloat);
  TORCH_CHECK(logits.dim() > 0, "logits must have points");
  const auto dense = logits.contiguous();
  const int64_t points = dense.size(-1);
  const auto shape = dense.sizes().slice(0, dense.dim() - 1);
  auto probabilities = at::empty_like(dense);
  auto softplus = at::empty(shape, dense.options()), sums = at::empty(shape, dense.options());
  const float* from = dense.const_data_ptr<float>();
  auto *to = probabilities.mutable_data_ptr<float>(), *softplus_sum = softplus.mutable_data_ptr<float>();
  auto* probability_sum = sums.mutable_data_ptr<float>();
  at::parallel_for(0, softplus.numel(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Sums of_row = loops().activate(from + row * points, points, to + row * points);
      softplus_sum[row] = of_row.entropy;
      probability_sum[row] = of_row.probability;
    }
  });
  return {probabilities, softplus, sums};
}

}  // namespace
}  // namespace mask2former

TORCH_LIBRARY_FRAGMENT(mask2former_cpp, library) {
  library.def(
      "point_losses(Tensor maps, Tensor points, Tensor values, Tensor target, int candidates, int uncertain)"
      " -> (Tensor, Tensor)");
  library.def(
      "point_losses_backward(Tensor grad_losses, Tensor maps, Tensor points, Tensor values, Tensor target,"
      " Tensor chosen, int candidates) -> Tensor");
  library.def("sample_masks(Tensor masks, Tensor points) -> Tensor");
  library.def("activate_logits(Tensor logits) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mask2former_cpp, CPU, library) {
  library.impl("point_losses", &mask2former::point_losses);
  library.impl("point_losses_backward", &mask2former::point_losses_backward);
  library.impl("sample_masks", &mask2former::sample_masks);
  library.impl("activate_logits", &mask2former::activate_logits);
}
