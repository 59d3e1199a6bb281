// The loops of multi-scale deformable attention. ms_deform_attn.cpp includes this file once per instruction set, each
// time with another M2F_VARIANT (a namespace), M2F_TARGET (attributes of every function) and M2F_BYTES (the size of its
// vector registers), hence no include guard.
//
// Nothing here may instantiate a template of the standard library: the linker merges such functions across variants and
// could hand AVX-512 code to the others.
//
// B batch, S value tokens of all levels, T queries, n heads, d channels of a head, L levels, K points.

namespace mask2former::M2F_VARIANT {

#define M2F_INLINE M2F_TARGET inline __attribute__((always_inline))

// N numbers in a vector register. More bytes than a register has would go through memory.
template <typename T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T, int N>
using Vector = typename VectorOf<T, N>::type;

template <int N, typename acc_t>
M2F_INLINE Vector<acc_t, N> load(const acc_t* from) {
  Vector<acc_t, N> vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <int N, typename acc_t>
M2F_INLINE Vector<acc_t, N> load(const c10::BFloat16* from) {
  Vector<uint16_t, N> halves;
  __builtin_memcpy(&halves, from, sizeof(halves));
  const Vector<uint32_t, N> bits = __builtin_convertvector(halves, Vector<uint32_t, N>) << 16;
  Vector<acc_t, N> vector;
  __builtin_memcpy(&vector, &bits, sizeof(vector));
  return vector;
}

template <int N, typename acc_t>
M2F_INLINE void store(acc_t* to, Vector<acc_t, N> vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

template <int N, typename acc_t>
M2F_INLINE void store(c10::BFloat16* to, Vector<acc_t, N> vector) {
  for (int i = 0; i < N; ++i) {
    to[i] = c10::BFloat16(vector[i]);
  }
}

// Sum of all numbers of a vector, halves first.
template <int N, typename acc_t>
M2F_INLINE acc_t sum(Vector<acc_t, N> vector) {
  if constexpr (N == 1) {
    return vector[0];
  } else {
    Vector<acc_t, N / 2> halves[2];
    __builtin_memcpy(halves, &vector, sizeof(vector));
    return sum<N / 2, acc_t>(halves[0] + halves[1]);
  }
}

// The cell left above a place, how far the place lies from its center, and whether any of the four cells exists.
// A place that is not a number reads zeros like one outside.
template <typename acc_t>
struct Cell {
  int64_t x, y;
  acc_t right, below;
  bool readable;
};

// A coordinate times `scale` plus `base` is a place in cells, 0 the center of the first.
template <typename acc_t>
struct Frame {
  acc_t scale_x, base_x, scale_y, base_y;
};

template <typename acc_t>
M2F_INLINE Frame<acc_t> frame_of(
    const Sizes& sizes, const Places<acc_t>& places, int64_t batch, int64_t query, int64_t level_index) {
  const Level& level = sizes.levels[level_index];
  if (places.reference == nullptr) {
    return {acc_t(level.width), acc_t(-0.5), acc_t(level.height), acc_t(-0.5)};
  }
  const acc_t* point =
      places.reference + batch * places.reference_stride + (query * sizes.num_levels + level_index) * 2;
  return {acc_t(1), point[0] * level.width - acc_t(0.5), acc_t(1), point[1] * level.height - acc_t(0.5)};
}

template <typename acc_t>
M2F_INLINE Cell<acc_t> cell_at(const Level& level, const Frame<acc_t>& frame, const acc_t* coordinates) {
  const acc_t x = coordinates[0] * frame.scale_x + frame.base_x;
  const acc_t y = coordinates[1] * frame.scale_y + frame.base_y;
  if (!(x > -1 && y > -1 && x < level.width && y < level.height)) {
    return {0, 0, 0, 0, false};
  }
  const acc_t left = std::floor(x), above = std::floor(y);
  return {int64_t(left), int64_t(above), x - left, y - above, true};
}

// ---- forward -------------------------------------------------------------------------------------------------------

// Adds the up to four neighbors of a place that lie on the map; returns how many there are now.
template <typename acc_t>
M2F_INLINE int64_t add_neighbors(
    const Level& level, const Cell<acc_t>& cell, acc_t weight, Neighbor<acc_t>* neighbors, int64_t count) {
  const int64_t token = level.start + cell.y * level.width + cell.x;
  const bool has_left = cell.x >= 0, has_right = cell.x + 1 < level.width;
  if (cell.y >= 0) {
    const acc_t share = weight * (1 - cell.below);
    if (has_left) neighbors[count++] = {token, share * (1 - cell.right)};
    if (has_right) neighbors[count++] = {token + 1, share * cell.right};
  }
  if (cell.y + 1 < level.height) {
    const acc_t share = weight * cell.below;
    if (has_left) neighbors[count++] = {token + level.width, share * (1 - cell.right)};
    if (has_right) neighbors[count++] = {token + level.width + 1, share * cell.right};
  }
  return count;
}

// Weighted sum of M * N adjacent channels of all neighbors. The sums stay in registers.
template <int N, int M, typename value_t, typename acc_t>
M2F_INLINE void read_channels(
    const value_t* value, int64_t stride, const Neighbor<acc_t>* neighbors, int64_t count, value_t* out) {
  Vector<acc_t, N> total[M] = {};
  for (int64_t i = 0; i < count; ++i) {
    const value_t* from = value + neighbors[i].token * stride;
    for (int j = 0; j < M; ++j) {
      total[j] += load<N, acc_t>(from + j * N) * neighbors[i].weight;
    }
  }
  for (int j = 0; j < M; ++j) {
    store<N, acc_t>(out + j * N, total[j]);
  }
}

template <typename value_t, typename acc_t>
M2F_INLINE void read_head(
    const value_t* value, const Sizes& sizes, const Neighbor<acc_t>* neighbors, int64_t count, value_t* out) {
  constexpr int kLanes = M2F_BYTES / sizeof(acc_t), kFewLanes = 16 / sizeof(acc_t);
  constexpr int kVectors = 128 / M2F_BYTES;
  const int64_t stride = sizes.heads * sizes.channels, end = sizes.channels;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= end; c += kVectors * kLanes) {
    read_channels<kLanes, kVectors>(value + c, stride, neighbors, count, out + c);
  }
  for (; c + kLanes <= end; c += kLanes) {
    read_channels<kLanes, 1>(value + c, stride, neighbors, count, out + c);
  }
  for (; c + kFewLanes <= end; c += kFewLanes) {
    read_channels<kFewLanes, 1>(value + c, stride, neighbors, count, out + c);
  }
  for (; c < end; ++c) {
    read_channels<1, 1>(value + c, stride, neighbors, count, out + c);
  }
}

// exp(x - largest) for all x and, returned, one over their sum.
template <typename acc_t>
M2F_INLINE acc_t exponentials(const acc_t* logits, int64_t count, acc_t* out) {
  acc_t largest = logits[0];
  for (int64_t i = 1; i < count; ++i) {
    largest = logits[i] > largest ? logits[i] : largest;
  }
  acc_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = std::exp(logits[i] - largest);
    total += out[i];
  }
  return 1 / total;
}

// Rows [begin, end) of B * T. `scratch` has room for the weights, `neighbors` for 4 neighbors of every point of a head.
template <typename value_t, typename acc_t>
M2F_TARGET void forward(
    const Sizes& sizes, const Places<acc_t>& places, const value_t* value, const acc_t* weights, value_t* out,
    Neighbor<acc_t>* neighbors, acc_t* scratch, int64_t begin, int64_t end) {
  const int64_t points = sizes.num_levels * sizes.points;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t batch = row / sizes.queries, query = row % sizes.queries;
    for (int64_t head = 0; head < sizes.heads; ++head) {
      const int64_t first = (row * sizes.heads + head) * points;
      const acc_t* weight = weights + first;
      acc_t scale = 1;
      if (places.reference != nullptr) {  // fused: the weights are logits
        scale = exponentials(weight, points, scratch);
        weight = scratch;
      }
      const acc_t* coordinates = places.coordinates + first * 2;
      int64_t count = 0;
      for (int64_t l = 0; l < sizes.num_levels; ++l) {
        const Frame<acc_t> frame = frame_of(sizes, places, batch, query, l);
        for (int64_t k = 0; k < sizes.points; ++k, ++weight, coordinates += 2) {
          const Cell<acc_t> cell = cell_at(sizes.levels[l], frame, coordinates);
          if (cell.readable) {
            count = add_neighbors(sizes.levels[l], cell, *weight * scale, neighbors, count);
          }
        }
      }
      const int64_t channel = head * sizes.channels;
      read_head(
          value + batch * sizes.tokens * sizes.heads * sizes.channels + channel, sizes, neighbors, count,
          out + row * sizes.heads * sizes.channels + channel);
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// One neighbor: its value times the gradient, lane by lane, while its own gradient grows by `weight` times it.
template <int N, typename acc_t>
M2F_INLINE Vector<acc_t, N> visit(
    const acc_t* value, acc_t* grad_value, const acc_t* grad_output, acc_t weight, int64_t width) {
  Vector<acc_t, N> product = {};
  for (int64_t c = 0; c < width; c += N) {
    const Vector<acc_t, N> grad = load<N, acc_t>(grad_output + c);
    product += load<N, acc_t>(value + c) * grad;
    store<N, acc_t>(grad_value + c, load<N, acc_t>(grad_value + c) + grad * weight);
  }
  return product;
}

// One point: gradients of its two coordinates (in cells) and of its weight.
template <int N, typename acc_t>
M2F_INLINE void point_backward(
    const Level& level, const Cell<acc_t>& cell, acc_t weight, const acc_t* value, acc_t* grad_value,
    const acc_t* grad_output, int64_t width, acc_t* grad_place, acc_t* grad_weight) {
  const acc_t right = cell.right, left = 1 - right, below = cell.below, above = 1 - below;
  const int64_t at = (cell.y * level.width + cell.x) * width, next_row = level.width * width;
  const bool has_left = cell.x >= 0, has_right = cell.x + 1 < level.width;
  Vector<acc_t, N> along_x = {}, along_y = {}, read = {};
  if (cell.y >= 0 && has_left) {
    const auto product = visit<N>(value + at, grad_value + at, grad_output, weight * above * left, width);
    read += product * (above * left);
    along_x -= product * above;
    along_y -= product * left;
  }
  if (cell.y >= 0 && has_right) {
    const int64_t here = at + width;
    const auto product = visit<N>(value + here, grad_value + here, grad_output, weight * above * right, width);
    read += product * (above * right);
    along_x += product * above;
    along_y -= product * right;
  }
  if (cell.y + 1 < level.height && has_left) {
    const int64_t here = at + next_row;
    const auto product = visit<N>(value + here, grad_value + here, grad_output, weight * below * left, width);
    read += product * (below * left);
    along_x -= product * below;
    along_y += product * left;
  }
  if (cell.y + 1 < level.height && has_right) {
    const int64_t here = at + next_row + width;
    const auto product = visit<N>(value + here, grad_value + here, grad_output, weight * below * right, width);
    read += product * (below * right);
    along_x += product * below;
    along_y += product * right;
  }
  grad_place[0] = weight * sum<N, acc_t>(along_x);
  grad_place[1] = weight * sum<N, acc_t>(along_y);
  *grad_weight = sum<N, acc_t>(read);
}

// All queries of one level of one head. The level's slices of value and its gradient are dense, `width` channels each
// (a multiple of N): in the tensors, neighbors of one head lie n * d apart and share few sets of the cache.
template <int N, typename value_t, typename acc_t>
M2F_INLINE void level_backward(
    const Sizes& sizes, const Places<acc_t>& places, const Task& task, const acc_t* weights, const value_t* grad_output,
    acc_t* grad_places, acc_t* grad_weights, const acc_t* value, acc_t* grad_value, acc_t* grad_row, int64_t width) {
  const Level& level = sizes.levels[task.level];
  for (int64_t query = 0; query < sizes.queries; ++query) {
    const int64_t head_row = (task.batch * sizes.queries + query) * sizes.heads + task.head;
    const value_t* grad = grad_output + head_row * sizes.channels;
    for (int64_t c = 0; c < sizes.channels; ++c) {
      grad_row[c] = acc_t(grad[c]);
    }
    const Frame<acc_t> frame = frame_of(sizes, places, task.batch, query, task.level);
    const int64_t first = (head_row * sizes.num_levels + task.level) * sizes.points;
    for (int64_t i = first; i < first + sizes.points; ++i) {
      acc_t* grad_place = grad_places + 2 * i;
      const Cell<acc_t> cell = cell_at(level, frame, places.coordinates + 2 * i);
      if (!cell.readable) {
        grad_place[0] = grad_place[1] = grad_weights[i] = 0;
        continue;
      }
      point_backward<N>(
          level, cell, weights[i], value, grad_value, grad_row, width, grad_place, grad_weights + i);
      grad_place[0] *= frame.scale_x;
      grad_place[1] *= frame.scale_y;
    }
  }
}

// Value and value gradient of one level and head, and the whole of `scratch` that holds them and one row of gradients.
template <typename value_t, typename acc_t>
M2F_TARGET void backward(
    const Sizes& sizes, const Places<acc_t>& places, const Task& task, const value_t* value, const acc_t* weights,
    const value_t* grad_output, value_t* grad_value, acc_t* grad_places, acc_t* grad_weights, acc_t* scratch) {
  constexpr int kLanes = M2F_BYTES / sizeof(acc_t), kFewLanes = 16 / sizeof(acc_t);
  const Level& level = sizes.levels[task.level];
  const int64_t channels = sizes.channels, width = padded_width<acc_t>(channels), stride = sizes.heads * channels;
  const int64_t count = level.height * level.width;
  const int64_t first = (task.batch * sizes.tokens + level.start) * stride + task.head * channels;
  acc_t* grad_row = scratch;
  acc_t* value_slice = grad_row + width;
  acc_t* grad_slice = value_slice + count * width;
  __builtin_memset(scratch, 0, sizeof(acc_t) * width * (2 * count + 1));
  for (int64_t token = 0; token < count; ++token) {
    for (int64_t c = 0; c < channels; ++c) {
      value_slice[token * width + c] = acc_t(value[first + token * stride + c]);
    }
  }
  if (width % kLanes == 0) {
    level_backward<kLanes>(
        sizes, places, task, weights, grad_output, grad_places, grad_weights, value_slice, grad_slice, grad_row, width);
  } else {
    level_backward<kFewLanes>(
        sizes, places, task, weights, grad_output, grad_places, grad_weights, value_slice, grad_slice, grad_row, width);
  }
  for (int64_t token = 0; token < count; ++token) {
    for (int64_t c = 0; c < channels; ++c) {
      grad_value[first + token * stride + c] = value_t(grad_slice[token * width + c]);
    }
  }
}

#undef M2F_INLINE

}  // namespace mask2former::M2F_VARIANT
