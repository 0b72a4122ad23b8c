// Products of a few rows of x with matrices, reading every weight once: y[m, n] = sum_k x[m, k] * w[n, k].
//
// A row of x is cut into pieces in which it has one scale, as weights of fewer bits have theirs. How the pieces are
// held depends on what the machine multiplies: floats; or integers beside integers, where x has 16 bits, which keeps it
// to 1 part in 65,000 of a piece.

#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "coded.h"
#include "grouped.h"
#include "integers.h"
#include "threads.h"
#include "vectors.h"

namespace {

// How many rows of weights are read side by side for M rows of x: enough sums to hide the latency of adding, which
// find room in registers. Looking up coded ones takes so many of 16 that few are left for sums.
template <typename W>
constexpr int RowsAtOnce(int m) {
#if defined(__AVX512F__)
  return m == 1 ? 8 : 4;
#else
  if (kCoded<W>) return 2;
  if (m == 1) return std::is_same<W, Packed>::value ? 4 : 8;
  return 3;
#endif
}

// Whether rows of weights of `k` numbers are read one by one beside `rows` of x; sums of different numbers hide the
// latency then. They are one stream, which is fetched ahead of them wherever pages end, but x is read again for each, so it
// must stay in the nearest cache. With AVX-512 (Zen 5) that is so for weights of any kind: side by side, rows of f32 take
// up to 1.26 times as long beside one x, and all kinds up to 1.6 times beside two to four; where x does not stay, reading
// alone takes up to 1.4 times as long (Zen 4). On Zen 3 eight streams of f32 are read in 0.8 of the time of one, unless
// rows are short, and two weights in a byte take longer to unpack than to fetch.
template <typename W>
bool AreReadAlone(int64_t rows, int64_t k) {
#if defined(__AVX512F__)
  constexpr int64_t kSize = std::is_same<W, int8_t>::value || std::is_same<W, Packed>::value ? 2 : 4;
  return rows * k * kSize <= (rows == 1 ? 1 << 15 : 3 * NearestBytes() / 4);
#else
  if (std::is_same<W, Packed>::value) return false;
  if (kCoded<W>) return k <= 8192;  // beside more rows of x, too: 0.6 to 0.9 of the time
  return rows == 1 && k <= (std::is_same<W, float>::value ? 512 : std::is_same<W, uint16_t>::value ? 4096 : 8192);
#endif
}
constexpr int64_t kPart = 1 << 17;  // weights in a part of a long product: about 10 microseconds

// sums[m][r] = x[m] . w[r] over `count` elements, lane by lane; the x are `count` apart, the w `stride`. Every row and
// every x is read once, for M * R sums in registers.
template <int M, int R, typename W>
inline void Dots(const float* x, const W* w, int64_t stride, int64_t count, Floats (*sums)[R]) {
  const int64_t ahead = BytesAhead<W, M, R>(stride * sizeof(W));
  Floats lanes[M][R] = {};
  int64_t k = 0;
  if constexpr (M == 1 && R == 1) {
    Floats apart[2 * kUnrolled] = {};
    for (; k + 2 * kUnrolled * kLanes <= count; k += 2 * kUnrolled * kLanes) {
#pragma GCC unroll 8
      for (int u = 0; u < 2 * kUnrolled; ++u) {
        const int64_t at = k + u * kLanes;
        if (u * kLanes * sizeof(W) % kLine == 0) FetchLater(w + at, ahead);
        apart[u] += Read<Floats>(x + at) * WidenAll(w + at);
      }
    }
    for (int u = 0; u < 2 * kUnrolled; ++u) lanes[0][0] += apart[u];
  }
  for (; k + kLanes <= count; k += kLanes) {
    Floats wide[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (R > 1 || M > 1) FetchLater(w + r * stride + k, ahead);
      wide[r] = WidenAll(w + r * stride + k);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats value = Read<Floats>(x + m * count + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) lanes[m][r] += value * wide[r];
    }
  }
  // What is left is added in memory: sums of which a single lane is written would not stay in registers above.
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      sums[m][r] = lanes[m][r];
      for (int64_t rest = k; rest < count; ++rest) {
        sums[m][r][0] += x[m * count + rest] * Widen(w[r * stride + rest]);
      }
    }
  }
}

// ---- how rows of x are held ----

// Weights that are floats.
template <typename W>
constexpr bool kFloats = std::is_same<W, float>::value || std::is_same<W, uint16_t>::value;

// Rows that are multiplied here; more are multiplied as in several.h, with AVX2, or in tiles, see multiply.h. With AVX-512,
// eight rows as two times four take 1.2 to 1.4 times as long as a tile of floats, but 0.3 to 0.6 beside integers. Without
// it, tiles of eight rows take as long as those of sixteen.
#if defined(__AVX512F__)
template <typename W>
constexpr int64_t kFew = kFloats<W> || std::is_same<W, Coded16>::value ? 4 : 8;
#elif defined(__AVX2__)
template <typename W>
constexpr int64_t kFew = kFloats<W> ? 1 : 8;
#else
template <typename W>
constexpr int64_t kFew = 8;
#endif
constexpr int64_t kFewColumns = 8;          // the same where weights are turned
constexpr int kBeside = 4;                  // rows of x that are multiplied together at most
constexpr int64_t kNearBytes = 1 << 15;     // of weights, which more of them are multiplied with by turns

// Weights of any kind, widened to floats. One row of x is read where it is.
template <typename W>
class FloatRows : public Pieces {
 public:
  static constexpr bool kScaled = false;
  FloatRows(const float* x, int64_t rows, int64_t k, int64_t groups)
      : Pieces(rows, k, k / groups), near_(rows > 1 ? rows * k : 0), x_(x) {
    for (int64_t piece = 0; piece < count && rows > 1; ++piece) {
      const int64_t at = piece * size;
      for (int64_t m = 0; m < rows; ++m) {
        std::copy_n(x + m * k + at, length(piece), near_.data() + rows * at + m * length(piece));
      }
    }
  }
  float scale(int64_t, int) const { return 1.0f; }

  template <int M, int R>
  void Dot(int64_t piece, const W* w, int64_t stride, Floats (*sums)[R]) const {
    const float* x = rows > 1 ? near_.data() + rows * piece * size : x_ + piece * size;
    if constexpr (std::is_same<W, Packed>::value) {
      DotPacked<M, R>(x, length(piece), w, stride, sums);
    } else {
      Dots<M, R, W>(x, w, stride, length(piece), sums);
    }
  }

 private:
  template <int M, int R>
  static void DotPacked(const float* x, int64_t size, const Packed* w, int64_t stride, Floats (*sums)[R]) {
    const int64_t half = size / 2;
    Floats lanes[M][R] = {};
    int64_t j = 0;
    for (; j + kLanes <= half; j += kLanes) {
      Floats lower[R], upper[R];
      for (int r = 0; r < R; ++r) Unpack(w + r * stride + j, &lower[r], &upper[r]);
      for (int m = 0; m < M; ++m) {
        const Floats first = Read<Floats>(x + m * size + j), second = Read<Floats>(x + m * size + half + j);
        for (int r = 0; r < R; ++r) lanes[m][r] += first * lower[r] + second * upper[r];
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int r = 0; r < R; ++r) {
        sums[m][r] = lanes[m][r];
        for (int64_t rest = j; rest < half; ++rest) {
          const int byte = w[r * stride + rest].byte;
          sums[m][r][0] += x[m * size + rest] * ((byte & 15) - 8) + x[m * size + half + rest] * ((byte >> 4) - 8);
        }
      }
    }
  }

  Buffer<float> near_;  // aligned: vectors of 64 bytes across lines are read in two steps
  const float* x_;
};

// One row of x beside bf16: words of two weights are read, and their halves are floats when they are shifted up or when
// the other half is cleared. So numbers of even places in a block of two vectors come first, then those of odd ones.
class PairedRow : public Pieces {
 public:
  static constexpr bool kScaled = false;
  PairedRow(const float* x, int64_t rows, int64_t k, int64_t) : Pieces(rows, k, k), near_(k) {
    int64_t i = 0;
    for (; i + kBlock <= k; i += kBlock) {
      for (int lane = 0; lane < kLanes; ++lane) {
        near_[i + lane] = x[i + 2 * lane];
        near_[i + kLanes + lane] = x[i + 2 * lane + 1];
      }
    }
    std::copy(x + i, x + k, near_.data() + i);
  }
  float scale(int64_t, int) const { return 1.0f; }

  template <int M, int R>
  void Dot(int64_t, const uint16_t* w, int64_t stride, Floats (*sums)[R]) const {
    static_assert(M == 1, "beside more rows, weights are widened once for all of them");
    constexpr int kSteps = R == 1 ? kUnrolled : 1, kLineSteps = kLine / (kBlock * sizeof(*w));
    const int64_t ahead = BytesAhead<uint16_t, M, R>(stride * sizeof(*w));
    Floats even[R * kSteps] = {}, odd[R * kSteps] = {};
    int64_t i = 0;
    for (; i + kSteps * kBlock <= k; i += kSteps * kBlock) {
#pragma GCC unroll 8
      for (int s = 0; s < R * kSteps; ++s) {
        const uint16_t* row = w + s / kSteps * stride;
        if (R > 1) FetchLater(row + i, ahead);
        if (R == 1 && s % kLineSteps == 0) FetchLater(row + i + s * kBlock, ahead);
        Step(row, i + s % kSteps * kBlock, &even[s], &odd[s]);
      }
    }
    for (; i + kBlock <= k; i += kBlock) {
      for (int r = 0; r < R; ++r) Step(w + r * stride, i, &even[r], &odd[r]);
    }
    for (int r = 0; r < R; ++r) {
      Floats total{};
      for (int64_t rest = i; rest < k; ++rest) total[0] += near_[rest] * Widen(w[r * stride + rest]);
      for (int s = r * kSteps; s < (r + 1) * kSteps; ++s) total += even[s] + odd[s];
      sums[0][r] = total;
    }
  }

 private:
  static constexpr int64_t kBlock = 2 * kLanes;

  void Step(const uint16_t* w, int64_t i, Floats* even, Floats* odd) const {
    const Words pairs = Read<Words>(w + i);
    *even += (Floats)(pairs << 16) * Read<Floats>(near_.data() + i);
    *odd += (Floats)(pairs & 0xffff0000u) * Read<Floats>(near_.data() + i + kLanes);
  }

  Buffer<float> near_;
};

// Whether rows of x have the scales of groups multiplied in.
template <typename Rows>
constexpr bool kGrouped = false;
#if defined(SYSTOLIC_GROUPED)
template <typename W, int L>
constexpr bool kGrouped<GroupedRows<W, L>> = true;
#endif

// How M rows of x are held beside weights of kind W.
template <typename W, int M>
struct RowsFor {
  using Type = FloatRows<W>;
};
template <>
struct RowsFor<uint16_t, 1> {
  using Type = PairedRow;
};
template <int M>
struct RowsFor<Coded32, M> {
  using Type = RowsOfBlocks<Coded32>;
};
template <int M>
struct RowsFor<Coded16, M> {
  using Type = RowsOfBlocks<Coded16>;
};

#if defined(SYSTOLIC_INTEGERS)
template <int M>
struct RowsFor<int8_t, M> {
  using Type = IntegerRows<int8_t>;
};
template <int M>
struct RowsFor<Packed, M> {
  using Type = IntegerRows<Packed>;
};
#endif

// ---- products ----

// A matrix [n, k], or [k, n] if turned, its scales [n] if it has any, where its product goes, what is not in the tables of
// coded weights, and scales of groups [n, groups], as bf16.
template <typename W>
struct Matrix {
  const W* w;
  const float* scales;
  float* y;
  int64_t n;
  Outside<W> outside;
  const uint16_t* grouped = nullptr;
};

// sums[r][m] = x[m] . row r, lane by lane, for R rows of weights. `grouped` are the scales of the first row, if pieces
// are groups.
template <int M, int R, typename W, typename Rows>
inline void AddPieces(const Rows& x, const W* w, const uint16_t* grouped, int64_t groups, Floats (*sums)[M]) {
  const int64_t stride = RowLength<W>(x.k);
  Floats total[M][R] = {};
  if constexpr (kGrouped<Rows>) {
    x.template Dot<M, R>(w, grouped, stride, total);
  } else {
    for (int64_t piece = 0; piece < x.count; ++piece) {
      Floats part[M][R];
      x.template Dot<M, R>(piece, w + piece * x.size / PerElement<W>(), stride, part);
      for (int r = 0; r < R; ++r) {
        const float scale = grouped == nullptr ? 1.0f : Widen(grouped[r * groups + piece]);
        for (int m = 0; m < M; ++m) {
          total[m][r] += Rows::kScaled || grouped != nullptr ? part[m][r] * (scale * x.scale(piece, m)) : part[m][r];
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) sums[r][m] = total[m][r];
  }
}

// y[m][first:last] for the `valid` ones of M rows of x.
template <int M, int R, typename W, typename Rows>
void ProjectRows(const Rows& x, int64_t valid, const Matrix<W>& matrix, int64_t groups, int64_t first, int64_t last) {
  for (int64_t row = first; row < last;) {
    const int64_t rows = row + R <= last ? R : 1;
    Floats sums[R][M];
    const W* from = matrix.w + row * RowLength<W>(x.k);
    const uint16_t* grouped = matrix.grouped == nullptr ? nullptr : matrix.grouped + row * groups;
    if (rows == R) {
      AddPieces<M, R, W, Rows>(x, from, grouped, groups, sums);
    } else {
      AddPieces<M, 1, W, Rows>(x, from, grouped, groups, sums);
    }
    float results[R * M];
    if (rows == R) {
      SumAll<R * M>(&sums[0][0], results);
    } else {
      SumAll<M>(&sums[0][0], results);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float scale = matrix.scales != nullptr ? matrix.scales[row + r] : 1.0f;
      for (int m = 0; m < valid; ++m) matrix.y[m * matrix.n + row + r] = results[r * M + m] * scale;
    }
    row += rows;
  }
}

// y[m][first:last] of coded weights, with what their tables do not have.
template <typename W>
void AddOutside(const float* x, int64_t rows, int64_t k, const Matrix<W>& matrix, int64_t first, int64_t last) {
  matrix.outside.Each(first * k, last * k, [&](int64_t place, auto value) {
    for (int64_t m = 0; m < rows; ++m) matrix.y[m * matrix.n + place / k] += x[m * k + place % k] * Widen(value);
  });
}

// sums[m][j] += sum_i x[m][i] * w[i][j] for K rows of weights, n apart, and columns 0 .. count.
template <int M, int K, typename W>
inline void AddColumns(const float* x, int64_t k, const W* w, int64_t n, int64_t count, float* sums, int64_t stride) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    Floats total[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) total[m] = Read<Floats>(sums + m * stride + j);
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) {
      const Floats wide = WidenAll(w + i * n + j);
      __builtin_prefetch(reinterpret_cast<const char*>(w + (i + K) * n + j), 0, 2);  // the next ones
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) total[m] += wide * x[m * k + i];
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) Write(total[m], sums + m * stride + j);
  }
  for (; j < count; ++j) {
    for (int m = 0; m < M; ++m) {
      for (int i = 0; i < K; ++i) sums[m * stride + j] += x[m * k + i] * Widen(w[i * n + j]);
    }
  }
}

// y[m][first:last] where weights are [k, n]: the sums of a strip of columns stay near while rows of weights pass.
template <int M, typename W>
void ProjectColumns(const float* x, int64_t valid, int64_t k, const Matrix<W>& matrix, int64_t first, int64_t last) {
  constexpr int64_t kStrip = 4096 / M;
  alignas(64) float sums[M * kStrip];
  for (int64_t column = first; column < last; column += kStrip) {
    const int64_t count = std::min(kStrip, last - column);
    std::memset(sums, 0, sizeof(sums));
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) AddColumns<M, 8, W>(x + i, k, matrix.w + i * matrix.n + column, matrix.n, count, sums, kStrip);
    for (; i < k; ++i) AddColumns<M, 1, W>(x + i, k, matrix.w + i * matrix.n + column, matrix.n, count, sums, kStrip);
    for (int64_t m = 0; m < valid; ++m) std::copy_n(sums + m * kStrip, count, matrix.y + m * matrix.n + column);
  }
}

// kernel(a type whose value is the smallest of 1, 2, 4 and 8 that is not below `rows`)
template <typename Kernel>
void WithConstant(int64_t rows, const Kernel& kernel) {
  if (rows > 4) return kernel(std::integral_constant<int, 8>());
  if (rows > 2) return kernel(std::integral_constant<int, 4>());
  if (rows > 1) return kernel(std::integral_constant<int, 2>());
  return kernel(std::integral_constant<int, 1>());
}

// Runs work(matrix, first, last) over the results of all matrices, side by side. Rows of `row_bytes` behind each other
// can be fetched ahead.
template <typename W, typename Work>
void SpreadOver(ffi::ThreadPool& pool, const std::vector<Matrix<W>>& matrices, int64_t operations, int64_t unit,
                const Work& work, int64_t each = kParts, int64_t row_bytes = 0) {
  std::vector<int64_t> starts = {0};
  for (const auto& matrix : matrices) starts.push_back(starts.back() + (matrix.n + unit - 1) / unit);
  Spread(pool, starts.back(), operations * starts.back() * unit, [&](int64_t first, int64_t last) {
    for (size_t i = 0; i < matrices.size(); ++i) {
      const int64_t from = std::max(first, starts[i]) - starts[i], to = std::min(last, starts[i + 1]) - starts[i];
      if (from < to) work(matrices[i], from * unit, std::min(to * unit, matrices[i].n));
    }
  }, each, [&](int64_t first) {
    for (size_t i = 0; i < matrices.size() && row_bytes > 0; ++i) {
      if (first >= starts[i + 1]) continue;
      const char* from = reinterpret_cast<const char*>(matrices[i].w) + (first - starts[i]) * unit * row_bytes;
      return Range{from, (starts[i + 1] - first) * unit * row_bytes};
    }
    return Range{};
  });
}

// y[m, n] of M rows of x, of which `rows` are meant, held as Rows. Eight are two times four.
template <int M, typename Rows, typename W>
void ProjectHeld(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t k, int64_t groups,
                 const std::vector<Matrix<W>>& matrices) {
  constexpr int H = std::min(M, kBeside), R = RowsAtOnce<W>(H);
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  int64_t total = 0;
  for (const auto& matrix : matrices) total += matrix.n;
  std::deque<Rows> held;
  for (int64_t m = 0; m < M; m += H) held.emplace_back(x + m * k, H, k, groups);
  const bool alone = AreReadAlone<W>(H, k);
  const int64_t unit = alone ? 1 : R, row_bytes = RowLength<W>(k) * sizeof(W);
  const int64_t block = std::max<int64_t>(1, kNearBytes / (unit * row_bytes)) * unit;
  const auto project = alone ? ProjectRows<H, 1, W, Rows> : ProjectRows<H, R, W, Rows>;
  SpreadOver<W>(pool, matrices, rows * k, unit, [&](const Matrix<W>& matrix, int64_t first, int64_t last) {
    for (int64_t row = first, end; row < last; row = end) {
      end = M > H ? std::min(row + block, last) : last;
      Matrix<W> part = matrix;
      for (int64_t m = 0; m < rows; m += H, part.y += H * matrix.n) {
        project(held[m / H], std::min<int64_t>(H, rows - m), part, groups, row, end);
      }
    }
    if constexpr (kCoded<W>) AddOutside(x, rows, k, matrix, first, last);
  }, std::max(kParts, k * total / kPart / threads), row_bytes);
}

// y[m, n] of up to kFew rows, or kFewColumns where weights are turned, for several matrices of one kind. Weights are
// read once: three rows take as long as four, of which one is zero.
template <typename W>
void ProjectFew(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t k, int64_t groups, bool turned,
                const std::vector<Matrix<W>>& matrices) {
  WithConstant(rows, [&](auto constant) {
    constexpr int M = decltype(constant)::value;
    std::vector<float> filled;
    if (rows < M) {
      filled.resize(M * k);
      std::copy_n(x, rows * k, filled.data());
    }
    const float* all = rows < M ? filled.data() : x;
    if constexpr (kFloats<W>) {
      if (turned) {
        SpreadOver<W>(pool, matrices, rows * k, 4 * kLanes, [&](const Matrix<W>& matrix, int64_t first, int64_t last) {
          ProjectColumns<M, W>(all, rows, k, matrix, first, last);
        });
        return;
      }
    }
    if constexpr (M <= kFew<W>) {
#if defined(SYSTOLIC_GROUPED)
      if constexpr (kByFours<W>) {
        const int64_t bytes = groups > 1 ? k / groups / PerElement<W>() : 0;
        if (bytes == kUnit) return ProjectHeld<M, GroupedRows<W, 1>>(pool, all, rows, k, groups, matrices);
        if (bytes == 2 * kUnit) return ProjectHeld<M, GroupedRows<W, 2>>(pool, all, rows, k, groups, matrices);
      }
#endif
      ProjectHeld<M, typename RowsFor<W, std::min(M, kBeside)>::Type>(pool, all, rows, k, groups, matrices);
    }
  });
}

}  // namespace
