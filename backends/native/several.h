// Products of several rows of x with matrices, reading every weight once: y[m, n] = sum_k x[m, k] * w[n, k].
//
// Two vectors hold one number of each of sixteen rows of x, with AVX2, or two of eight, four of four, eight of two. As many
// weights of a row are read, and repeated until they fill a vector. So kSide rows of weights beside these two are sums that
// fill the registers, whatever the number of rows of x. With AVX-512 two vectors hold twice as many, floats or pairs of
// bf16, and four steps of a row are taken together: its line of the nearest cache is read once, whatever other rows, which
// often lie a multiple of a page apart, have put in its place behind it. Floats, and bf16 that is multiplied as it is, are
// read where they are, rows side by side; with AVX-512 the next rows are fetched meanwhile, and Zen 3 does that best by
// itself. Weights of other kinds are widened first, a block of each row at a time.

#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "project.h"
#include "threads.h"
#include "tiles.h"
#include "vectors.h"

namespace {

#if defined(__AVX2__)
// Rows that are multiplied here at most, as measured on Zen 3 and Zen 4; more are in tiles, see multiply.h.
template <typename W>
#if defined(__AVX512F__)
constexpr int64_t kSeveral = std::is_same<W, float>::value ? 64 : 0;
constexpr int kSide = 11, kTurns = 4;  // rows of weights side by side, and steps of each that are taken together
constexpr bool kFetchesRows = true;
#else
constexpr int64_t kSeveral = std::is_same<W, float>::value ? 64 : 32;
constexpr int kSide = kRows, kTurns = 1;
constexpr bool kFetchesRows = false;
#endif

// Whether rows of x of k numbers are multiplied here, and not as fewer are, see project.h. Three or four of f32 that do not
// stay in the nearest cache are, with AVX-512: side by side they take 1.2 to 1.4 times as long (Zen 4).
template <typename W>
bool AreSeveral(int64_t rows, int64_t k) {
#if defined(__AVX512F__)
  if (rows > 2 && rows <= kFew<W>) return std::is_same<W, float>::value && !AreReadAlone<W>(kFew<W>, k);
#endif
  return rows > kFew<W> && rows <= kSeveral<W>;
}

constexpr int kWovenLanes = 2 * kLanes;  // numbers of x in two vectors: kWovenLanes / M of each of M rows

// Up to M rows of x, woven: [k / L][M][L] for L = kWovenLanes / M, with zeros behind the end of rows and for those missing.
template <int M>
class WovenRows {
 public:
  static constexpr int kOfEach = kWovenLanes / M;
  WovenRows(const float* x, int64_t rows, int64_t k) : values_((k + kOfEach - 1) / kOfEach * kWovenLanes) {
    constexpr int64_t kNear = 64 * kOfEach;  // numbers of a row that are written while their places are near
    if (rows < M || k % kOfEach != 0) std::fill_n(values_.data(), (k + kOfEach - 1) / kOfEach * kWovenLanes, 0.0f);
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

// L weights as floats, or pairs of bf16, until they fill a vector. Single ones of two bytes are read with what follows them.
template <int L, typename W>
inline Floats Repeat(const W* from) {
#if defined(__AVX512F__)
  static_assert(sizeof(W) == sizeof(float), "what is narrower is not read where it is");
  if constexpr (L == 1) return (Floats)_mm512_set1_ps(Read<float>(from));
  if constexpr (L == 2) return (Floats)_mm512_castpd_ps(_mm512_set1_pd(Read<double>(from)));
  if constexpr (L == 4) return (Floats)_mm512_broadcast_f32x4(Read<__m128>(from));
  if constexpr (L == 8) return (Floats)_mm512_broadcast_f32x8(Read<__m256>(from));
  return Read<Floats>(from);
#else
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
#endif
}

// sum + w * x, or of pairs of bf16, each of their products.
template <typename W>
inline Floats AddProduct(Floats sum, Floats w, Floats x) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same<W, Pair::Element>::value) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
#endif
  return sum + x * w;
}

// sums[r] += T steps of row r of w beside woven rows of x.
template <int L, int T, typename W>
inline void AddSteps(const W* w, int64_t apart, const float* x, int64_t ahead, Floats (&sums)[kSide][2]) {
  Floats beside[T][2];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    beside[t][0] = Read<Floats>(x + t * kWovenLanes);
    beside[t][1] = Read<Floats>(x + t * kWovenLanes + kLanes);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kSide; ++r) {
    FetchLater(w + r * apart, ahead);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Floats some = Repeat<L>(w + r * apart + t * L);
      sums[r][0] = AddProduct<W>(sums[r][0], some, beside[t][0]);
      sums[r][1] = AddProduct<W>(sums[r][1], some, beside[t][1]);
    }
  }
}

// sums[r] += row r of w, of which rows are `apart` numbers apart, beside woven rows of x.
template <int L, typename W>
inline void AddWoven(const W* w, int64_t apart, const float* x, int64_t steps, int64_t ahead, Floats (*sums)[2]) {
  Floats total[kSide][2];
#pragma GCC unroll 16
  for (int r = 0; r < kSide; ++r) {
    total[r][0] = sums[r][0];
    total[r][1] = sums[r][1];
  }
  int64_t step = 0;
#pragma GCC unroll 4 / kTurns
  for (; step + kTurns <= steps; step += kTurns) {
    AddSteps<L, kTurns>(w + step * L, apart, x + step * kWovenLanes, ahead, total);
  }
  for (; step < steps; ++step) AddSteps<L, 1>(w + step * L, apart, x + step * kWovenLanes, 0, total);
#pragma GCC unroll 16
  for (int r = 0; r < kSide; ++r) {
    sums[r][0] = total[r][0];
    sums[r][1] = total[r][1];
  }
}

// y[0:valid, first:last]; of folded rows of x, those kHalf behind these are the rest of them.
template <typename Step, int M, typename W>
void ProjectWoven(const WovenRows<M>& x, int64_t valid, bool folded, int64_t k, int64_t groups, const Matrix<W>& matrix,
                  int64_t first, int64_t last) {
  constexpr int L = WovenRows<M>::kOfEach, kPer = Step::kPer;
  using InPlace = std::conditional_t<kPer == 1, W, typename Step::Element>;
  alignas(64) typename Step::Element tile[kRows * kApart];
  for (int64_t row = first; row < last; row += kSide) {
    const int64_t rows = std::min<int64_t>(kSide, last - row);
    Floats sums[kSide][2] = {};
    int64_t at = 0;
    if constexpr (kFloats<W>) {
      if (rows == kSide && k % kPer == 0) {
        at = L == 1 ? k - 1 : k - k % (L * kPer);
        const auto* from = reinterpret_cast<const InPlace*>(matrix.w + row * k);
        AddWoven<L>(from, k / kPer, x.place(0), at / (L * kPer), kFetchesRows ? kSide * k * sizeof(W) : 0, sums);
      }
    }
    for (int64_t count; at < k; at += count) {
      count = std::min(kSteps * kPer, k - at);
      CopyTile<Step, W>(matrix, k, groups, false, row, rows, at, count, tile);
      const int64_t some = (count + kPer - 1) / kPer, steps = (some + L - 1) / L;
      for (int r = 0; r < kSide && some % L != 0; ++r) std::fill_n(tile + r * kApart + some, steps * L - some, 0);
      AddWoven<L>(tile, kApart, x.place(at / kPer), steps, 0, sums);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float scale = matrix.scales == nullptr ? 1.0f : matrix.scales[row + r];
      float lanes[kWovenLanes];
      std::memcpy(lanes, sums[r], sizeof(lanes));
      for (int64_t m = 0; m < valid; ++m) {
        float total = 0.0f;
        for (int i = 0; i < L; ++i) total += lanes[m * L + i] + (folded ? lanes[(m + kHalf) * L + i] : 0.0f);
        matrix.y[m * matrix.n + row + r] = total * scale;
      }
    }
  }
}

#if defined(__AVX512BF16__)
// The same beside bf16, which is not copied then; what is widened or looked up first is faster in tiles.
template <typename W>
constexpr int64_t kSeveralPairs = std::is_same<W, uint16_t>::value ? 32 : 0;

// Rows of x as pairs of bf16, [rows][steps]; folded ones with what rounding leaves of them, kHalf rows behind each.
class PairRows {
 public:
  PairRows(const float* x, int64_t rows, int64_t k, bool folded)
      : length_((k + 1) / 2 * 2), all_(folded ? 2 * kHalf : rows), values_(all_ * length_) {
    std::fill_n(values_.data(), all_ * length_, 0);
    for (int64_t m = 0; m < rows; ++m) {
      uint16_t* to = values_.data() + m * length_;
      for (int64_t i = 0; i < k; ++i) to[i] = Narrow(x[m * k + i]);
      for (int64_t i = 0; folded && i < k; ++i) to[kHalf * length_ + i] = Narrow(x[m * k + i] - Widen(to[i]));
    }
  }
  const float* data() const { return reinterpret_cast<const float*>(values_.data()); }

 private:
  const int64_t length_, all_;
  Buffer<uint16_t> values_;
};
#endif

// y[m, n] of at least two rows for several matrices of one kind. x is [rows][k], or what PairRows makes of it for a step of
// pairs. More than M rows take turns with what a part of the work reads, which is near then.
template <typename Step, int M, typename W>
void ProjectHeldWoven(ffi::ThreadPool& pool, const float* x, int64_t rows, bool folded, int64_t k, int64_t groups,
                      const std::vector<Matrix<W>>& matrices) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads()), steps = (k + Step::kPer - 1) / Step::kPer;
  const int64_t held = folded ? 2 * kHalf : rows;
  int64_t total = 0;
  for (const auto& matrix : matrices) total += matrix.n;
  std::deque<WovenRows<M>> woven;
  for (int64_t m = 0; m < held; m += M) woven.emplace_back(x + m * steps, std::min<int64_t>(M, held - m), steps);
  SpreadOver<W>(pool, matrices, rows * k, kSide, [&](const Matrix<W>& matrix, int64_t first, int64_t last) {
    Matrix<W> some = matrix;
    for (int64_t m = 0; m < rows; m += M, some.y += M * matrix.n) {
      ProjectWoven<Step, M, W>(woven[m / M], std::min<int64_t>(M, rows - m), folded, k, groups, some, first, last);
    }
  }, std::max(kParts, k * total / kPart / threads), RowLength<W>(k) * sizeof(W));
}

// The same for rows of x as they are, in vectors as full as can be.
template <typename W>
void ProjectSeveral(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t k, int64_t groups,
                    const std::vector<Matrix<W>>& matrices) {
  const auto project = rows > 8   ? ProjectHeldWoven<Single, 16, W>
                       : rows > 4 ? ProjectHeldWoven<Single, 8, W>
                       : rows > 2 ? ProjectHeldWoven<Single, 4, W>
                                  : ProjectHeldWoven<Single, 2, W>;
  project(pool, x, rows, false, k, groups, matrices);
}
#endif

}  // namespace
