// Products of many rows: y[m, n] = sum_k x[m, k] * w[n, k], or w[k, n], in tiles.
//
// The lanes of a vector are rows of x, which is turned once, [k, m]; a weight is read from a small copy of its tile,
// in which it has been widened, and multiplied with all lanes. So weights of any kind and layout need no kernel of
// their own, and a tile of sums, kRows weights by two vectors, fills the registers.
//
// Weights kept as bf16, or as integers with a scale for a whole row, which bf16 holds exactly, are multiplied as
// bf16 where the machine can: x is rounded to bf16 then, sums are floats.

#pragma once

#include <algorithm>
#include <vector>

#include "project.h"
#include "several.h"
#include "threads.h"
#include "tiles.h"
#include "vectors.h"

namespace {

constexpr int kPanel = 2 * kLanes;           // rows of x in a tile: two vectors, in the last one maybe fewer
constexpr int64_t kMost = 512;               // rows of x that are multiplied together: their sums stay near
constexpr int kStrip = 8 * kRows;            // rows of weights at most that are finished together

// Whether what the next tile copies is fetched meanwhile. So it is quicker on Zen 4; on Zen 3 a prompt takes 1.06 times as
// long then.
#if defined(__AVX512F__)
constexpr bool kFetchesTiles = true;
#else
constexpr bool kFetchesTiles = false;
#endif

// What is fetched: some lines of 64 bytes in each row, rows being `apart` bytes apart.
struct Ahead {
  const char* from;
  int64_t apart, lines;
  int shift;  // of the number of lines that a row has at most
};

// sums[kRows][V vectors] += w[kRows, steps] . x[steps, V vectors]. In the copy of a tile, rows are kApart apart; in a
// turned one, steps are kRows apart.
template <typename Step, typename Vector, int V, bool kTurned>
inline void MultiplyTile(const typename Step::Element* w, const float* x, int64_t steps, float* to, int64_t stride,
                         bool fresh, const Ahead& ahead) {
  constexpr int kSize = sizeof(Vector) / sizeof(float);
  Vector sums[kRows][V];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = fresh ? Vector{} : Read<Vector>(to + r * stride + v * kSize);
  }
  for (int64_t k = 0; k < steps; ++k) {
    if constexpr (kFetchesTiles) {
      const int64_t line = k & ((1 << ahead.shift) - 1);
      if (line < ahead.lines) __builtin_prefetch(ahead.from + (k >> ahead.shift) * ahead.apart + line * 64, 0, 2);
    }
    Vector beside[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) beside[v] = Read<Vector>(x + (k * V + v) * kSize);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto one = w[kTurned ? k * kRows + r : r * kApart + k];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = Step::MultiplyAdd(sums[r][v], one, beside[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Write(sums[r][v], to + r * stride + v * kSize);
  }
}

// The same for the number of rows of x that a panel has.
template <typename Step, bool kTurned>
inline void MultiplyPanel(int width, const typename Step::Element* w, const float* x, int64_t steps, float* to,
                          int64_t stride, bool fresh, const Ahead& ahead) {
  if (width == kPanel) return MultiplyTile<Step, Floats, 2, kTurned>(w, x, steps, to, stride, fresh, ahead);
  if (width == kLanes) return MultiplyTile<Step, Floats, 1, kTurned>(w, x, steps, to, stride, fresh, ahead);
  return MultiplyTile<Step, HalfFloats, 1, kTurned>(w, x, steps, to, stride, fresh, ahead);
}

// ---- x, turned ----

// Rows of x in panels, [panel][step][lane], as floats. The last panel is as narrow as its rows allow.
template <typename Step>
class Panels {
 public:
  Panels(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t k)
      : rows(rows), steps((k + Step::kPer - 1) / Step::kPer), count((rows + kPanel - 1) / kPanel),
        values_(count * kPanel * steps), x_(x), k_(k) {
    const int64_t vectors = (rows + kLanes - 1) / kLanes;
    Spread(pool, vectors, rows * k, [&](int64_t first, int64_t last) {
      for (int64_t vector = first; vector < last; ++vector) Fill(vector);
    });
  }
  int width(int64_t panel) const {
    const int64_t left = rows - panel * kPanel;
    return left > kLanes ? kPanel : left > kHalf ? kLanes : kHalf;
  }
  const float* at(int64_t panel, int64_t step) const {
    return values_.data() + panel * kPanel * steps + step * width(panel);
  }

  const int64_t rows, steps, count;

 private:
  void Fill(int64_t vector) {
    const int64_t panel = vector * kLanes / kPanel, lane = vector * kLanes;
    const int64_t present = std::min<int64_t>(kLanes, rows - lane);
    const int64_t stride = width(panel), written = std::min<int64_t>(stride, kLanes) * sizeof(float);
    float* to = values_.data() + panel * kPanel * steps + lane % kPanel;
    Floats square[kLanes];
    for (int64_t step = 0; step < steps; step += kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        square[i] = i < present ? Some(x_ + (lane + i) * k_, step * Step::kPer) : Floats{};
      }
      Turn(square);
      const int64_t end = std::min<int64_t>(kLanes, steps - step);
      for (int64_t i = 0; i < end; ++i) std::memcpy(to + (step + i) * stride, &square[i], written);
    }
  }

  // kLanes steps of a row from number k on; zeros behind its end.
  Floats Some(const float* row, int64_t k) const {
    constexpr int kCount = kLanes * Step::kPer;
    float some[kCount];
    const float* from = row + k;
    if (k + kCount > k_) {
      std::fill_n(some, kCount, 0.0f);
      std::copy_n(from, k_ - k, some);
      from = some;
    }
#if defined(__AVX512BF16__)
    if constexpr (Step::kPer == 2) {
      return (Floats)_mm512_cvtne2ps_pbh((__m512)Read<Floats>(from + kLanes), (__m512)Read<Floats>(from));
    }
#endif
    return Read<Floats>(from);
  }

  Buffer<float> values_;
  const float* x_;
  const int64_t k_;
};

// ---- products ----

// y[0:count, row:row + rows] = sums[rows, count] turned, times a scale for each row of weights. Folded sums have the
// rest of each number kHalf lanes behind it.
template <typename W>
void TurnBack(const float* sums, int64_t stride, const Matrix<W>& matrix, bool folded, int64_t row,
              int64_t rows, int64_t first, int64_t count) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t high = std::min<int64_t>(kLanes, rows - r);
    for (int64_t m = 0; m < count; m += kLanes) {
      Floats square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        square[i] = i < high ? Read<Floats>(sums + (r + i) * stride + m) : Floats{};
        if (folded && i < high) square[i] += Read<Floats>(sums + (r + i) * stride + m + kHalf);
        if (matrix.scales != nullptr && i < high) square[i] *= matrix.scales[row + r + i];
      }
      Turn(square);
      const int64_t wide = std::min<int64_t>(kLanes, count - m);
      for (int64_t i = 0; i < wide; ++i) {
        std::memcpy(matrix.y + (first + m + i) * matrix.n + row + r, &square[i], high * sizeof(float));
      }
    }
  }
}

// Where the weights of a tile lie.
template <typename W>
Ahead AheadOf(const Matrix<W>& matrix, int64_t k, bool turned, int64_t row, int64_t at, int64_t length) {
  const int64_t size = sizeof(W);
  if (turned) return {reinterpret_cast<const char*>(matrix.w + at * matrix.n + row), matrix.n * size, 1, 0};
  const char* from = reinterpret_cast<const char*>(matrix.w + row * RowLength<W>(k) + RowLength<W>(at));
  return {from, RowLength<W>(k) * size, RowLength<W>(length) * size / 64, 4};
}

// How a product is made: numbers of k, groups of scales, the layout of weights, and whether x is folded.
struct Form {
  int64_t k, groups;
  bool turned, folded;
};

// Rows first .. last of the weights of one matrix, at most kStrip, with the rows of x from `begin` on, at most kMost.
template <typename Step, typename W>
void MultiplyStrip(const Panels<Step>& x, int64_t begin, const Form& form, const Matrix<W>& matrix, int64_t first,
                   int64_t last, float* sums, typename Step::Element* tile) {
  const int64_t count = std::min(kMost, x.rows - begin), stride = kMost + kLanes, block = kSteps * Step::kPer;
  const int64_t start = begin / kPanel, panels = (count + kPanel - 1) / kPanel;
  for (int64_t at = 0; at < form.k; at += block) {
    const int64_t length = std::min(block, form.k - at), steps = (length + Step::kPer - 1) / Step::kPer;
    for (int64_t row = first; row < last; row += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, last - row);
      CopyTile<Step, W>(matrix, form.k, form.groups, form.turned, row, rows, at, length, tile);
      const bool more = row + kRows < last;  // else the next tile is the first of the next block
      Ahead ahead = AheadOf(matrix, form.k, form.turned, more ? row + kRows : first, more ? at : at + length, length);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const float* from = x.at(start + panel, at / Step::kPer);
        const auto multiply = form.turned ? MultiplyPanel<Step, true> : MultiplyPanel<Step, false>;
        float* to = sums + (row - first) * stride + panel * kPanel;
        multiply(x.width(start + panel), tile, from, steps, to, stride, at == 0, ahead);
        ahead.lines = 0;
      }
    }
  }
  TurnBack(sums, stride, matrix, form.folded, first, last - first, begin, form.folded ? count - kHalf : count);
}

// y[m, n] of any number of rows for several matrices of one kind.
template <typename Step, typename W>
void MultiplyMany(ffi::ThreadPool& pool, const float* x, int64_t rows, const Form& form,
                  const std::vector<Matrix<W>>& matrices) {
  const Panels<Step> panels(pool, x, rows, form.k);
  int64_t total = 0;
  for (const auto& matrix : matrices) total += matrix.n;
  const int64_t parts = 2 * kManyParts * std::max<int64_t>(1, pool.num_threads());
  const int64_t strip = std::max<int64_t>(1, std::min<int64_t>(kStrip, total / parts) / kRows) * kRows;
  SpreadOver<W>(pool, matrices, rows * form.k, strip, [&](const Matrix<W>& matrix, int64_t first, int64_t last) {
    Buffer<float> sums(strip * (kMost + kLanes) + kLanes);
    Buffer<typename Step::Element> tile(kRows * kApart);
    for (int64_t row = first; row < last; row += strip) {
      for (int64_t begin = 0; begin < rows; begin += kMost) {
        MultiplyStrip<Step, W>(panels, begin, form, matrix, row, std::min(row + strip, last), sums.data(), tile.data());
      }
    }
  }, kManyParts);
}

#if defined(__AVX512BF16__)
// The same beside bf16. Up to kHalf rows are multiplied as the sum of two bf16, which takes no longer: the vectors
// have room for the second ones.
template <typename W>
void MultiplyPairs(ffi::ThreadPool& pool, const float* x, int64_t rows, Form form,
                   const std::vector<Matrix<W>>& matrices) {
  if constexpr (kSeveralPairs<W> > 0) {
    if (!form.turned && rows <= kSeveralPairs<W>) {
      const bool folded = rows <= kHalf;
      const PairRows pairs(x, rows, form.k, folded);
      return ProjectHeldWoven<Pair, 16, W>(pool, pairs.data(), rows, folded, form.k, form.groups, matrices);
    }
  }
  if (rows > kHalf) return MultiplyMany<Pair, W>(pool, x, rows, form, matrices);
  std::vector<float> parts((kHalf + rows) * form.k);
  std::copy_n(x, rows * form.k, parts.data());
  for (int64_t i = 0; i < rows * form.k; ++i) parts[kHalf * form.k + i] = x[i] - Widen(Narrow(x[i]));
  form.folded = true;
  MultiplyMany<Pair, W>(pool, parts.data(), kHalf + rows, form, matrices);
}
#endif

// The same in whatever way is quickest, but not rounded beside bf16.
template <typename W>
void MultiplyRows(ffi::ThreadPool& pool, const float* x, int64_t rows, const Form& form,
                  const std::vector<Matrix<W>>& matrices) {
#if defined(__AVX2__)
  if constexpr (kSeveral<W> > 0) {
    if (!form.turned && AreSeveral<W>(rows, form.k)) {
      return ProjectSeveral<W>(pool, x, rows, form.k, form.groups, matrices);
    }
  }
#endif
  if (rows <= (form.turned ? kFewColumns : kFew<W>)) {
    return ProjectFew<W>(pool, x, rows, form.k, form.groups, form.turned, matrices);
  }
  MultiplyMany<Single, W>(pool, x, rows, form, matrices);
}

// ---- what XLA calls ----

template <typename W>
ffi::Error MultiplyKind(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::RemainingArgs weights, ffi::RemainingRets results,
                        bool turned) {
  const int64_t k = x.dimensions().back(), rows = x.element_count() / k;
  const size_t each = weights.size() / results.size();  // a matrix, and maybe its scales, or what is outside of tables
  std::vector<Matrix<W>> matrices;
  int64_t groups = 1;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto w = weights.get<ffi::AnyBuffer>(i * each);
    const auto y = results.get<ffi::AnyBuffer>(i);
    if (!w.has_value() || !y.has_value()) return ffi::Error::InvalidArgument("project: weights or results are missing");
    const float* scales = nullptr;
    const uint16_t* grouped = nullptr;
    if (each == 2) {
      const auto kept = weights.get<ffi::AnyBuffer>(i * each + 1);
      if (!kept.has_value()) return ffi::Error::InvalidArgument("project: scales are missing");
      groups = kept->dimensions()[1];
      if (kept->element_type() == ffi::BF16) grouped = static_cast<const uint16_t*>(kept->untyped_data());
      else scales = kept->template typed_data<float>();
    }
    Outside<W> outside;
    if constexpr (kCoded<W>) {
      const auto values = weights.get<ffi::AnyBuffer>(i * each + 1), places = weights.get<ffi::AnyBuffer>(i * each + 2);
      if (!values.has_value() || !places.has_value()) return ffi::Error::InvalidArgument("project: a list is missing");
      outside = {places->template typed_data<int32_t>(),
                 static_cast<const typename Outside<W>::Value*>(values->untyped_data()),
                 static_cast<int64_t>(places->element_count())};
    }
    ffi::Result<ffi::AnyBuffer> result = y.value();
    matrices.push_back({static_cast<const W*>(w->untyped_data()), scales, static_cast<float*>(result->untyped_data()),
                        static_cast<int64_t>(result->dimensions().back()), outside, grouped});
  }
  const float* from = x.typed_data<float>();
  const Form form{k, groups, turned, false};
#if defined(__AVX512BF16__)
  if constexpr (std::is_same<W, uint16_t>::value || std::is_same<W, int8_t>::value || std::is_same<W, Coded16>::value) {
    if (groups == 1 && rows > (turned ? kFewColumns : kFew<W>)) {
      MultiplyPairs<W>(pool, from, rows, form, matrices);
      return ffi::Error::Success();
    }
  }
#endif
  MultiplyRows<W>(pool, from, rows, form, matrices);
  return ffi::Error::Success();
}

}  // namespace

// x[..., k] with matrices of one kind: a result for each. Behind each matrix of integers come its scales; behind each of
// coded floats, what is not in its tables, and where.
static ffi::Error Project(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::RemainingArgs weights,
                          ffi::RemainingRets results, bool turned) {
  const auto first = weights.get<ffi::AnyBuffer>(0);
  if (!first.has_value()) return ffi::Error::InvalidArgument("project: there are no weights");
  switch (first->element_type()) {
    case ffi::F32: return MultiplyKind<float>(pool, x, weights, results, turned);
    case ffi::BF16: return MultiplyKind<uint16_t>(pool, x, weights, results, turned);
    case ffi::S8: return MultiplyKind<int8_t>(pool, x, weights, results, turned);
    case ffi::U8: break;
    default: return ffi::Error::InvalidArgument("project: weights must be f32, bf16, i8 or u8");
  }
  if (weights.size() == 2 * results.size()) return MultiplyKind<Packed>(pool, x, weights, results, turned);
  const auto outside = weights.get<ffi::AnyBuffer>(1);
  const bool is_short = outside.has_value() && outside->element_type() == ffi::BF16;
  if (is_short) return MultiplyKind<Coded16>(pool, x, weights, results, turned);
  return MultiplyKind<Coded32>(pool, x, weights, results, turned);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_project, Project,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<bool>("turned"));
