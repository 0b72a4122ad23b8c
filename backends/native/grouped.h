// Rows of x as pairs of bytes, multiplied beside integers of which few share a scale.
//
// A number of 16 bits is 256 times a byte and another one: products of bytes are added by fours into sums of 32 bits, which
// machines do for twice as many numbers at once as products of 16 bits. The groups that lie in one vector are scaled
// together: one by one, scaling takes longer than multiplying.

#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

#if defined(__AVX512VNNI__)
#define SYSTOLIC_GROUPED
constexpr int kUnits = 4;  // of 16 bytes in a vector
typedef __m512i Units;

// sums[i] + high[4i .. 4i + 4] * w[...] * 256 + low[...] * w[...] for the bytes of K vectors, w without a sign.
template <int K>
inline Units AddFours(Units sums, const Units* w, const int8_t* high, const int8_t* low) {
  Units upper{};
  for (int i = 0; i < K; ++i) {
    upper = _mm512_dpbusd_epi32(upper, w[i], Read<Units>(high + i * sizeof(Units)));
    sums = _mm512_dpbusd_epi32(sums, w[i], Read<Units>(low + i * sizeof(Units)));
  }
  return _mm512_add_epi32(sums, _mm512_slli_epi32(upper, 8));
}

inline Units ReadUnits(const void* from, int64_t bytes) {
  if (bytes >= 64) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi8((__mmask64{1} << bytes) - 1, from);
}

// Weights without a sign: 8 or 128 is added to each.
inline void MakeUnsigned(const Packed*, Units both, Units* halves) {
  const Units mask = _mm512_set1_epi8(15);
  halves[0] = _mm512_and_si512(both, mask);
  halves[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}
inline void MakeUnsigned(const int8_t*, Units bytes, Units* raised) {
  *raised = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
}

// One of the first numbers for each 32 bits of a group of L units.
template <int L>
inline Floats OfGroups(__m128 scales) {
  const __m512i order = L == 1 ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                               : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return (Floats)_mm512_permutexvar_ps(order, _mm512_castps128_ps512(scales));
}

#elif defined(__AVX2__) && !defined(__AVX512F__)
#define SYSTOLIC_GROUPED
constexpr int kUnits = 2;
typedef __m256i Units;

// Sums of pairs have 16 bits on the way, in which products of bytes and halves of bytes fit, but not those of two bytes.
template <int K>
inline Units AddFours(Units sums, const Units* w, const int8_t* high, const int8_t* low) {
  Units upper{}, lower{};
  for (int i = 0; i < K; ++i) {
    upper = _mm256_add_epi16(upper, _mm256_maddubs_epi16(w[i], Read<Units>(high + i * sizeof(Units))));
    lower = _mm256_add_epi16(lower, _mm256_maddubs_epi16(w[i], Read<Units>(low + i * sizeof(Units))));
  }
  sums = _mm256_add_epi32(sums, _mm256_madd_epi16(upper, _mm256_set1_epi16(256)));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(lower, _mm256_set1_epi16(1)));
}

inline Units ReadUnits(const void* from, int64_t bytes) {
  if (bytes >= 32) return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  return _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

inline void MakeUnsigned(const Packed*, Units both, Units* halves) {
  const Units mask = _mm256_set1_epi8(15);
  halves[0] = _mm256_and_si256(both, mask);
  halves[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
}

template <int L>
inline Floats OfGroups(__m128 scales) {
  const __m256i order = _mm256_setr_epi32(0, 0, 0, 0, 2 - L, 2 - L, 2 - L, 2 - L);
  return (Floats)_mm256_permutevar8x32_ps(_mm256_castps128_ps256(scales), order);
}
#endif

#if defined(SYSTOLIC_GROUPED)
// Whether machines add fours of products of such weights.
template <typename W>
constexpr bool kByFours = std::is_same<W, Packed>::value || (std::is_same<W, int8_t>::value && kUnits == 4);

constexpr int64_t kUnit = 16;  // bytes of weights: a group is one or two

// x as bytes with a scale for each group of L units of weights. A step is a vector of weights; of x, it has bytes for
// lower and, where two weights are in a byte, for upper halves.
template <typename W, int L>
class GroupedRows {
 public:
  const int64_t rows, k, size, count = 1;

  GroupedRows(const float* x, int64_t rows, int64_t k, int64_t groups)
      : rows(rows), k(k), size(k), groups_(groups), steps_((groups * L + kUnits - 1) / kUnits),
        bytes_(rows * steps_ * kStepBytes), starts_(rows * steps_ * kLanes), scales_(rows * (steps_ * kGroups + kUnits)) {
    std::fill_n(bytes_.data(), rows * steps_ * kStepBytes, 0);
    std::fill_n(starts_.data(), rows * steps_ * kLanes, 0);
    std::fill_n(scales_.data(), rows * (steps_ * kGroups + kUnits), 0.0f);
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t group = 0; group < groups; ++group) Fill(x + m * k + group * L * kUnit * kHalves, m, group);
    }
  }

  // total[m][r] = x[m] . row r, lane by lane, the `scales` of these rows being `groups` apart.
  template <int M, int R>
  void Dot(const W* w, const uint16_t* scales, int64_t stride, Floats (*total)[R]) const {
    const int64_t ahead = BytesAhead<W, M, R>(stride * sizeof(W)), length = groups_ * L * kUnit;
    for (int64_t step = 0; step < steps_; ++step) {
      const int64_t at = step * sizeof(Units), first = step * kGroups;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        FetchLater(w + r * stride + at, ahead);
        Units wide[kHalves];
        MakeUnsigned(w, ReadUnits(w + r * stride + at, length - at), wide);
        const __m128 shared = ReadScales(scales + r * groups_ + first, groups_ - first);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const int64_t place = m * steps_ + step;
          const int8_t* x = bytes_.data() + place * kStepBytes;
          const Units start = Read<Units>(starts_.data() + place * kLanes);
          const Units sums = AddFours<kHalves>(start, wide, x, x + kStepBytes / 2);
          const __m128 scaled = shared * Read<__m128>(scales_.data() + m * (steps_ * kGroups + kUnits) + first);
          total[m][r] += __builtin_convertvector((Ints)sums, Floats) * OfGroups<L>(scaled);
        }
      }
    }
  }

 private:
  static constexpr int kHalves = PerElement<W>(), kGroups = kUnits / L;
  static constexpr int kAdded = kHalves == 2 ? 8 : 128;  // to each weight, so that it has no sign
  static constexpr int64_t kStepBytes = 2 * kHalves * sizeof(Units);

  // The scales of a step; those behind the last are zero. Read at once: parts that are written would be waited for.
  static __m128 ReadScales(const uint16_t* from, int64_t count) {
    if (count < kGroups) return ReadSome(from, count);
    if (kGroups == 4) return WidenFour(Read<int64_t>(from));
    return kGroups == 2 ? WidenFour(Read<uint32_t>(from)) : _mm_set_ss(Widen(*from));
  }
  static __attribute__((noinline)) __m128 ReadSome(const uint16_t* from, int64_t count) {
    int64_t some = 0;
    std::memcpy(&some, from, count * sizeof(*from));
    return WidenFour(some);
  }
  static __m128 WidenFour(int64_t scales) {
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_cvtsi64_si128(scales)));
  }

  // One group of a row: its scale, and bytes such that their sum times 256 and 1 is a number.
  void Fill(const float* x, int64_t m, int64_t group) {
    constexpr int64_t kCount = L * kUnit * kHalves;
    constexpr float kMost = 127 * 256 + 127;
    float largest = 0.0f;
    for (int64_t i = 0; i < kCount; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float inverse = largest > 0 ? kMost / largest : 0.0f;
    scales_[m * (steps_ * kGroups + kUnits) + group] = largest / kMost;
    for (int64_t part = 0; part < L * kHalves; ++part) {
      const int64_t half = part / L, unit = group * L + part % L, place = m * steps_ + unit / kUnits;
      int8_t* high = bytes_.data() + place * kStepBytes + half * sizeof(Units) + unit % kUnits * kUnit;
      int8_t* low = high + kStepBytes / 2;
      int32_t whole[kUnit];
      for (int64_t i = 0; i < kUnit; ++i) {
        whole[i] = static_cast<int32_t>(__builtin_nearbyintf(x[part * kUnit + i] * inverse));
        const int32_t upper = (whole[i] + 128) >> 8;
        high[i] = static_cast<int8_t>(upper);
        low[i] = static_cast<int8_t>(whole[i] - 256 * upper);
      }
      int32_t* start = starts_.data() + place * kLanes + unit % kUnits * 4;
      for (int64_t i = 0; i < 4; ++i) {
        start[i] -= kAdded * (whole[4 * i] + whole[4 * i + 1] + whole[4 * i + 2] + whole[4 * i + 3]);
      }
    }
  }

  const int64_t groups_, steps_;
  Buffer<int8_t> bytes_;
  Buffer<int32_t> starts_;
  Buffer<float> scales_;
};
#endif

}  // namespace
