// attend: softmax(scale * q . k) . v over the slots that a mask lets a query see, and over no others: what is
//   hidden is not read, so time depends on how much of a state is used and not on its capacity. States are f32,
//   f16, the bits of bf16, or i8 with a scale for each slot; they are widened in registers.
//
// Keys and values are read once, in blocks of slots, for all queries of a head: a running maximum and sum make up
// the softmax (Milakov & Gimelshein 2018). Where heads are fewer than threads, the slots of a head are split, too.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "attend_chunk.h"
#include "states.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t kBlock = 64;   // slots whose scores are computed together: a multiple of kLanes
constexpr int64_t kFewest = 256;  // slots that are worth a part of their own

struct Run {  // of slots that are visible: [first, last)
  int64_t first, last;
};

// What M queries have read so far: the largest score, the sum of the powers, and the sum of the values times these.
struct Reading {
  float *largest, *total, *mixed;
};

// Asks for a block of slots, which lie apart from what was read before: the machine alone would ask for few lines at a
// time. As measured with AVX-512 (Zen 5), where a step with weights of 4 bits takes 0.95 to 0.97 of the time then.
template <typename W>
inline void FetchSlots(const W* from, int64_t count, int64_t size) {
#if defined(__AVX512F__)
  const char* first = reinterpret_cast<const char*>(from);
  const int64_t bytes = std::min(count, kBlock) * size * sizeof(W);
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(first + at, 0, 3);
#endif
}

// ---- scores ----

// rows[i] . x for R rows, lane by lane, of M vectors x that lie behind each other.
template <int M, int R, typename W>
inline void RowDots(const float* x, const W* rows, int64_t size, Floats (*sums)[kLanes], int64_t at) {
  Floats lanes[M][R] = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes) {
    Floats wide[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) wide[r] = WidenAll(rows + r * size + k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats value = Read<Floats>(x + m * size + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) lanes[m][r] += value * wide[r];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) sums[m][at + r] = lanes[m][r];
  }
  for (; k < size; ++k) {  // in memory: what reads one lane keeps all of them out of registers
    for (int m = 0; m < M; ++m) {
      for (int r = 0; r < R; ++r) {
        float* first = reinterpret_cast<float*>(&sums[m][at + r]);
        *first += x[m * size + k] * Widen(rows[r * size + k]);
      }
    }
  }
}

// scores[m][i] = x[m] . slot i, for `count` slots behind each other.
template <int M, typename W>
inline void ScoreBlock(const float* x, const W* slots, int64_t count, int64_t size, float (*scores)[kBlock]) {
  constexpr int R = M >= 8 ? 2 : 4;
  for (int64_t first = 0; first < count; first += kLanes) {
    Floats sums[M][kLanes];
    const int64_t rows = std::min<int64_t>(kLanes, count - first);
    for (int m = 0; m < M && rows < kLanes; ++m) std::fill(sums[m] + rows, sums[m] + kLanes, Floats{});
    int64_t i = 0;
    for (; i + R <= rows; i += R) RowDots<M, R, W>(x, slots + (first + i) * size, size, sums, i);
    for (; i < rows; ++i) RowDots<M, 1, W>(x, slots + (first + i) * size, size, sums, i);
    for (int m = 0; m < M; ++m) {
      const Floats totals = SumEach(sums[m]);
      std::memcpy(scores[m] + first, &totals, sizeof(totals));
    }
  }
}

// ---- softmax ----

// kLanes numbers, or the `count` that there are and zeros.
inline Floats ReadPart(const float* from, int64_t count) {
  if (count >= kLanes) return Read<Floats>(from);
  Floats part = {};
  std::memcpy(&part, from, count * sizeof(float));
  return part;
}

inline float Largest(Floats x) {
  float largest = x[0];
  for (int j = 1; j < kLanes; ++j) largest = std::max(largest, x[j]);
  return largest;
}

// Scores to powers of what they are below the largest so far, which is all that is left of those before. What
// lies behind `count` scores up to a multiple of kLanes becomes zero.
inline void RaiseBlock(float* scores, int64_t count, float scale, float cap, const float* scales,
                       float* largest, float* total, float* mixed, int64_t width) {
  const float lowest = -std::numeric_limits<float>::infinity();
  Floats highest = Floats{} + lowest;
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats x = Read<Floats>(scores + i) * scale;
    if (scales != nullptr) x *= ReadPart(scales + i, count - i);
    if (cap > 0) {
      for (int j = 0; j < kLanes; ++j) x[j] = cap * std::tanh(x[j] / cap);
    }
    for (int64_t j = count - i; j < kLanes; ++j) x[j] = lowest;
    highest = x > highest ? x : highest;
    std::memcpy(scores + i, &x, sizeof(x));
  }
  const float now = std::max(*largest, Largest(highest));
  if (now > *largest) {
    const float left = Exp(*largest - now);
    *total *= left;
    for (int64_t e = 0; e < width; ++e) mixed[e] *= left;
    *largest = now;
  }
  Floats sum = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats x = Read<Floats>(scores + i), power = x > lowest ? Exp(x - now) : Floats{};
    sum += power;
    std::memcpy(scores + i, &power, sizeof(power));
  }
  *total += Sum(sum);
}

// ---- values ----

// mixed[m][e...] += sum_i weights[m][i] * slot i, for E vectors of lanes of `count` slots behind each other.
template <int M, int E, typename W>
inline void MixLanes(const float (*weights)[kBlock], const W* slots, int64_t count, int64_t size, float* mixed) {
  Floats lanes[M][E];
  for (int m = 0; m < M; ++m) {
    for (int e = 0; e < E; ++e) lanes[m][e] = Read<Floats>(mixed + m * size + e * kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Floats wide[E];
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) wide[e] = WidenAll(slots + i * size + e * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int e = 0; e < E; ++e) lanes[m][e] += weights[m][i] * wide[e];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int e = 0; e < E; ++e) std::memcpy(mixed + m * size + e * kLanes, &lanes[m][e], sizeof(Floats));
  }
}

template <int M, typename W>
inline void MixBlock(const float (*weights)[kBlock], const W* slots, int64_t count, int64_t size, float* mixed) {
  constexpr int E = M >= 8 ? 2 : 4;
  int64_t e = 0;
  for (; e + E * kLanes <= size; e += E * kLanes) {
    MixLanes<M, E, W>(weights, slots + e, count, size, mixed + e);
  }
  for (; e + kLanes <= size; e += kLanes) MixLanes<M, 1, W>(weights, slots + e, count, size, mixed + e);
  for (; e < size; ++e) {
    for (int m = 0; m < M; ++m) {
      float total = 0;
      for (int64_t i = 0; i < count; ++i) total += weights[m][i] * Widen(slots[i * size + e]);
      mixed[m * size + e] += total;
    }
  }
}

// ---- one head ----

// M queries read `count` slots from `slot` on.
template <int M, typename W>
void ReadBlock(const float* q, Store<W> keys, Store<W> values, int64_t slot, int64_t count, const Shape& s,
               float scale, float cap, Reading to) {
  float scores[M][kBlock];
  ScoreBlock<M, W>(q, keys.numbers + slot * s.key, count, s.key, scores);
  const float* key_scales = keys.scales == nullptr ? nullptr : keys.scales + slot;
  for (int m = 0; m < M; ++m) {
    RaiseBlock(scores[m], count, scale, cap, key_scales, to.largest + m, to.total + m, to.mixed + m * s.value,
               s.value);
    for (int64_t i = 0; i < count && values.scales != nullptr; i += kLanes) {
      const Floats scaled = Read<Floats>(scores[m] + i) * ReadPart(values.scales + slot + i, count - i);
      std::memcpy(scores[m] + i, &scaled, sizeof(scaled));
    }
  }
  MixBlock<M, W>(scores, values.numbers + slot * s.value, count, s.value, to.mixed);
}

// The queries of one head read the visible slots number [first, last): each block for all of them.
template <typename W>
void ReadHead(const float* q, Store<W> keys, Store<W> values, const std::vector<Run>& runs, int64_t first,
              int64_t last, const Shape& s, float scale, float cap, Reading to) {
  std::fill_n(to.largest, s.group, -std::numeric_limits<float>::infinity());
  std::fill_n(to.total, s.group, 0.0f);
  std::fill_n(to.mixed, s.group * s.value, 0.0f);
  if (!runs.empty() && first == 0) FetchSlots(keys.numbers + runs[0].first * s.key, last, s.key);
  int64_t before = 0;  // visible slots in the runs that are passed
  for (const Run& run : runs) {
    const int64_t end = std::min(run.last, run.first + last - before);
    for (int64_t slot = run.first + std::max<int64_t>(first - before, 0); slot < end; slot += kBlock) {
      const int64_t count = std::min(kBlock, end - slot);
      FetchSlots(values.numbers + slot * s.value, count, s.value);
      FetchSlots(keys.numbers + (slot + count) * s.key, end - slot - count, s.key);
      for (int64_t m = 0; m < s.group;) {
        const int64_t left = s.group - m;
        const float* from = q + m * s.key;
        const Reading part{to.largest + m, to.total + m, to.mixed + m * s.value};
        if (left >= 8) {
          ReadBlock<8, W>(from, keys, values, slot, count, s, scale, cap, part), m += 8;
        } else if (left >= 4) {
          ReadBlock<4, W>(from, keys, values, slot, count, s, scale, cap, part), m += 4;
        } else if (left >= 2) {
          ReadBlock<2, W>(from, keys, values, slot, count, s, scale, cap, part), m += 2;
        } else {
          ReadBlock<1, W>(from, keys, values, slot, count, s, scale, cap, part), m += 1;
        }
      }
    }
    before += run.last - run.first;
  }
}

// ---- all heads ----

// The visible slots of each row of a mask, and how many they are.
struct Visible {
  std::vector<std::vector<Run>> runs;
  std::vector<int64_t> counts;

  Visible(const uint8_t* mask, int64_t lines, int64_t slots) : runs(lines), counts(lines) {
    for (int64_t line = 0; line < lines; ++line) {
      const uint8_t* from = mask + line * slots;
      for (const uint8_t *at = from, *end = from + slots; at < end;) {
        const auto* first = static_cast<const uint8_t*>(std::memchr(at, 1, end - at));
        if (first == nullptr) break;
        const auto* last = static_cast<const uint8_t*>(std::memchr(first, 0, end - first));
        at = last == nullptr ? end : last;
        runs[line].push_back({first - from, at - from});
        counts[line] += at - first;
      }
    }
  }
};

// What all parts of a head have read, as one; zeros for a position that is only padding and has read nothing.
inline void Join(const float* parts, int64_t count, const Shape& s, float* out) {
  const int64_t width = s.group * (s.value + 2);
  for (int64_t m = 0; m < s.group; ++m) {
    float largest = parts[m];
    for (int64_t p = 1; p < count; ++p) largest = std::max(largest, parts[p * width + m]);
    float total = 0;
    float* to = out + m * s.value;
    std::fill_n(to, s.value, 0.0f);
    for (int64_t p = 0; p < count; ++p) {
      const float* part = parts + p * width;
      if (part[s.group + m] == 0) continue;
      const float left = Exp(part[m] - largest);
      total += left * part[s.group + m];
      const float* mixed = part + 2 * s.group + m * s.value;
      for (int64_t e = 0; e < s.value; ++e) to[e] += left * mixed[e];
    }
    if (total == 0) continue;
    for (int64_t e = 0; e < s.value; ++e) to[e] /= total;
  }
}

template <typename W>
void AttendAll(ffi::ThreadPool& pool, const float* q, Store<W> keys, Store<W> values, const Visible& visible,
               const Shape& s, float scale, float cap, float* out) {
  const int64_t items = s.rows * s.positions * s.heads, lines = visible.counts.size();
  const int64_t read = std::accumulate(visible.counts.begin(), visible.counts.end(), int64_t{0}) / lines;
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t parts = std::max<int64_t>(std::min(threads * kParts / items, read / kFewest), 1);
  const int64_t width = s.group * (s.value + 2);
  std::vector<float> kept(parts > 1 ? items * parts * width : 0);
  Spread(pool, items * parts, items * s.group * read * (s.key + s.value), [&](int64_t first, int64_t last) {
    std::vector<float> own(parts > 1 ? 0 : width);
    for (int64_t task = first; task < last; ++task) {
      const int64_t item = task / parts, part = task % parts;
      const int64_t store = item / s.heads / s.positions * s.heads + item % s.heads;
      const int64_t line = item / s.heads % lines, count = visible.counts[line];
      float* from = parts > 1 ? kept.data() + task * width : own.data();
      const Reading to{from, from + s.group, from + 2 * s.group};
      const int64_t at = store * s.slots;
      const Store<W> k{keys.numbers + at * s.key, keys.scales == nullptr ? nullptr : keys.scales + at};
      const Store<W> v{values.numbers + at * s.value, values.scales == nullptr ? nullptr : values.scales + at};
      ReadHead<W>(q + item * s.group * s.key, k, v, visible.runs[line], count * part / parts,
                  count * (part + 1) / parts, s, scale, cap, to);
      if (parts == 1) Join(from, 1, s, out + item * s.group * s.value);
    }
  });
  for (int64_t item = 0; item < items && parts > 1; ++item) {
    Join(kept.data() + item * parts * width, parts, s, out + item * s.group * s.value);
  }
}

}  // namespace

template <typename W>
static ffi::Error AttendAs(ffi::ThreadPool& pool, ffi::AnyBuffer& q, ffi::AnyBuffer& keys, ffi::AnyBuffer& values,
                           ffi::AnyBuffer& mask, const float* key_scales, const float* value_scales,
                           ffi::AnyBuffer& out, float scale, float cap) {
  const auto d = q.dimensions();
  const Shape s{d[0], d[1], d[2], d[3], d[4], values.dimensions()[3], keys.dimensions()[2]};
  const auto* shown = static_cast<const uint8_t*>(mask.untyped_data());
  const Store<W> k{static_cast<const W*>(keys.untyped_data()), key_scales};
  const Store<W> v{static_cast<const W*>(values.untyped_data()), value_scales};
  if (s.positions > 1 && s.positions * s.group >= kLanes) {
    AttendChunk<W>(pool, q.typed_data<float>(), k, v, shown, mask.dimensions()[0] * s.positions, s, scale, cap,
                   out.typed_data<float>());
    return ffi::Error::Success();
  }
  const Visible visible(shown, mask.dimensions()[0] * s.positions, s.slots);
  AttendAll<W>(pool, q.typed_data<float>(), k, v, visible, s, scale, cap, out.typed_data<float>());
  return ffi::Error::Success();
}

static ffi::Error Attend(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                         ffi::AnyBuffer mask, ffi::Result<ffi::AnyBuffer> out, float scale, float cap) {
  if (keys.element_type() != values.element_type()) {
    return ffi::Error::InvalidArgument("attend: keys and values must be of one type");
  }
  switch (keys.element_type()) {
    case ffi::F32: return AttendAs<float>(pool, q, keys, values, mask, nullptr, nullptr, *out, scale, cap);
    case ffi::F16: return AttendAs<Half>(pool, q, keys, values, mask, nullptr, nullptr, *out, scale, cap);
    case ffi::U16: return AttendAs<uint16_t>(pool, q, keys, values, mask, nullptr, nullptr, *out, scale, cap);
    default: return ffi::Error::InvalidArgument("attend: states must be f32, f16 or the bits of bf16");
  }
}

static ffi::Error AttendScaled(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                               ffi::AnyBuffer mask, ffi::AnyBuffer key_scales, ffi::AnyBuffer value_scales,
                               ffi::Result<ffi::AnyBuffer> out, float scale, float cap) {
  if (keys.element_type() != ffi::S8 || values.element_type() != ffi::S8) {
    return ffi::Error::InvalidArgument("attend_scaled: states must be i8");
  }
  return AttendAs<int8_t>(pool, q, keys, values, mask, key_scales.typed_data<float>(),
                          value_scales.typed_data<float>(), *out, scale, cap);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_attend_scaled, AttendScaled,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<float>("cap"));
