// Kernels that XLA calls through its foreign function interface (CPU, one process).
//
// project: y[m, n] = sum_k x[m, k] * w[n, k] for a few rows m, reading every weight once. Weights are f32, bf16
//   or i8; i8 and packed 4-bit weights have a scale for each group of a row.
// attend: softmax(scale * q . k) . v over the slots that a mask lets a query see, and over no others: what is
//   hidden is not read, so time depends on how much of a state is used and not on its capacity.
//
// Sums are kept in explicit vectors, so that nothing needs a compiler's leave to reorder floating-point numbers.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kAhead = 2048;      // bytes that are asked for before they are needed
constexpr int64_t kSmall = 1 << 15;  // multiply-adds below which another thread costs more than it saves
constexpr int64_t kSpins = 2000;     // looks at whether the others are done before giving way
constexpr int64_t kParts = 4;       // parts for each thread: a thread that is late holds up less

struct Progress {
  std::atomic<int64_t> next{0}, done{0};
};

// Runs work(first, last) over [0, count) on the pool and here; returns when all of it is done. A thread of the
// pool that comes late finds nothing left: only parts that were begun are waited for.
template <typename Work>
void Spread(ffi::ThreadPool& pool, int64_t count, int64_t operations, const Work& work) {
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t parts = std::min(count, operations < kSmall ? 1 : threads * kParts);
  if (parts <= 1) {
    work(0, count);
    return;
  }
  auto progress = std::make_shared<Progress>();  // outlives this call in threads that come late
  auto drain = [progress, parts, count, &work] {
    for (int64_t part = progress->next.fetch_add(1); part < parts; part = progress->next.fetch_add(1)) {
      work(part * count / parts, (part + 1) * count / parts);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1; i < std::min(threads, parts); ++i) pool.Schedule([drain] { drain(); });
  drain();
  for (int64_t spins = 0; progress->done.load(std::memory_order_acquire) != parts; ++spins) {
    if (spins > kSpins) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// ---- vectors ----

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <typename Vector, typename Element>
inline Vector Read(const Element* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline float Widen(float w) { return w; }
inline float Widen(int8_t w) { return static_cast<float>(w); }
inline float Widen(uint16_t w) {  // bf16: the upper half of a float
  const uint32_t bits = static_cast<uint32_t>(w) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline Floats WidenAll(const float* w) { return Read<Floats>(w); }
#if defined(__AVX512F__)
inline Floats Convert(__m128i bytes) { return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
inline Floats WidenAll(const uint16_t* w) {
  return (Floats)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Read<__m256i>(w)), 16));
}
inline Floats WidenAll(const int8_t* w) { return Convert(Read<__m128i>(w)); }
#elif defined(__AVX2__)
inline Floats Convert(__m128i bytes) { return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline Floats WidenAll(const uint16_t* w) {
  return (Floats)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(Read<__m128i>(w)), 16));
}
inline Floats WidenAll(const int8_t* w) { return Convert(_mm_cvtsi64_si128(Read<int64_t>(w))); }
#else
inline Floats WidenAll(const int8_t* w) { return __builtin_convertvector(Read<Bytes>(w), Floats); }
inline Floats WidenAll(const uint16_t* w) {
  const Words bits = __builtin_convertvector(Read<Halves>(w), Words) << 16;
  Floats values;
  std::memcpy(&values, &bits, sizeof(values));
  return values;
}
#endif

// Two weights in a byte, 8 added to each; the lower halves of a group of bytes are its first half.
struct Packed {
  uint8_t byte;
};

// The weights in the lower and in the upper halves of kLanes bytes.
inline void Unpack(const Packed* from, Floats* lower, Floats* upper) {
#if defined(__AVX512F__)
  const __m128i wide = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  *lower = Convert(_mm_sub_epi8(_mm_and_si128(wide, mask), eight));
  *upper = Convert(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(wide, 4), mask), eight));
#else
  for (int j = 0; j < kLanes; ++j) {
    (*lower)[j] = static_cast<float>((from[j].byte & 15) - 8);
    (*upper)[j] = static_cast<float>((from[j].byte >> 4) - 8);
  }
#endif
}

inline float Sum(Floats vector) {
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32)));
  Half parts[2];
  std::memcpy(parts, &vector, sizeof(parts));
  Half total = parts[0] + parts[1];
#else
  Floats total = vector;
#endif
  return ((total[0] + total[4]) + (total[1] + total[5])) + ((total[2] + total[6]) + (total[3] + total[7]));
}

// sums[m][r] = x[m] . rows[r] over `count` elements, lane by lane; the x are `stride` apart. Every row and
// every x is read once, for M * R sums in registers.
template <int M, int R, typename W>
inline void Dots(const float* x, int64_t stride, const W* const* rows, int64_t count, Floats (*sums)[R]) {
  Floats lanes[M][R] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    Floats wide[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      wide[r] = WidenAll(rows[r] + k);
      __builtin_prefetch(reinterpret_cast<const char*>(rows[r] + k) + kAhead, 0, 0);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats value = Read<Floats>(x + m * stride + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) lanes[m][r] += value * wide[r];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      for (int64_t rest = k; rest < count; ++rest) {
        lanes[m][r][0] += x[m * stride + rest] * Widen(rows[r][rest]);
      }
      sums[m][r] = lanes[m][r];
    }
  }
}

// How many rows of weights are read side by side for M rows of x: enough sums to hide the latency of adding.
constexpr int RowsAtOnce(int m) { return m >= 8 ? 3 : 4; }

// ---- projections ----

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

// ---- attention ----

// e^x to about 1e-7 of it, for x <= 0; 0 far below. In a form that compilers turn into vectors.
inline float Exp(float x) {
  x = std::max(x, -87.0f);
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

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

}  // namespace

// ---- what XLA calls ----

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
