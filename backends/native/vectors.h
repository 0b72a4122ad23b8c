// Vectors of the widest kind that the machine has, and the numbers that weights are kept as.
//
// Sums are kept in explicit vectors, so that nothing needs a compiler's leave to reorder floating-point numbers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <typename Vector, typename Element>
inline Vector Read(const Element* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename Vector, typename Element>
inline void Write(const Vector& vector, Element* to) {
  std::memcpy(to, &vector, sizeof(vector));
}

// Memory without a value, aligned for vectors.
template <typename Element>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : from_(static_cast<Element*>(std::aligned_alloc(64, (count * sizeof(Element) + 127) / 64 * 64))) {}
  ~Buffer() { std::free(from_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Element* data() const { return from_; }
  Element& operator[](int64_t i) const { return from_[i]; }

 private:
  Element* from_;
};

// Bytes of the nearest cache.
inline int64_t NearestBytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t found = sysconf(_SC_LEVEL1_DCACHE_SIZE);  // asked once: virtual machines take microseconds
  if (found > 0) return found;
#endif
  return 1 << 15;
}

// ---- numbers ----

inline float Widen(float w) { return w; }
inline float Widen(int8_t w) { return static_cast<float>(w); }
inline float Widen(uint16_t w) {  // bf16: the upper half of a float
  const uint32_t bits = static_cast<uint32_t>(w) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint16_t Narrow(float w) {  // to the nearest bf16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &w, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
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
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m128i wide = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
#else
  const __m128i wide = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
#endif
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

// How many numbers lie in one element of memory.
template <typename W>
constexpr int64_t PerElement() {
  return std::is_same<W, Packed>::value ? 2 : 1;
}

constexpr int64_t kLine = 64;  // bytes of a line of the caches
constexpr int kUnrolled = 4;  // steps of a row that is read by itself

// How many bytes ahead the second cache gets what comes, for M rows of x beside R rows of weights that are `apart` bytes
// apart; 0: nothing. With AVX-512 (Zen 5), rows of any weights that are read one by one gain from it, since the machine
// does not ask for enough by itself, even of large pages: 5 percent where memory is slow, up to a fifth where it is quick
// or where weights are widened. Of rows side by side only those of f32 do, beside a single x. On Zen 3 the machine asks
// for enough beside a single x, and a product of f32 that asks takes a fifth longer. Integers are read a fifth sooner
// there, and what is multiplied with two to four rows up to a third: of rows side by side the next ones are fetched, if
// these are near.
template <typename W, int M, int R>
constexpr int64_t BytesAhead(int64_t apart) {
#if defined(__AVX512F__)
  if (R == 1) return 8192;
  return M == 1 && std::is_same<W, float>::value ? 1024 : 0;
#else
  constexpr int64_t kNear = 1 << 15;
  if (M == 1 && sizeof(W) > 1) return 0;
  if (R == 1) return 4096;
  return std::max<int64_t>(R * apart <= kNear ? R * apart : 0, 1024);
#endif
}

template <typename Element>
inline void FetchLater(const Element* from, int64_t ahead) {
  if (ahead > 0) __builtin_prefetch(reinterpret_cast<const char*>(from) + ahead, 0, 2);
}

// ---- vectors as a whole ----

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

// Lanes of a and of b, each added to the lane S away: those without the bit S are of a, the others of b.
template <int S>
inline Floats AddPairs(Floats a, Floats b) {
#if defined(__AVX512F__)
  alignas(64) static constexpr struct Order {
    int32_t near[16], far[16];
    constexpr Order() : near(), far() {
      for (int lane = 0; lane < 16; ++lane) {
        near[lane] = lane & S ? 16 + lane : lane;
        far[lane] = lane & S ? 16 + lane - S : lane + S;
      }
    }
  } order{};
  const __m512 x = (__m512)a, y = (__m512)b;
  return (Floats)_mm512_add_ps(_mm512_permutex2var_ps(x, Read<__m512i>(order.near), y),
                               _mm512_permutex2var_ps(x, Read<__m512i>(order.far), y));
#else
  Floats sums;
  for (int lane = 0; lane < kLanes; ++lane) {
    sums[lane] = lane & S ? b[lane] + b[lane - S] : a[lane] + a[lane + S];
  }
  return sums;
#endif
}

// Lane i of the result is the sum of all lanes of vectors[i].
inline Floats SumEach(const Floats* vectors) {
  Floats sums[kLanes];
  std::copy_n(vectors, kLanes, sums);
  for (int i = 0; i < kLanes; i += 2) sums[i] = AddPairs<1>(sums[i], sums[i + 1]);
  for (int i = 0; i < kLanes; i += 4) sums[i] = AddPairs<2>(sums[i], sums[i + 2]);
  for (int i = 0; i < kLanes; i += 8) sums[i] = AddPairs<4>(sums[i], sums[i + 4]);
#if defined(__AVX512F__)
  sums[0] = AddPairs<8>(sums[0], sums[8]);
#endif
  return sums[0];
}

// to[i] is the sum of all lanes of vectors[i], for N of them; with AVX-512 together, in a quarter of the instructions.
template <int N>
inline void SumAll(const Floats* vectors, float* to) {
#if defined(__AVX512F__)
  int i = 0;
  for (; i + kLanes <= N; i += kLanes) Write(SumEach(vectors + i), to + i);
  for (; i + 4 <= N; i += 4) {
    const Floats two = AddPairs<1>(vectors[i], vectors[i + 1]), other = AddPairs<1>(vectors[i + 2], vectors[i + 3]);
    const Floats four = AddPairs<2>(two, other), half = AddPairs<4>(four, four), all = AddPairs<8>(half, half);
    std::memcpy(to + i, &all, 4 * sizeof(float));
  }
  for (; i < N; ++i) to[i] = Sum(vectors[i]);
#else
  for (int i = 0; i < N; ++i) to[i] = Sum(vectors[i]);
#endif
}

inline Floats Larger(Floats a, Floats b) { return a > b ? a : b; }

// Rows become columns. In each step, lanes whose number has one bit set change places with those of the row
// whose number has it, too.
template <int S>
inline void Exchange(Floats* rows) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & S) continue;
    const Floats a = rows[i], b = rows[i + S];
#if defined(__AVX512F__)
    alignas(64) static constexpr struct Order {
      int32_t low[16], high[16];
      constexpr Order() : low(), high() {
        for (int lane = 0; lane < 16; ++lane) {
          low[lane] = lane & S ? 16 + lane - S : lane;
          high[lane] = lane & S ? 16 + lane : lane + S;
        }
      }
    } order{};
    rows[i] = (Floats)_mm512_permutex2var_ps((__m512)a, Read<__m512i>(order.low), (__m512)b);
    rows[i + S] = (Floats)_mm512_permutex2var_ps((__m512)a, Read<__m512i>(order.high), (__m512)b);
#elif defined(__AVX2__)
    if constexpr (S == 1) {
      rows[i] = (Floats)_mm256_blend_ps((__m256)a, _mm256_moveldup_ps((__m256)b), 0xaa);
      rows[i + S] = (Floats)_mm256_blend_ps(_mm256_movehdup_ps((__m256)a), (__m256)b, 0xaa);
    } else if constexpr (S == 2) {
      rows[i] = (Floats)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x44);
      rows[i + S] = (Floats)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xee);
    } else {
      rows[i] = (Floats)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20);
      rows[i + S] = (Floats)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31);
    }
#else
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[i][lane] = lane & S ? b[lane - S] : a[lane];
      rows[i + S][lane] = lane & S ? b[lane] : a[lane + S];
    }
#endif
  }
}

inline void Turn(Floats* rows) {
  Exchange<1>(rows);
  Exchange<2>(rows);
  Exchange<4>(rows);
#if defined(__AVX512F__)
  Exchange<8>(rows);
#endif
}

// e^x to about 1e-7 of it, for x <= 0; next to nothing far below. In a form that compilers turn into vectors.
inline float Exp(float x) {
  x = x > -87.0f ? x : -87.0f;
  const float n = __builtin_nearbyintf(x * 1.44269504f);
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

// e^x to about 1e-7 of it, for x <= 0; next to nothing far below.
inline Floats Exp(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it has no fraction
  const Floats least = Floats{} - 87.0f;
  x = x > least ? x : least;
  const Floats n = (x * 1.44269504f + kRound) - kRound;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * Read<Floats>(&bits);
}

}  // namespace
