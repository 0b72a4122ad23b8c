// Vectors of the widest kind that the machine has, and the numbers that weights are kept as.
//
// Sums are kept in explicit vectors, so that nothing needs a compiler's leave to reorder floating-point numbers.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kAhead = 2048;  // bytes that are asked for before they are needed

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

}  // namespace
