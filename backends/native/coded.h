// Floats whose upper bytes are numbers in a table of their row: see ir/ops/packing.py for the form of a row.
//
// A block of 64 is looked up at once; what comes out are the floats that were packed, bit for bit. The few that are not
// in the table are zero there, and stand in a list.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

struct Coded32 {  // a byte of a row of f32
  uint8_t byte;
};
struct Coded16 {  // a byte of a row of bf16
  uint8_t byte;
};

template <typename W>
constexpr bool kCoded = std::is_same<W, Coded32>::value || std::is_same<W, Coded16>::value;

constexpr int64_t kTable = 16, kCodes = 64;  // bytes in front of a row, floats in a block

// Bytes of a block.
template <typename W>
constexpr int64_t kBlockBytes = std::is_same<W, Coded32>::value ? 3 * kCodes + kCodes / 2 : kCodes + kCodes / 2;

// Elements of memory in a row of k weights.
template <typename W>
constexpr int64_t RowLength(int64_t k) {
  if constexpr (kCoded<W>) return kTable + k / kCodes * kBlockBytes<W>;
  return k / PerElement<W>();
}

#if defined(__AVX512BW__)

constexpr bool kLanesApart = true;  // bf16 come out in another order than they are in

struct Table {
  __m512i upper;
  template <typename W>
  explicit Table(const W* row) : upper(_mm512_broadcast_i32x4(Read<__m128i>(row))) {}

  // The upper bytes of the 64 floats whose codes are here.
  __m512i LookUp(const void* codes) const {
    const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(codes));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(halves), _mm256_srli_epi16(halves, 4), 1);
    return _mm512_shuffle_epi8(upper, _mm512_and_si512(both, _mm512_set1_epi8(15)));
  }
};

#if defined(__AVX512VBMI__)
// Bytes 48v .. 48v + 48 of the lower ones, three by three, and upper bytes 16v .. 16v + 16 behind each three.
struct Woven {
  alignas(64) uint8_t from[4][64];
  constexpr Woven() : from() {
    for (int v = 0; v < 4; ++v) {
      for (int lane = 0; lane < 16; ++lane) {
        for (int byte = 0; byte < 3; ++byte) from[v][4 * lane + byte] = 3 * lane + byte;
        from[v][4 * lane + 3] = 64 + 16 * v + lane;
      }
    }
  }
};
inline constexpr Woven kWoven{};

// A block as four vectors.
inline void Unpack(const Coded32* block, const Table& table, Floats* to) {
  const __m512i upper = table.LookUp(block + 3 * kCodes);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    to[v] = (Floats)_mm512_permutex2var_epi8(Read<__m512i>(block + 48 * v), Read<__m512i>(kWoven.from[v]), upper);
  }
}
#else
// The same in two steps: 12 of the lower bytes and four upper ones into each quarter of a vector, then into order there.
inline void Unpack(const Coded32* block, const Table& table, Floats* to) {
  const __m512i upper = table.LookUp(block + 3 * kCodes);
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 12, 3, 4, 5, 13, 6, 7, 8, 14, 9, 10, 11, 15));
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int from = 16 + 4 * v;
    const __m512i fours = _mm512_setr_epi32(0, 1, 2, from, 3, 4, 5, from + 1, 6, 7, 8, from + 2, 9, 10, 11, from + 3);
    const __m512i quarters = _mm512_permutex2var_epi32(Read<__m512i>(block + 48 * v), fours, upper);
    to[v] = (Floats)_mm512_shuffle_epi8(quarters, order);
  }
}
#endif

// Words of the numbers 16i .. 16i + 8 for i = 0 .. 4, and of those 8 behind each of these.
inline void Weave(const Coded16* block, const Table& table, __m512i* first, __m512i* second) {
  const __m512i lower = Read<__m512i>(block), upper = table.LookUp(block + kCodes);
  *first = _mm512_unpacklo_epi8(lower, upper);
  *second = _mm512_unpackhi_epi8(lower, upper);
}

// The same for bf16, whose words are floats when they are shifted up, or when what is below is cleared: numbers of even
// places of both, then of odd places.
inline void Unpack(const Coded16* block, const Table& table, Floats* to) {
  __m512i words[2];
  Weave(block, table, &words[0], &words[1]);
  for (int i = 0; i < 2; ++i) {
    to[2 * i] = (Floats)((Words)words[i] << 16);
    to[2 * i + 1] = (Floats)((Words)words[i] & 0xffff0000u);
  }
}

// A block of bf16 in its order.
inline void UnpackInOrder(const Coded16* block, const Table& table, uint16_t* to) {
  __m512i first, second;
  Weave(block, table, &first, &second);
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  Write(_mm512_permutex2var_epi64(first, low, second), to);
  Write(_mm512_permutex2var_epi64(first, high, second), to + 32);
}

#elif defined(__AVX2__) && !defined(__AVX512F__)

constexpr bool kLanesApart = true;  // bf16 come out in another order than they are in

struct Table {
  __m256i upper;
  template <typename W>
  explicit Table(const W* row) : upper(_mm256_broadcastsi128_si256(Read<__m128i>(row))) {}

  // The upper bytes of those 32 of 64 floats whose codes are in the lower halves of bytes, or in the upper ones.
  __m256i LookUp(__m256i codes, int half) const {
    const __m256i halves = half == 0 ? codes : _mm256_srli_epi16(codes, 4);
    return _mm256_shuffle_epi8(upper, _mm256_and_si256(halves, _mm256_set1_epi8(15)));
  }
};

// Vector V of four. Its 24 lower bytes are read such that there are 12 in each half, behind or in front of 4 that are
// not its own. Its upper bytes take their places, and all are put in order at once.
template <int V>
inline Floats Weave(const Coded32* lower, __m256i upper) {
  const __m256i read = Read<__m256i>(lower + 24 * V - 4);
  const __m256i placed = V == 0 ? upper : _mm256_shuffle_epi32(upper, V | (V + 3) % 4 << 6);  // first and last
  const __m256i order = _mm256_setr_epi8(4, 5, 6, 0, 7, 8, 9, 1, 10, 11, 12, 2, 13, 14, 15, 3,  //
                                         0, 1, 2, 12, 3, 4, 5, 13, 6, 7, 8, 14, 9, 10, 11, 15);
  return (Floats)_mm256_shuffle_epi8(_mm256_blend_epi32(read, placed, 0x81), order);
}

// A block as eight vectors. Bytes in front of it are read, too: of the table, or of another block.
inline void Unpack(const Coded32* block, const Table& table, Floats* to) {
  // Codes of four floats each: those for the lower halves of vectors, then those for the upper ones.
  const __m256i fours = _mm256_setr_epi32(0, 2, 4, 6, 3, 5, 7, 1);
  const __m256i codes = _mm256_permutevar8x32_epi32(Read<__m256i>(block + 3 * kCodes), fours);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i upper = table.LookUp(codes, half);
    const Coded32* lower = block + 96 * half;
    to[4 * half] = Weave<0>(lower, upper);
    to[4 * half + 1] = Weave<1>(lower, upper);
    to[4 * half + 2] = Weave<2>(lower, upper);
    to[4 * half + 3] = Weave<3>(lower, upper);
  }
}

// Of a half of the numbers: words of the first 8 of each 16, and of those 8 behind them.
inline void Weave(const Coded16* block, const Table& table, int half, __m256i* first, __m256i* second) {
  const __m256i lower = Read<__m256i>(block + 32 * half), upper = table.LookUp(Read<__m256i>(block + kCodes), half);
  *first = _mm256_unpacklo_epi8(lower, upper);
  *second = _mm256_unpackhi_epi8(lower, upper);
}

// The same for bf16, whose words are floats when they are shifted up, or when what is below is cleared.
inline void Unpack(const Coded16* block, const Table& table, Floats* to) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i words[2];
    Weave(block, table, half, &words[0], &words[1]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      to[4 * half + 2 * i] = (Floats)((Words)words[i] << 16);
      to[4 * half + 2 * i + 1] = (Floats)((Words)words[i] & 0xffff0000u);
    }
  }
}

// A block of bf16 in its order.
inline void UnpackInOrder(const Coded16* block, const Table& table, uint16_t* to) {
  for (int half = 0; half < 2; ++half) {
    __m256i first, second;
    Weave(block, table, half, &first, &second);
    Write(_mm256_permute2x128_si256(first, second, 0x20), to + 32 * half);
    Write(_mm256_permute2x128_si256(first, second, 0x31), to + 32 * half + 16);
  }
}

#else

constexpr bool kLanesApart = false;

struct Table {
  const uint8_t* upper;
  template <typename W>
  explicit Table(const W* row) : upper(&row->byte) {}
  uint32_t LookUp(const uint8_t* codes, int i) const {
    return upper[i < kCodes / 2 ? codes[i] & 15 : codes[i - kCodes / 2] >> 4];
  }
};

inline void Unpack(const Coded32* block, const Table& table, Floats* to) {
  const uint8_t* bytes = &block->byte;
  uint32_t words[kCodes];
  for (int i = 0; i < kCodes; ++i) {
    const uint32_t lower = bytes[3 * i] | bytes[3 * i + 1] << 8 | bytes[3 * i + 2] << 16;
    words[i] = lower | table.LookUp(bytes + 3 * kCodes, i) << 24;
  }
  std::memcpy(to, words, sizeof(words));
}

inline void UnpackInOrder(const Coded16* block, const Table& table, uint16_t* to) {
  const uint8_t* bytes = &block->byte;
  for (int i = 0; i < kCodes; ++i) to[i] = bytes[i] | table.LookUp(bytes + kCodes, i) << 8;
}

inline void Unpack(const Coded16* block, const Table& table, Floats* to) {
  uint16_t halves[kCodes];
  UnpackInOrder(block, table, halves);
  for (int i = 0; i < kCodes; i += kLanes) to[i / kLanes] = WidenAll(halves + i);
}

#endif

// Which number of a block comes out at place i.
template <typename W>
constexpr int OrderOf(int i) {
  if (!kLanesApart || std::is_same<W, Coded32>::value) return i;
  const int vector = i / kLanes, lane = i % kLanes;
  return vector / 4 * 32 + lane / 4 * 16 + vector % 4 / 2 * 8 + lane % 4 * 2 + vector % 2;
}

// Numbers k .. k + count of a row, in their order; both are multiples of a block.
inline void UnpackRow(const Coded32* row, int64_t k, int64_t count, float* to) {
  const Table table(row);
  for (int64_t i = 0; i < count; i += kCodes) {
    Floats values[kCodes / kLanes];
    Unpack(row + RowLength<Coded32>(k + i), table, values);
    std::memcpy(to + i, values, sizeof(values));
  }
}
inline void UnpackRow(const Coded16* row, int64_t k, int64_t count, uint16_t* to) {
  const Table table(row);
  for (int64_t i = 0; i < count; i += kCodes) UnpackInOrder(row + RowLength<Coded16>(k + i), table, to + i);
}
inline void UnpackRow(const Coded16* row, int64_t k, int64_t count, float* to) {
  uint16_t halves[kCodes];
  const Table table(row);
  for (int64_t i = 0; i < count; i += kCodes) {
    UnpackInOrder(row + RowLength<Coded16>(k + i), table, halves);
    for (int64_t j = 0; j < kCodes; j += kLanes) Write(WidenAll(halves + j), to + i + j);
  }
}

// ---- what is not in the tables ----

// Weights [n, k] by their places, which are sorted; those behind the last weight are none.
template <typename W>
struct Outside {
  using Value = std::conditional_t<std::is_same<W, Coded32>::value, float, uint16_t>;
  const int32_t* places;
  const Value* values;
  int64_t count;

  // act(place, value) for those from `first` on, before `last`.
  template <typename Act>
  void Each(int64_t first, int64_t last, const Act& act) const {
    for (const int32_t* at = std::lower_bound(places, places + count, first); at < places + count && *at < last; ++at) {
      act(static_cast<int64_t>(*at), values[at - places]);
    }
  }
};

// Fetches what comes behind a line of M rows of x beside R of weights. On Zen 3, looking up takes so long beside reading
// that the nearest cache is asked, which is a sixth of the time for all.
template <typename W, int M, int R>
inline void FetchCoded(const W* line, int64_t apart) {
#if defined(__AVX512F__)
  FetchLater(line, BytesAhead<W, M, R>(apart));
#else
  __builtin_prefetch(line + 1024, 0, 3);
#endif
}

// Rows of x beside coded weights: blocks, each with the numbers of all M rows in the order in which weights come out.
template <typename W>
class RowsOfBlocks {
 public:
  static constexpr bool kScaled = false;
  const int64_t rows, k, size, count = 1;

  RowsOfBlocks(const float* x, int64_t rows, int64_t k, int64_t) : rows(rows), k(k), size(k), near_(rows * k) {
    for (int64_t at = 0; at < k; at += kCodes) {
      for (int64_t m = 0; m < rows; ++m) {
        for (int i = 0; i < kCodes; ++i) near_[at * rows + m * kCodes + i] = x[m * k + at + OrderOf<W>(i)];
      }
    }
  }
  float scale(int64_t, int) const { return 1.0f; }

  template <int M, int R>
  void Dot(int64_t, const W* w, int64_t stride, Floats (*sums)[R]) const {
    constexpr int kVectors = kCodes / kLanes, kApart = std::max(1, std::min(4, 8 / (M * R)));
    Floats lanes[M][R][kApart] = {};
    for (int64_t at = 0; at < k; at += kCodes) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W* block = w + r * stride + RowLength<W>(at);
#pragma GCC unroll 4
        for (int64_t line = 0; line < kBlockBytes<W>; line += kLine) FetchCoded<W, M, R>(block + line, stride);
        Floats wide[kVectors];
        Unpack(block, Table(w + r * stride), wide);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            lanes[m][r][v % kApart] += Read<Floats>(near_.data() + at * M + m * kCodes + v * kLanes) * wide[v];
          }
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int r = 0; r < R; ++r) {
        sums[m][r] = lanes[m][r][0];
        for (int a = 1; a < kApart; ++a) sums[m][r] += lanes[m][r][a];
      }
    }
  }

 private:
  Buffer<float> near_;
};

}  // namespace
