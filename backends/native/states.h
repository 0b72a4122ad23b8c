// What states are kept as, and what attention reads of them.

#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

struct Half {  // an f16
  uint16_t bits;
};

inline float Widen(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, low = h.bits & 0x3ff;
  const uint32_t exponent = h.bits >> 10 & 31;
  if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(low);
  const uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | low << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline Floats WidenAll(const Half* w) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(Read<__m256i>(w));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(Read<__m128i>(w));
#else
  Floats values;
  for (int j = 0; j < kLanes; ++j) values[j] = Widen(w[j]);
  return values;
#endif
}

struct Shape {
  int64_t rows, positions, heads, group, key, value, slots;
};

// One head of a state: a vector for each slot and, if it is kept as integers, the scale of each.
template <typename W>
struct Store {
  const W* numbers;
  const float* scales;
};

}  // namespace
