// Rows of x as integers of 16 bits, multiplied beside weights that are integers.
//
// Products of neighbours are added by pairs into sums of 32 bits, which machines do in one or two instructions: twice as
// many numbers at once as floats, and weights are only widened from 8 bits to 16.

#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

// Pieces of `size` numbers, the last one shorter, each with the numbers of all M rows side by side.
struct Pieces {
  int64_t rows, k, size, count;
  Pieces(int64_t rows, int64_t k, int64_t size)
      : rows(rows), k(k), size(std::min(size, k)), count((k + this->size - 1) / this->size) {}
  int64_t length(int64_t piece) const { return std::min(size, k - piece * size); }
};

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define SYSTOLIC_INTEGERS

typedef __m512i Shorts;

// sums[i] + x[2i] * w[2i] + x[2i + 1] * w[2i + 1]
inline Shorts AddPairs(Shorts sums, Shorts x, Shorts w) {
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sums, x, w);
#else
  return _mm512_add_epi32(sums, _mm512_madd_epi16(x, w));
#endif
}

// Sixteen numbers as integers.
inline __m256i Round(const float* from, float inverse) {
  const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(from), _mm512_set1_ps(inverse));
  return _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(scaled));
}

// Weights of one kind in vectors: kBytes of them at once, in kVectors, with kAdded to each. Those that are missing are
// multiplied with zeros.
template <typename W>
struct Weights;

template <>
struct Weights<int8_t> {
  static constexpr int kBytes = 32, kVectors = 1, kAdded = 0;
  static void Read(const int8_t* from, int64_t count, Shorts* to) {
    const __mmask32 some = count >= kBytes ? ~0u : (1u << count) - 1;
    *to = _mm512_cvtepi8_epi16(count >= kBytes ? ::Read<__m256i>(from) : _mm256_maskz_loadu_epi8(some, from));
  }
};

template <>
struct Weights<Packed> {
  static constexpr int kBytes = 16, kVectors = 1, kAdded = 0;
  static void Read(const Packed* from, int64_t count, Shorts* to) {
    const __mmask16 some = count >= kBytes ? 0xffff : (1u << count) - 1;
    const __m128i both = count >= kBytes ? ::Read<__m128i>(from) : _mm_maskz_loadu_epi8(some, from);
    const __m128i mask = _mm_set1_epi8(15);
    const __m256i halves = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(both, 4), mask), _mm_and_si128(both, mask));
    *to = _mm512_cvtepi8_epi16(_mm256_sub_epi8(halves, _mm256_set1_epi8(8)));
  }
};

#elif defined(__AVX2__) && !defined(__AVX512F__)
#define SYSTOLIC_INTEGERS

typedef __m256i Shorts;

inline Shorts AddPairs(Shorts sums, Shorts x, Shorts w) {
#if defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sums, x, w);
#else
  return _mm256_add_epi32(sums, _mm256_madd_epi16(x, w));
#endif
}

inline __m256i Round(const float* from, float inverse) {
  const __m256 scale = _mm256_set1_ps(inverse);
  const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from), scale));
  const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from + 8), scale));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);  // halves of both were side by side
}

template <typename W>
struct Weights;

// Up to 16 bytes, and zeros.
inline __attribute__((noinline)) __m128i Fewer(const void* from, int64_t count) {
  uint8_t bytes[16] = {};
  std::memcpy(bytes, from, count);
  return Read<__m128i>(bytes);
}
inline __m128i Some(const void* from, int64_t count) {
  return count >= 16 ? _mm_loadu_si128(static_cast<const __m128i*>(from)) : Fewer(from, count);
}

template <>
struct Weights<int8_t> {
  static constexpr int kBytes = 16, kVectors = 1, kAdded = 0;
  static void Read(const int8_t* from, int64_t count, Shorts* to) { *to = _mm256_cvtepi8_epi16(Some(from, count)); }
};

// A byte in the place of a word needs no mask for its upper half, and no subtraction: see `start_`.
template <>
struct Weights<Packed> {
  static constexpr int kBytes = 16, kVectors = 2, kAdded = 8;
  static void Read(const Packed* from, int64_t count, Shorts* to) {
    const __m256i both = _mm256_cvtepu8_epi16(Some(from, count));
    to[0] = _mm256_and_si256(both, _mm256_set1_epi16(15));
    to[1] = _mm256_srli_epi16(both, 4);
  }
};
#endif

#if defined(SYSTOLIC_INTEGERS)
// Numbers of a row of x that share a scale beside weights that do not. The products of 4,096 fit into 32 bits, in the
// lanes of a vector of eight.
constexpr int64_t kSpan = 512;

// x as integers of 16 bits with a scale for each piece.
template <typename W>
class IntegerRows : public Pieces {
 public:
  static constexpr bool kScaled = true;
  IntegerRows(const float* x, int64_t rows, int64_t k, int64_t groups)
      : Pieces(rows, k, groups > 1 ? k / groups : kSpan), padded_((size + 31) / 32 * 32),
        values_(rows * count * padded_), starts_(kAdded ? rows * count * kLanes : 0), scales_(rows * count) {
    for (int64_t piece = 0; piece < count; ++piece) {
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t at = piece * rows + m;
        scales_[at] = Fill(x + m * k + piece * size, length(piece), values_.data() + at * padded_);
        if constexpr (kAdded > 0) {
          Shorts start{};
          for (int64_t i = 0; i < padded_; i += kShorts) {
            start = AddPairs(start, Read<Shorts>(values_.data() + at * padded_ + i), (Shorts)(Pair{} - static_cast<int16_t>(kAdded)));
          }
          Write(start, starts_.data() + at * kLanes);
        }
      }
    }
  }
  float scale(int64_t piece, int m) const { return scales_[piece * rows + m]; }

  template <int M, int R>
  void Dot(int64_t piece, const W* w, int64_t stride, Floats (*sums)[R]) const {
    // Groups are short: where their length is known, there are no loops.
    const int64_t bytes = length(piece) / PerElement<W>();
    if (bytes == 16) return DotBytes<M, R>(std::integral_constant<int64_t, 16>(), piece, w, stride, sums);
    if (bytes == 32) return DotBytes<M, R>(std::integral_constant<int64_t, 32>(), piece, w, stride, sums);
    DotBytes<M, R>(bytes, piece, w, stride, sums);
  }

 private:
  typedef int16_t Pair __attribute__((vector_size(sizeof(Shorts))));
  static constexpr int kShorts = 2 * kLanes, kStep = Weights<W>::kBytes, kAdded = Weights<W>::kAdded;

  // One piece of a row; its scale.
  static float Fill(const float* from, int64_t count, int16_t* to) {
    const float largest = Largest(from, count), inverse = largest > 0 ? 32767.0f / largest : 0.0f;
    std::fill_n(to, (count + 31) / 32 * 32, 0);
    // Two weights in a byte are read as 16 from lower and 16 from upper halves, and so are the numbers beside them.
    constexpr int64_t kHalves = PerElement<W>();
    const int64_t each = count / kHalves;
    for (int64_t i = 0; i < each; i += 16) {
      for (int half = 0; half < kHalves; ++half) {
        RoundSome(from + half * each + i, std::min<int64_t>(16, each - i), inverse, to + kHalves * i + 16 * half);
      }
    }
    return largest / 32767.0f;
  }

  static float Largest(const float* from, int64_t count) {
    Floats largest{};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      largest = Larger(largest, (Floats)((Ints)Read<Floats>(from + i) & 0x7fffffff));
    }
    float most = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) most = std::max(most, largest[lane]);
    for (; i < count; ++i) most = std::max(most, std::fabs(from[i]));
    return most;
  }

  static void RoundSome(const float* from, int64_t count, float inverse, int16_t* to) {
    float some[16] = {};
    if (count < 16) std::copy_n(from, count, some);
    Write(Round(count < 16 ? some : from, inverse), to);
  }

  template <int M, int R, typename Count>
  void DotBytes(Count bytes, int64_t piece, const W* w, int64_t stride, Floats (*sums)[R]) const {
    const int64_t at = piece * rows, ahead = BytesAhead<W, M, R>(stride * sizeof(W));
    const int16_t* x = values_.data() + at * padded_;
    Shorts lanes[M][R];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Shorts start = kAdded > 0 ? Read<Shorts>(starts_.data() + (at + m) * kLanes) : Shorts{};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) lanes[m][r] = start;
    }
    int64_t j = 0;
    if constexpr (M == 1 && R == 1) {
      Shorts apart[1][kUnrolled] = {};
      for (; j + kUnrolled * kStep <= bytes; j += kUnrolled * kStep) {
#pragma GCC unroll 8
        for (int u = 0; u < kUnrolled; ++u) {
          const int64_t from = j + u * kStep;
          if (u * kStep % kLine == 0) FetchLater(w + from, ahead);
          Add<1, kUnrolled>(x + from * PerElement<W>(), w + from, kStep, u, apart);
        }
      }
#pragma GCC unroll 8
      for (int u = 0; u < kUnrolled; ++u) lanes[0][0] = (Shorts)((Ints)lanes[0][0] + (Ints)apart[0][u]);
    }
    for (; j + kStep <= bytes; j += kStep) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        FetchLater(w + r * stride + j, ahead);
        Add<M, R>(x + j * PerElement<W>(), w + r * stride + j, kStep, r, lanes);
      }
    }
    if (j < bytes) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) Add<M, R>(x + j * PerElement<W>(), w + r * stride + j, bytes - j, r, lanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[m][r] = __builtin_convertvector((Ints)lanes[m][r], Floats);
    }
  }

  template <int M, int R>
  void Add(const int16_t* x, const W* w, int64_t count, int r, Shorts (*lanes)[R]) const {
    constexpr int kVectors = Weights<W>::kVectors;
    Shorts wide[kVectors];
    Weights<W>::Read(w, count, wide);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        lanes[m][r] = AddPairs(lanes[m][r], Read<Shorts>(x + m * padded_ + v * kShorts), wide[v]);
      }
    }
  }

  int64_t padded_;
  Buffer<int16_t> values_;
  Buffer<int32_t> starts_;  // sums with -kAdded in the place of each weight
  Buffer<float> scales_;
};
#endif

}  // namespace
