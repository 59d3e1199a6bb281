// The loops of point_losses.cpp, which includes this file once per instruction set, each time with another M2F_VARIANT
// (a namespace) and M2F_TARGET (attributes of every function), hence no include guard. The compiler vectorizes them.
//
// Nothing here may instantiate a template of the standard library: the linker merges such functions across variants and
// could hand AVX-512 code to the others.

namespace mask2former::M2F_VARIANT {

#define M2F_INLINE M2F_TARGET inline __attribute__((always_inline))

// Bilinear values of a map with a border of zeros at the points `first`, `first + 1`...
M2F_TARGET inline void read_points(const float* padded, const Points& points, int64_t first, int64_t end, float* out) {
  const int32_t* corner = points.corner;
  const float *right = points.right, *below = points.below;
  const int32_t stride = int32_t(points.stride);
#pragma omp simd
  for (int64_t j = first; j < end; ++j) {
    const int32_t i = corner[j];
    const float a = padded[i], b = padded[i + 1], c = padded[i + stride], d = padded[i + stride + 1];
    const float above = a + (b - a) * right[j];
    out[j - first] = above + (c + (d - c) * right[j] - above) * below[j];
  }
}

// The same at the points that `index` names.
M2F_TARGET inline void read_chosen(
    const float* padded, const Points& points, const int32_t* index, int64_t count, float* out) {
  const int32_t* corner = points.corner;
  const float *right = points.right, *below = points.below;
  const int32_t stride = int32_t(points.stride);
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const int32_t k = index[j], i = corner[k];
    const float a = padded[i], b = padded[i + 1], c = padded[i + stride], d = padded[i + stride + 1];
    const float above = a + (b - a) * right[k];
    out[j] = above + (c + (d - c) * right[k] - above) * below[k];
  }
}

M2F_TARGET inline void gather(const float* from, const int32_t* index, int64_t count, float* out) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    out[j] = from[index[j]];
  }
}

// exp(-x) for x >= 0, to 2 units in the last place: 2^n * 2^f with f in [-0.5, 0.5], the latter as a Taylor polynomial.
M2F_INLINE float exp_of_negative(float x) {
  const float scaled = (x < 87.0f ? x : 87.0f) * -1.44269504f;
  const float shifted = scaled + 12582912.0f;  // 1.5 * 2^23: rounds to an integer, which its low bits hold
  const float whole = shifted - 12582912.0f;
  // ln 2 in two parts, so that the difference of large numbers stays exact.
  const float rest = (x < 87.0f ? -x : -87.0f) - whole * 0.693359375f + whole * 2.12194440e-4f;
  float power = 1.0f / 5040.0f;
  power = power * rest + 1.0f / 720.0f;
  power = power * rest + 1.0f / 120.0f;
  power = power * rest + 1.0f / 24.0f;
  power = power * rest + 1.0f / 6.0f;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  int32_t bits, exponent;
  __builtin_memcpy(&bits, &power, sizeof(bits));
  __builtin_memcpy(&exponent, &shifted, sizeof(exponent));
  bits += exponent << 23;
  __builtin_memcpy(&power, &bits, sizeof(bits));
  return power;
}

// log(1 + z) for z in [0, 1], as 2 * artanh(z / (2 + z)).
M2F_INLINE float log_of_one_plus(float z) {
  const float ratio = z / (2.0f + z), square = ratio * ratio;
  float series = 2.0f / 15.0f;
  series = series * square + 2.0f / 13.0f;
  series = series * square + 2.0f / 11.0f;
  series = series * square + 2.0f / 9.0f;
  series = series * square + 2.0f / 7.0f;
  series = series * square + 2.0f / 5.0f;
  series = series * square + 2.0f / 3.0f;
  series = series * square + 2.0f;
  return ratio * series;
}

// Sums over points of logits and targets; probabilities may take the place of the logits.
M2F_TARGET inline Sums add_up(const float* logits, const float* targets, int64_t count, float* probabilities) {
  Sums sums{0, 0, 0, 0};
  for (int64_t first = 0; first < count; first += kSumLength) {
    const int64_t end = first + kSumLength < count ? first + kSumLength : count;
    float entropy = 0, probability = 0, target = 0, overlap = 0;
#pragma omp simd reduction(+ : entropy, probability, target, overlap)
    for (int64_t j = first; j < end; ++j) {
      const float x = logits[j], t = targets[j];
      const float small = exp_of_negative(x < 0 ? -x : x);
      const float p = (x < 0 ? small : 1.0f) / (1.0f + small);
      entropy += (x < 0 ? 0.0f : x) - x * t + log_of_one_plus(small);
      probability += p;
      target += t;
      overlap += p * t;
      probabilities[j] = p;
    }
    sums.entropy += entropy;
    sums.probability += probability;
    sums.target += target;
    sums.overlap += overlap;
  }
  return sums;
}

// The sums of softplus and of the probabilities over the points of one row of logits; writes the probabilities.
M2F_TARGET inline Sums activate(const float* logits, int64_t count, float* probabilities) {
  Sums sums{0, 0, 0, 0};
  for (int64_t first = 0; first < count; first += kSumLength) {
    const int64_t end = first + kSumLength < count ? first + kSumLength : count;
    float softplus = 0, probability = 0;
#pragma omp simd reduction(+ : softplus, probability)
    for (int64_t j = first; j < end; ++j) {
      const float x = logits[j];
      const float small = exp_of_negative(x < 0 ? -x : x);
      const float p = (x < 0 ? small : 1.0f) / (1.0f + small);
      softplus += (x < 0 ? 0.0f : x) + log_of_one_plus(small);
      probability += p;
      probabilities[j] = p;
    }
    sums.entropy += softplus;
    sums.probability += probability;
  }
  return sums;
}

// Gradient of `entropy_factor` * cross-entropy sum + `dice_factor` * dice loss with respect to each logit.
M2F_TARGET inline void gradients(
    const float* probabilities, const float* targets, int64_t count, const Sums& sums, float entropy_factor,
    float dice_factor, float* out) {
  const float size = sums.probability + sums.target + 1, overlap = 2 * sums.overlap + 1;
  const float base = dice_factor * overlap / (size * size), slope = -2 * dice_factor / size;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const float p = probabilities[j], t = targets[j];
    out[j] = entropy_factor * (p - t) + p * (1 - p) * (base + slope * t);
  }
}

#undef M2F_INLINE

}  // namespace mask2former::M2F_VARIANT
