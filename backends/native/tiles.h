// Copies of small tiles of weights, in which they have been widened: rows of floats, or of pairs of bf16.

#pragma once

#include <algorithm>

#include "project.h"
#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 14;  // of weights in a tile: with two vectors beside each, 28 of 32 registers are sums
#else
constexpr int kRows = 6;
#endif
constexpr int kHalf = 8;                     // rows of x in the smallest tile
constexpr int64_t kSteps = 256;              // of k in a block: what a tile copies of the weights
constexpr int64_t kApart = kSteps + kLanes;  // between rows of that copy, so that they do not share cache sets

// ---- what is multiplied in one step: a float, or two bf16 ----

typedef float HalfFloats __attribute__((vector_size(kHalf * sizeof(float))));

struct Single {
  static constexpr int kPer = 1;  // numbers of k in a step
  using Element = float;
  template <typename Vector>
  static Vector MultiplyAdd(Vector sum, Element w, Vector x) {
    return sum + x * w;
  }
};

#if defined(__AVX512BF16__)
struct Pair {
  static constexpr int kPer = 2;
  using Element = uint32_t;
  static Floats MultiplyAdd(Floats sum, Element w, Floats x) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(w));
  }
  static HalfFloats MultiplyAdd(HalfFloats sum, Element w, HalfFloats x) {
    return (HalfFloats)_mm256_dpbf16_ps((__m256)sum, (__m256bh)x, (__m256bh)_mm256_set1_epi32(w));
  }
};
#endif

// ---- copies ----

// Numbers `within` .. within + count of a group of `size` weights, as floats, times its scale.
template <typename W>
inline void WidenGroup(const W* group, int64_t size, float scale, int64_t within, int64_t count, float* to) {
  int64_t i = 0;
  if constexpr (std::is_same<W, Packed>::value) {
    const int64_t half = size / 2;
    if (within == 0 && count == size) {
      for (; i + kLanes <= half; i += kLanes) {
        Floats lower, upper;
        Unpack(group + i, &lower, &upper);
        Write(lower * scale, to + i);
        Write(upper * scale, to + half + i);
      }
      for (; i < half; ++i) {
        to[i] = static_cast<float>((group[i].byte & 15) - 8) * scale;
        to[half + i] = static_cast<float>((group[i].byte >> 4) - 8) * scale;
      }
      return;
    }
    for (; i < count; ++i) {
      const int64_t at = within + i;
      const int byte = group[at % half].byte;
      to[i] = static_cast<float>((at < half ? byte & 15 : byte >> 4) - 8) * scale;
    }
  } else {
    for (; i + kLanes <= count; i += kLanes) Write(WidenAll(group + within + i) * scale, to + i);
    for (; i < count; ++i) to[i] = Widen(group[within + i]) * scale;
  }
}

// Numbers k .. k + count of a row of weights in groups of `size`, as floats.
template <typename W>
inline void WidenRow(const W* row, const uint16_t* scales, int64_t size, int64_t k, int64_t count, float* to) {
  for (int64_t i = 0; i < count;) {
    const int64_t group = (k + i) / size, within = (k + i) % size, some = std::min(count - i, size - within);
    const float scale = scales == nullptr ? 1.0f : Widen(scales[group]);
    WidenGroup(row + group * size / PerElement<W>(), size, scale, within, some, to + i);
    i += some;
  }
}

// The same as bf16, in pairs; a last one without a partner stands beside a zero.
#if defined(__AVX512BF16__)
template <typename W>
inline void NarrowRow(const W* row, int64_t k, int64_t count, uint16_t* to) {
  if (count & 1) to[count] = 0;
  if constexpr (std::is_same<W, uint16_t>::value) {
    std::copy_n(row + k, count, to);
  } else {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Write(_mm512_cvtneps_pbh((__m512)WidenAll(row + k + i)), to + i);
    }
    for (; i < count; ++i) to[i] = Narrow(Widen(row[k + i]));
  }
}
#endif

// What coded weights are in a tile.
template <typename W, typename Step>
using Number = std::conditional_t<Step::kPer == 1, float, uint16_t>;

// One tile: `rows` of weights from `row` on, numbers k .. k + count. Rows that are missing are zero.
template <typename Step, typename W>
void CopyTile(const Matrix<W>& matrix, int64_t total, int64_t groups, bool turned, int64_t row, int64_t rows, int64_t k,
              int64_t count, typename Step::Element* to) {
  const int64_t steps = (count + Step::kPer - 1) / Step::kPer;
  if (turned) {
    if constexpr (std::is_same<W, float>::value || std::is_same<W, uint16_t>::value) {
      std::fill_n(to, steps * kRows, 0);
      for (int64_t i = 0; i < count; ++i) {
        const W* from = matrix.w + (k + i) * matrix.n + row;
        if constexpr (std::is_same<W, float>::value && Step::kPer == 1) {
          if (rows == kRows) std::memcpy(to + i * kRows, from, kRows * sizeof(float));
          else std::memcpy(to + i * kRows, from, rows * sizeof(float));
        } else if constexpr (Step::kPer == 1) {
          for (int64_t r = 0; r < rows; ++r) to[i * kRows + r] = Widen(from[r]);
        } else {
          for (int64_t r = 0; r < rows; ++r) {
            to[i / 2 * kRows + r] |= static_cast<uint32_t>(from[r]) << (i % 2 * 16);
          }
        }
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const W* from = matrix.w + (row + r) * RowLength<W>(total);
    if constexpr (kCoded<W>) {
      UnpackRow(from, k, count, reinterpret_cast<Number<W, Step>*>(to + r * kApart));
    } else if constexpr (Step::kPer == 1) {
      const uint16_t* scales = matrix.grouped == nullptr ? nullptr : matrix.grouped + (row + r) * groups;
      WidenRow(from, scales, total / groups, k, count, to + r * kApart);
    } else {
#if defined(__AVX512BF16__)
      NarrowRow(from, k, count, reinterpret_cast<uint16_t*>(to + r * kApart));
#endif
    }
  }
  if constexpr (kCoded<W>) {
    matrix.outside.Each(row * total, (row + rows) * total, [&](int64_t place, auto value) {
      const int64_t i = place % total - k;
      if (i < 0 || i >= count) return;
      auto* numbers = reinterpret_cast<Number<W, Step>*>(to + (place / total - row) * kApart);
      if constexpr (Step::kPer == 1) numbers[i] = Widen(value);
      else numbers[i] = value;
    });
  }
  for (int64_t r = rows; r < kRows; ++r) std::fill_n(to + r * kApart, steps, 0);
}

}  // namespace
