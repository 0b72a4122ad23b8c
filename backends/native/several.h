// Products of several rows of x with matrices, reading every weight once, with AVX2: y[m, n] = sum_k x[m, k] * w[n, k].
//
// Two vectors hold one number of each of sixteen rows of x, or two of eight, four of four, eight of two. As many weights
// of a row are read, and repeated until they fill a vector. So kRows rows of weights beside these two are sums that fill
// the registers, whatever the number of rows of x, and there are two loads for three multiplications. Floats are read
// where they are, rows side by side, and nothing is fetched ahead: Zen 3 does that best by itself. Weights of other
// kinds are widened first, a block of each row at a time.

#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "project.h"
#include "threads.h"
#include "tiles.h"
#include "vectors.h"

namespace {

#if defined(__AVX2__) && !defined(__AVX512F__)
// Rows that are multiplied here at most, as measured on Zen 3; more are in tiles, see multiply.h.
template <typename W>
constexpr int64_t kSeveral = std::is_same<W, float>::value ? 64 : 32;

constexpr int kWoven = 2 * kLanes;  // numbers of x in two vectors: kWoven / M of each of M rows

// Up to M rows of x, woven: [k / L][M][L] for L = kWoven / M, with zeros behind the end of rows and for those missing.
template <int M>
class WovenRows {
 public:
  static constexpr int kOfEach = kWoven / M;
  WovenRows(const float* x, int64_t rows, int64_t k) : values_((k + kOfEach - 1) / kOfEach * kWoven) {
    constexpr int64_t kNear = 64 * kOfEach;  // numbers of a row that are written while their places are near
    if (rows < M || k % kOfEach != 0) std::fill_n(values_.data(), (k + kOfEach - 1) / kOfEach * kWoven, 0.0f);
    for (int64_t first = 0; first < k; first += kNear) {
      const int64_t last = std::min(first + kNear, k), whole = last - last % kOfEach;
      for (int64_t m = 0; m < rows; ++m) {
        const float* from = x + m * k;
        for (int64_t i = first; i < whole; i += kOfEach) std::copy_n(from + i, kOfEach, place(i) + m * kOfEach);
        std::copy_n(from + whole, last - whole, place(whole) + m * kOfEach);
      }
    }
  }
  // Where the numbers k .. k + kOfEach of all rows are.
  float* place(int64_t k) const { return values_.data() + k * M; }

 private:
  Buffer<float> values_;
};

// L weights as floats, until they fill a vector. Single ones of two bytes are read with what follows them.
template <int L, typename W>
inline Floats Repeat(const W* from) {
  if constexpr (L == kLanes) {
    return WidenAll(from);
  } else if constexpr (std::is_same<W, float>::value) {
    if constexpr (L == 1) return (Floats)_mm256_broadcast_ss(from);
    if constexpr (L == 2) return (Floats)_mm256_broadcast_sd(reinterpret_cast<const double*>(from));
    return (Floats)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
  } else {
    using Some = std::conditional_t<L == 4, int64_t, int32_t>;
    const Some bits = Read<Some>(from);
    if constexpr (L == 1) return (Floats)_mm256_slli_epi32(_mm256_set1_epi32(bits), 16);
    // Two bytes become the upper half of a float.
    const int32_t low = 0x0100ffff, high = 0x0302ffff, step = L == 4 ? 0x04040000 : 0;
    const __m256i places = _mm256_setr_epi32(low, high, low + step, high + step, low, high, low + step, high + step);
    const __m256i all = L == 4 ? _mm256_set1_epi64x(bits) : _mm256_set1_epi32(bits);
    return (Floats)_mm256_shuffle_epi8(all, places);
  }
}

// sums[r] += row r of w, of which rows are `apart` floats apart, beside woven rows of x.
template <int L, typename W>
inline void AddWoven(const W* w, int64_t apart, const float* x, int64_t steps, Floats (*sums)[2]) {
  Floats total[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    total[r][0] = sums[r][0];
    total[r][1] = sums[r][1];
  }
#pragma GCC unroll 4
  for (int64_t step = 0; step < steps; ++step) {
    const Floats first = Read<Floats>(x + step * kWoven), second = Read<Floats>(x + step * kWoven + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Floats some = Repeat<L>(w + r * apart + step * L);
      total[r][0] += first * some;
      total[r][1] += second * some;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = total[r][0];
    sums[r][1] = total[r][1];
  }
}

// y[0:valid, first:last]
template <int M, typename W>
void ProjectWoven(const WovenRows<M>& x, int64_t valid, int64_t k, int64_t groups, const Matrix<W>& matrix,
                  int64_t first, int64_t last) {
  constexpr int L = WovenRows<M>::kOfEach;
  alignas(64) float tile[kRows * kApart];
  const bool scaled = matrix.scales != nullptr && groups == 1 && !std::is_same<W, Packed>::value;
  for (int64_t row = first; row < last; row += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, last - row);
    Floats sums[kRows][2] = {};
    int64_t at = 0;
    if constexpr (kFloats<W>) {
      if (rows == kRows) {
        at = L == 1 ? k - 1 : k - k % L;
        AddWoven<L>(matrix.w + row * k, k, x.place(0), at / L, sums);
      }
    }
    for (int64_t count; at < k; at += count) {
      count = std::min(kSteps, k - at);
      CopyTile<Single, W>(matrix, k, groups, false, row, rows, at, count, tile);
      const int64_t steps = (count + L - 1) / L;
      for (int r = 0; r < kRows && count % L != 0; ++r) std::fill_n(tile + r * kApart + count, steps * L - count, 0.0f);
      AddWoven<L>(tile, kApart, x.place(at), steps, sums);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float scale = scaled ? matrix.scales[row + r] : 1.0f;
      float lanes[kWoven];
      std::memcpy(lanes, sums[r], sizeof(lanes));
      for (int64_t m = 0; m < valid; ++m) {
        float total = 0.0f;
        for (int i = 0; i < L; ++i) total += lanes[m * L + i];
        matrix.y[m * matrix.n + row + r] = total * scale;
      }
    }
  }
}

// y[m, n] of at least two rows for several matrices of one kind. More than sixteen take turns with what a part of the
// work reads, which is near then.
template <typename W>
void ProjectSeveral(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t k, int64_t groups,
                    const std::vector<Matrix<W>>& matrices) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  int64_t total = 0;
  for (const auto& matrix : matrices) total += matrix.n;
  const auto project = [&](auto constant) {
    constexpr int M = decltype(constant)::value;
    std::deque<WovenRows<M>> woven;
    for (int64_t m = 0; m < rows; m += M) woven.emplace_back(x + m * k, std::min<int64_t>(M, rows - m), k);
    SpreadOver<W>(pool, matrices, rows * k, kRows, [&](const Matrix<W>& matrix, int64_t first, int64_t last) {
      Matrix<W> some = matrix;
      for (int64_t m = 0; m < rows; m += M, some.y += M * matrix.n) {
        ProjectWoven<M, W>(woven[m / M], std::min<int64_t>(M, rows - m), k, groups, some, first, last);
      }
    }, std::max(kParts, k * total / kPart / threads), RowLength<W>(k) * sizeof(W));
  };
  if (rows > 8) return project(std::integral_constant<int, 16>());
  if (rows > 4) return project(std::integral_constant<int, 8>());
  if (rows > 2) return project(std::integral_constant<int, 4>());
  project(std::integral_constant<int, 2>());
}
#endif

}  // namespace
