// project: y[m, n] = sum_k x[m, k] * w[n, k] for a few rows m, reading every weight once. Weights are f32, bf16
//   or i8; i8 and packed 4-bit weights have a scale for each group of a row.

#pragma once

#include <algorithm>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

template <int M, int R, typename W>
inline void GroupDots(const float* x, int64_t k, const W* w, int64_t size, Floats (*sums)[R]) {
  const W* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = w + r * k;
  Dots<M, R, W>(x, size, rows, size, sums);
}

template <int M, int R>
inline void GroupDots(const float* x, int64_t k, const Packed* w, int64_t size, Floats (*sums)[R]) {
  const int64_t half = size / 2;
  Floats lanes[M][R] = {};
  int64_t j = 0;
  for (; j + kLanes <= half; j += kLanes) {
    Floats lower[R], upper[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Unpack(w + r * k / 2 + j, &lower[r], &upper[r]);
      __builtin_prefetch(reinterpret_cast<const char*>(w + r * k / 2 + j) + kAhead, 0, 0);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats first = Read<Floats>(x + m * size + j), second = Read<Floats>(x + m * size + half + j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) lanes[m][r] += first * lower[r] + second * upper[r];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      for (int64_t rest = j; rest < half; ++rest) {
        const int byte = w[r * k / 2 + rest].byte;
        lanes[m][r][0] += x[m * size + rest] * ((byte & 15) - 8) + x[m * size + half + rest] * ((byte >> 4) - 8);
      }
      sums[m][r] = lanes[m][r];
    }
  }
}

template <typename W>
constexpr int64_t PerElement() {
  return std::is_same<W, Packed>::value ? 2 : 1;
}

// sums[r][m] += scale * (x[m] . row r) over one block of k, lane by lane, for R rows of weights.
template <int M, int R, typename W>
inline void AddBlock(const float* x, const W* w, const float* scales, int64_t groups, int64_t k, int64_t block,
                     Floats (*sums)[M]) {
  Floats part[M][R];
  GroupDots<M, R>(x, k, w, block, part);
  for (int r = 0; r < R; ++r) {
    const float scale = scales == nullptr ? 1.0f : scales[r * groups];
    for (int m = 0; m < M; ++m) sums[r][m] += part[m][r] * scale;
  }
}

// y[m][row:row + R] where rows of weights have several scales: groups are summed in registers. The x of a
// group lie beside each other.
template <int M, int R, typename W>
inline void ProjectGroups(const float* x, const W* w, const float* scales, float* y, int64_t n, int64_t k,
                          int64_t groups, int64_t row) {
  const int64_t size = k / groups;
  Floats total[M][R] = {};
  for (int64_t group = 0; group < groups; ++group) {
    Floats part[M][R];
    GroupDots<M, R>(x + M * group * size, k, w + (row * k + group * size) / PerElement<W>(), size, part);
    for (int r = 0; r < R; ++r) {
      const float scale = scales[(row + r) * groups + group];
      for (int m = 0; m < M; ++m) total[m][r] += part[m][r] * scale;
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) y[m * n + row + r] = Sum(total[m][r]);
  }
}

// Blocks of k keep the rows of x in the nearest cache while a tile of weight rows passes; a single row of x
// needs none. The rows of x are copied block by block, since rows that lie a power of two apart would drive
// each other out of that cache. Blocks never cross a group, which has one scale.
template <int M, typename W>
void ProjectRows(const float* x, const W* w, const float* scales, float* y, int64_t n, int64_t k,
                 int64_t groups, int64_t first, int64_t last) {
  constexpr int R = RowsAtOnce(M);
  constexpr int64_t kTile = 8 * R, kBlock = M >= 8 ? 512 : 1024, kPer = PerElement<W>();
  const int64_t size = k / groups, block = groups > 1 || M == 1 ? size : kBlock;
  std::vector<float> near(M > 1 ? M * k : 0);
  for (int64_t at = 0; at < k && M > 1; at += block) {
    const int64_t length = std::min(block, k - at);
    for (int m = 0; m < M; ++m) std::copy_n(x + m * k + at, length, near.data() + M * at + m * length);
  }
  if (groups > 1) {
    const float* from = M > 1 ? near.data() : x;
    int64_t row = first;
    for (; row + R <= last; row += R) ProjectGroups<M, R, W>(from, w, scales, y, n, k, groups, row);
    for (; row < last; ++row) ProjectGroups<M, 1, W>(from, w, scales, y, n, k, groups, row);
    return;
  }
  Floats sums[kTile][M];
  for (int64_t tile = first; tile < last; tile += kTile) {
    const int64_t rows = std::min(kTile, last - tile);
    std::memset(sums, 0, sizeof(sums));
    for (int64_t at = 0; at < k; at += block) {
      const int64_t length = std::min(block, k - at);
      const float* beside = M > 1 ? near.data() + M * at : x + at;
      for (int64_t row = 0; row < rows;) {
        const W* from = w + ((tile + row) * k + at) / kPer;
        const float* scale = scales == nullptr ? nullptr : scales + (tile + row) * groups + at / size;
        if (row + R <= rows) {
          AddBlock<M, R, W>(beside, from, scale, groups, k, length, sums + row);
          row += R;
        } else {
          AddBlock<M, 1, W>(beside, from, scale, groups, k, length, sums + row);
          row += 1;
        }
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int m = 0; m < M; ++m) y[m * n + tile + row] = Sum(sums[row][m]);
    }
  }
}

template <typename Kernel>
void ForRows(int64_t rows, const Kernel& kernel) {  // kernel(first row, how many: 1, 2, 4 or 8)
  for (int64_t m = 0; m < rows;) {
    const int64_t left = rows - m;
    const int step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    kernel(m, step);
    m += step;
  }
}

template <typename W>
void ProjectAll(ffi::ThreadPool& pool, const float* x, const W* w, const float* scales, float* y,
                int64_t rows, int64_t n, int64_t k, int64_t groups) {
  Spread(pool, n, rows * n * k, [&](int64_t first, int64_t last) {
    ForRows(rows, [&](int64_t m, int step) {
      const float* from = x + m * k;
      float* to = y + m * n;
      switch (step) {
        case 8: ProjectRows<8, W>(from, w, scales, to, n, k, groups, first, last); break;
        case 4: ProjectRows<4, W>(from, w, scales, to, n, k, groups, first, last); break;
        case 2: ProjectRows<2, W>(from, w, scales, to, n, k, groups, first, last); break;
        default: ProjectRows<1, W>(from, w, scales, to, n, k, groups, first, last);
      }
    });
  });
}

}  // namespace

static ffi::Error Project(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w,
                          ffi::Result<ffi::AnyBuffer> y) {
  const int64_t n = w.dimensions()[0], k = w.dimensions()[1];
  const int64_t rows = x.element_count() / k;
  const float* from = x.typed_data<float>();
  float* to = y->typed_data<float>();
  if (w.element_type() == ffi::F32) {
    ProjectAll<float>(pool, from, w.typed_data<float>(), nullptr, to, rows, n, k, 1);
  } else if (w.element_type() == ffi::BF16) {
    ProjectAll<uint16_t>(pool, from, static_cast<const uint16_t*>(w.untyped_data()), nullptr, to, rows, n, k, 1);
  } else {
    return ffi::Error::InvalidArgument("project: weights must be f32 or bf16");
  }
  return ffi::Error::Success();
}

static ffi::Error ProjectScaled(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w,
                                ffi::AnyBuffer scales, ffi::Result<ffi::AnyBuffer> y) {
  const int64_t n = scales.dimensions()[0], groups = scales.dimensions()[1];
  const bool packed = w.element_type() == ffi::U8;
  const int64_t k = static_cast<int64_t>(w.element_count()) / n * (packed ? 2 : 1);
  const int64_t rows = x.element_count() / k;
  const float *from = x.typed_data<float>(), *scale = scales.typed_data<float>();
  float* to = y->typed_data<float>();
  if (packed) {
    ProjectAll<Packed>(pool, from, static_cast<const Packed*>(w.untyped_data()), scale, to, rows, n, k, groups);
  } else {
    ProjectAll<int8_t>(pool, from, static_cast<const int8_t*>(w.untyped_data()), scale, to, rows, n, k, groups);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_project, Project,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_project_scaled, ProjectScaled,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
