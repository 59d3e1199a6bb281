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

// The same of a mask, true or false, with a border of zeros and three bytes behind it.
M2F_TARGET inline void read_mask(const uint8_t* padded, const Points& points, float* out) {
  // One load for two neighbors: a byte cannot be gathered.
  typedef int32_t __attribute__((aligned(1), may_alias)) Word;
  const int32_t* corner = points.corner;
  const float *right = points.right, *below = points.below;
  const uint8_t* padded_below = padded + points.stride;
#pragma omp simd
  for (int64_t j = 0; j < points.count; ++j) {
    const int32_t ab = *(const Word*)(padded + corner[j]), cd = *(const Word*)(padded_below + corner[j]);
    const float a = float(ab & 1), b = float(ab >> 8 & 1), c = float(cd & 1), d = float(cd >> 8 & 1);
    const float above = a + (b - a) * right[j];
    out[j] = above + (c + (d - c) * right[j] - above) * below[j];
  }
}

// Bilinear values of a map, as above, at the points that `index` names.
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

// A float without its sign, as an integer: these are ordered like the magnitudes.
M2F_INLINE int32_t magnitude(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits & 0x7fffffff;
}

// Writes to `below` the indices of the values of magnitude below `low`, and moves those of magnitude in [low, high] to
// the front of both arrays. Order stays. `below` has room for 16 more than it gets. Without branches, which nobody could
// predict; compilers do not vectorize it.
M2F_TARGET inline Split split(
    float* values, int32_t* index, int64_t count, int32_t low, int32_t high, int32_t* below) {
  Split found{0, 0};
  int64_t i = 0;
#if M2F_VECTOR_BITS == 512
  const __m512i lows = _mm512_set1_epi32(low), highs = _mm512_set1_epi32(high);
  const __m512i without_sign = _mm512_set1_epi32(0x7fffffff);
  for (; i + 16 <= count; i += 16) {
    const __m512i value = _mm512_loadu_si512(values + i), name = _mm512_loadu_si512(index + i);
    const __m512i key = _mm512_and_si512(value, without_sign);
    const __mmask16 is_below = _mm512_cmplt_epi32_mask(key, lows);
    const __mmask16 is_near = _mm512_mask_cmple_epi32_mask(__mmask16(~is_below), key, highs);
    _mm512_storeu_si512(below + found.num_below, _mm512_maskz_compress_epi32(is_below, name));
    _mm512_storeu_si512(values + found.num_near, _mm512_maskz_compress_epi32(is_near, value));
    _mm512_storeu_si512(index + found.num_near, _mm512_maskz_compress_epi32(is_near, name));
    found.num_below += __builtin_popcount(is_below);
    found.num_near += __builtin_popcount(is_near);
  }
#elif M2F_VECTOR_BITS == 256
  const __m256i lows = _mm256_set1_epi32(low), highs = _mm256_set1_epi32(high);
  const __m256i without_sign = _mm256_set1_epi32(0x7fffffff);
  for (; i + 8 <= count; i += 8) {
    const __m256i value = _mm256_loadu_si256((const __m256i*)(values + i));
    const __m256i name = _mm256_loadu_si256((const __m256i*)(index + i));
    const __m256i key = _mm256_and_si256(value, without_sign);
    const __m256i below_lanes = _mm256_cmpgt_epi32(lows, key);
    const __m256i far_lanes = _mm256_or_si256(below_lanes, _mm256_cmpgt_epi32(key, highs));
    const int is_below = _mm256_movemask_ps(_mm256_castsi256_ps(below_lanes));
    const int is_near = ~_mm256_movemask_ps(_mm256_castsi256_ps(far_lanes)) & 0xff;
    const __m256i to_below = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kLanes.of[is_below]));
    const __m256i to_near = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kLanes.of[is_near]));
    _mm256_storeu_si256((__m256i*)(below + found.num_below), _mm256_permutevar8x32_epi32(name, to_below));
    _mm256_storeu_si256((__m256i*)(values + found.num_near), _mm256_permutevar8x32_epi32(value, to_near));
    _mm256_storeu_si256((__m256i*)(index + found.num_near), _mm256_permutevar8x32_epi32(name, to_near));
    found.num_below += __builtin_popcount(is_below);
    found.num_near += __builtin_popcount(is_near);
  }
#endif
  for (; i < count; ++i) {
    const float value = values[i];
    const int32_t name = index[i], key = magnitude(value);
    below[found.num_below] = name;
    values[found.num_near] = value;
    index[found.num_near] = name;
    found.num_below += int64_t(key < low);
    found.num_near += int64_t(key >= low) & int64_t(key <= high);
  }
  return found;
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
