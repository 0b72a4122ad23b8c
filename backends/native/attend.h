// attend: softmax(scale * q . k) . v over the slots that a mask lets a query see, and over no others: what is
//   hidden is not read, so time depends on how much of a state is used and not on its capacity.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "project.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct Shape {
  int64_t rows, positions, heads, group, key, value, slots;
};

// M queries of one head: scores of the slots seen[0:count], in scores[m * slots + i].
template <int M>
void ScoreQueries(const float* q, const float* keys, const std::vector<int64_t>& seen, const Shape& s,
                  float* scores) {
  constexpr int R = RowsAtOnce(M);
  const int64_t count = seen.size();
  const float* rows[R];
  Floats sums[M][R];
  int64_t i = 0;
  for (; i + R <= count; i += R) {
    for (int r = 0; r < R; ++r) rows[r] = keys + seen[i + r] * s.key;
    Dots<M, R, float>(q, s.key, rows, s.key, sums);
    for (int m = 0; m < M; ++m) {
      for (int r = 0; r < R; ++r) scores[m * s.slots + i + r] = Sum(sums[m][r]);
    }
  }
  for (; i < count; ++i) {
    Floats one[M][1];
    rows[0] = keys + seen[i] * s.key;
    Dots<M, 1, float>(q, s.key, rows, s.key, one);
    for (int m = 0; m < M; ++m) scores[m * s.slots + i] = Sum(one[m][0]);
  }
}

// Scores to probabilities, not yet divided by their sum, which is returned.
float Normalize(float* scores, int64_t count, float scale, float cap) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    scores[i] *= scale;
    if (cap > 0) scores[i] = cap * std::tanh(scores[i] / cap);
    largest = std::max(largest, scores[i]);
  }
  for (int64_t i = 0; i < count; ++i) scores[i] = Exp(scores[i] - largest);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += scores[i];
  return static_cast<float>(total);
}

// out[m] = sum_i scores[m][i] * values[seen[i]]: every value is read once for M queries.
template <int M>
void MixValues(const float* scores, const float* values, const std::vector<int64_t>& seen, const Shape& s,
               const float* totals, float* out) {
  const int64_t count = seen.size();
  int64_t e = 0;
  for (; e + kLanes <= s.value; e += kLanes) {
    Floats lanes[M] = {};
    for (int64_t i = 0; i < count; ++i) {
      const Floats v = Read<Floats>(values + seen[i] * s.value + e);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) lanes[m] += scores[m * s.slots + i] * v;
    }
    for (int m = 0; m < M; ++m) {
      for (int j = 0; j < kLanes; ++j) out[m * s.value + e + j] = lanes[m][j] / totals[m];
    }
  }
  for (; e < s.value; ++e) {
    for (int m = 0; m < M; ++m) {
      float total = 0;
      for (int64_t i = 0; i < count; ++i) total += scores[m * s.slots + i] * values[seen[i] * s.value + e];
      out[m * s.value + e] = total / totals[m];
    }
  }
}

template <int M>
void AttendQueries(const float* q, const float* keys, const float* values, const std::vector<int64_t>& seen,
                   const Shape& s, float scale, float cap, float* scores, float* out) {
  float totals[M];
  ScoreQueries<M>(q, keys, seen, s, scores);
  for (int m = 0; m < M; ++m) totals[m] = Normalize(scores + m * s.slots, seen.size(), scale, cap);
  MixValues<M>(scores, values, seen, s, totals, out);
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

}  // namespace

static ffi::Error Attend(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                         ffi::AnyBuffer mask, ffi::Result<ffi::AnyBuffer> out, float scale, float cap) {
  const auto d = q.dimensions();
  const Shape s{d[0], d[1], d[2], d[3], d[4], values.dimensions()[3], keys.dimensions()[2]};
  const auto* visible = static_cast<const uint8_t*>(mask.untyped_data());
  const int64_t masked_rows = mask.dimensions()[0];
  const float *query = q.typed_data<float>(), *k = keys.typed_data<float>(), *v = values.typed_data<float>();
  float* result = out->typed_data<float>();
  const int64_t work = s.rows * s.positions * s.heads * s.group * s.slots * (s.key + s.value);
  Spread(pool, s.rows * s.positions * s.heads, work, [&](int64_t first, int64_t last) {
    std::vector<float> scores(8 * s.slots);
    std::vector<int64_t> seen;
    int64_t listed = -1;  // the position whose visible slots are in `seen`
    for (int64_t item = first; item < last; ++item) {
      const int64_t head = item % s.heads, at = item / s.heads, row = at / s.positions;
      if (at != listed) {
        const int64_t line = (masked_rows == 1 ? 0 : row) * s.positions + at % s.positions;
        seen.clear();
        for (int64_t slot = 0; slot < s.slots; ++slot) {
          if (visible[line * s.slots + slot]) seen.push_back(slot);
        }
        listed = at;
      }
      const int64_t store = row * s.heads + head;
      const float* own_keys = k + store * s.slots * s.key;
      const float* own_values = v + store * s.slots * s.value;
      if (seen.empty()) {  // a position that is only padding
        std::fill_n(result + item * s.group * s.value, s.group * s.value, 0.0f);
        continue;
      }
      ForRows(s.group, [&](int64_t g, int step) {
        const float* from = query + (item * s.group + g) * s.key;
        float* to = result + (item * s.group + g) * s.value;
        switch (step) {
          case 8: AttendQueries<8>(from, own_keys, own_values, seen, s, scale, cap, scores.data(), to); break;
          case 4: AttendQueries<4>(from, own_keys, own_values, seen, s, scale, cap, scores.data(), to); break;
          case 2: AttendQueries<2>(from, own_keys, own_values, seen, s, scale, cap, scores.data(), to); break;
          default: AttendQueries<1>(from, own_keys, own_values, seen, s, scale, cap, scores.data(), to);
        }
      });
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_attend, Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<float>("cap"));
