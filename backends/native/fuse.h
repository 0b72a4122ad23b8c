// Small operations between products, many of them in one call.
//
// XLA starts a kernel of its own for each of a norm's sums, for each result of a rotation, and so on, and each start
// takes longer than the numbers of one token. Here they are instructions that are carried out one after the other:
// what one makes is still in the nearest cache when the next one reads it.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// In the order of `OPERATIONS` in fusions.py.
enum class Operation : int64_t {
  kCopy, kWiden, kOfBool, kNegative, kAbsolute, kExp, kLog1p, kSqrt, kRsqrt, kTanh, kSigmoid, kErf,
  kAdd, kSubtract, kMultiply, kDivide, kMaximum, kMinimum, kWhere, kSum, kMax, kMin
};

constexpr int kAxes = 4;

// Where numbers lie: a buffer, the first of them, and how far apart they are along each axis.
struct Place {
  int64_t buffer, first, strides[kAxes];
};

// As fusions.py writes it: sizes of the loops, the last one innermost, what is written and what is read.
struct Instruction {
  Operation operation;
  int64_t sizes[kAxes];
  Place to, x, y, z;
};

// ---- functions of vectors ----

inline Floats Constant(float value) { return Floats{} + value; }

inline Floats ExpOfAny(Floats x) {
  const Floats most = Constant(89.0f);  // beyond it, all are infinite
  const Floats power = Exp(x < most ? x : most);
  return x == x ? power : x;
}

inline Floats SigmoidOf(Floats x) { return 1.0f / (1.0f + ExpOfAny(-x)); }

// A polynomial where it is small, else from e^2x; to about 2e-7 of it.
inline Floats TanhOf(Floats x) {
  const Floats size = x < 0.0f ? -x : x, z = x * x;
  Floats p = Constant(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const Floats large = 1.0f - 2.0f / (ExpOfAny(2.0f * size) + 1.0f);
  return size < Constant(0.625f) ? p * z * x + x : x < 0.0f ? -large : large;
}

// A series where it is small, else by formula 7.1.26 of Abramowitz and Stegun; to about 2e-7.
inline Floats ErfOf(Floats x) {
  const Floats size = x < 0.0f ? -x : x, z = x * x;
  Floats near = Constant(-1.0f / 1320);
  near = near * z + 1.0f / 216;
  near = near * z - 1.0f / 42;
  near = near * z + 1.0f / 10;
  near = near * z - 1.0f / 3;
  near = (near * z + 1.0f) * x * 1.12837917f;
  const Floats t = 1.0f / (1.0f + 0.3275911f * size);
  Floats p = Constant(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats far = 1.0f - p * t * ExpOfAny(-z);
  return size < Constant(0.5f) ? near : x < 0.0f ? -far : far;
}

// The logarithm of u = 1 + x, u being a power of two times a number around one whose logarithm is a polynomial (the
// coefficients of Cephes' logf); and what is lost where x is added to 1. To about 2e-7 of it.
inline Floats Log1pOf(Floats x) {
  const Floats u = 1.0f + x, least = Constant(1.17549435e-38f);
  const Ints bits = (Ints)(u > least ? u : least);
  const Ints half = (bits & 0x007fffff) | 0x3f000000;  // from 0.5 up to 1
  const Floats part = (Floats)half, root = Constant(0.707106781f);
  Floats power = __builtin_convertvector((bits >> 23) - 126, Floats);
  power = part < root ? power - 1.0f : power;
  const Floats m = part < root ? part + part - 1.0f : part - 1.0f, z = m * m;
  Floats p = Constant(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Floats lost = (x - (u - 1.0f)) / u;
  const Floats log = m + (p * m * z - 2.12194440e-4f * power - 0.5f * z) + 0.693359375f * power + lost;
  using Limits = std::numeric_limits<float>;
  const Floats none = Constant(0.0f), infinite = Constant(Limits::infinity()), no_number = Constant(Limits::quiet_NaN());
  return (u > none) & (u < infinite) ? log : u == none ? -infinite : u < infinite ? no_number : u;
}

inline Floats EachOf(Floats x, float (*function)(float)) {
  for (int i = 0; i < kLanes; ++i) x[i] = function(x[i]);
  return x;
}

// ---- loops ----

// `count` numbers, at most kLanes, that are `stride` apart; zeros behind them.
inline Floats Gather(const float* from, int64_t stride, int64_t count) {
  if (stride == 0) return Constant(*from);
  if (stride == 1 && count == kLanes) return Read<Floats>(from);
  Floats some{};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i * stride];
  return some;
}

inline void Scatter(Floats some, float* to, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) return Write(some, to);
  for (int64_t i = 0; i < count; ++i) to[i * stride] = some[i];
}

// What an instruction reads and writes in one innermost loop.
struct Lines {
  float* to;
  const float *x, *y, *z;
};

template <typename Function>
void ForEachLine(const Instruction& instruction, float* const* buffers, const Function& function) {
  const auto& sizes = instruction.sizes;
  const auto from = [&](const Place& place, int64_t i, int64_t j, int64_t k) {
    return buffers[place.buffer] + place.first + i * place.strides[0] + j * place.strides[1] + k * place.strides[2];
  };
  for (int64_t i = 0; i < sizes[0]; ++i) {
    for (int64_t j = 0; j < sizes[1]; ++j) {
      for (int64_t k = 0; k < sizes[2]; ++k) {
        function(Lines{from(instruction.to, i, j, k), from(instruction.x, i, j, k), from(instruction.y, i, j, k),
                       from(instruction.z, i, j, k)});
      }
    }
  }
}

// function(x), function(x, y) or function(x, y, z) of vectors, for all numbers.
template <int kSources, typename Function>
void Map(const Instruction& instruction, float* const* buffers, const Function& function) {
  const int64_t count = instruction.sizes[3], to = instruction.to.strides[3], x = instruction.x.strides[3];
  const int64_t y = instruction.y.strides[3], z = instruction.z.strides[3];
  const auto apply = [&](Floats a, Floats b, Floats c) {
    if constexpr (kSources == 1) return function(a);
    if constexpr (kSources == 2) return function(a, b);
    if constexpr (kSources == 3) return function(a, b, c);
  };
  ForEachLine(instruction, buffers, [&](const Lines& line) {
    int64_t i = 0;
    if (kSources < 3 && to == 1 && x == 1 && (kSources == 1 || y == 1)) {
      for (; i + kLanes <= count; i += kLanes) {
        const Floats a = Read<Floats>(line.x + i), b = kSources == 1 ? a : Read<Floats>(line.y + i);
        Write(apply(a, b, b), line.to + i);
      }
    } else if (kSources == 2 && to == 1 && x == 1 && y == 0) {
      const Floats b = Constant(*line.y);
      for (; i + kLanes <= count; i += kLanes) Write(apply(Read<Floats>(line.x + i), b, b), line.to + i);
    }
    for (; i < count; i += kLanes) {
      const int64_t some = std::min<int64_t>(kLanes, count - i);
      const Floats a = Gather(line.x + i * x, x, some), b = kSources > 1 ? Gather(line.y + i * y, y, some) : a;
      Scatter(apply(a, b, kSources > 2 ? Gather(line.z + i * z, z, some) : b), line.to + i * to, to, some);
    }
  });
}

// What `Reduce` does with a few numbers in each of many loops, such as the taps of a convolution: a lane for each loop.
template <typename Function>
void ReduceShort(Instruction instruction, float* const* buffers, float initial, const Function& function) {
  const int64_t loops = instruction.sizes[2], to = instruction.to.strides[2], x = instruction.x.strides[2];
  instruction.sizes[2] = 1;
  ForEachLine(instruction, buffers, [&](const Lines& line) {
    for (int64_t k = 0; k < loops; k += kLanes) {
      const int64_t some = std::min<int64_t>(kLanes, loops - k);
      Floats all = Constant(initial);
      for (int64_t i = 0; i < instruction.sizes[3]; ++i) {
        all = function(all, Gather(line.x + k * x + i * instruction.x.strides[3], x, some));
      }
      Scatter(all, line.to + k * to, to, some);
    }
  });
}

// The numbers of each innermost loop as one, from `initial` on.
template <typename Function>
void Reduce(const Instruction& instruction, float* const* buffers, float initial, const Function& function) {
  const int64_t count = instruction.sizes[3], x = instruction.x.strides[3];
  if (count < kLanes && instruction.sizes[2] >= kLanes) return ReduceShort(instruction, buffers, initial, function);
  ForEachLine(instruction, buffers, [&](const Lines& line) {
    constexpr int kApart = 4;
    Floats parts[kApart];
    for (auto& part : parts) part = Constant(initial);
    int64_t i = 0;
    if (x == 1) {
      for (; i + kApart * kLanes <= count; i += kApart * kLanes) {
#pragma GCC unroll 4
        for (int p = 0; p < kApart; ++p) parts[p] = function(parts[p], Read<Floats>(line.x + i + p * kLanes));
      }
      for (; i + kLanes <= count; i += kLanes) parts[0] = function(parts[0], Read<Floats>(line.x + i));
    }
    Floats all = function(function(parts[0], parts[1]), function(parts[2], parts[3]));
    float lanes[kLanes];
    for (int size = kLanes / 2; size > 0; size /= 2) {
      Write(all, lanes);
      for (int lane = 0; lane < size; ++lane) all[lane] = lanes[lane + size];
      all = function(Read<Floats>(lanes), all);
    }
    for (; i < count; ++i) all = function(all, Constant(line.x[i * x]));
    *line.to = all[0];
  });
}

// Numbers of another kind as floats; they lie as the instruction says, in elements of their own size.
template <typename Element, typename Function>
void Convert(const Instruction& instruction, float* const* buffers, const Function& function) {
  const auto* from = reinterpret_cast<const Element*>(buffers[instruction.x.buffer]);
  float* to = buffers[instruction.to.buffer] + instruction.to.first;
  for (int64_t i = 0; i < instruction.sizes[3]; ++i) to[i] = function(from[i]);
}

void Execute(const Instruction& instruction, float* const* buffers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto map = [&](auto function) { Map<1>(instruction, buffers, function); };
  const auto join = [&](auto function) { Map<2>(instruction, buffers, function); };
  const auto larger = [](Floats a, Floats b) { return a > b || a != a ? a : b; };
  const auto smaller = [](Floats a, Floats b) { return a < b || a != a ? a : b; };
  const auto sum = [](Floats a, Floats b) { return a + b; };
  switch (instruction.operation) {
    case Operation::kCopy: return map([](Floats a) { return a; });
    case Operation::kWiden: return Convert<uint16_t>(instruction, buffers, [](uint16_t w) { return Widen(w); });
    case Operation::kOfBool: return Convert<uint8_t>(instruction, buffers, [](uint8_t b) { return b ? 1.0f : 0.0f; });
    case Operation::kNegative: return map([](Floats a) { return -a; });
    case Operation::kAbsolute: return map([](Floats a) { return a < 0.0f ? -a : a; });
    case Operation::kExp: return map(ExpOfAny);
    case Operation::kLog1p: return map(Log1pOf);
    case Operation::kSqrt: return map([](Floats a) { return EachOf(a, std::sqrt); });
    case Operation::kRsqrt: return map([](Floats a) { return 1.0f / EachOf(a, std::sqrt); });
    case Operation::kTanh: return map(TanhOf);
    case Operation::kSigmoid: return map(SigmoidOf);
    case Operation::kErf: return map(ErfOf);
    case Operation::kAdd: return join(sum);
    case Operation::kSubtract: return join([](Floats a, Floats b) { return a - b; });
    case Operation::kMultiply: return join([](Floats a, Floats b) { return a * b; });
    case Operation::kDivide: return join([](Floats a, Floats b) { return a / b; });
    case Operation::kMaximum: return join(larger);
    case Operation::kMinimum: return join(smaller);
    case Operation::kWhere:
      return Map<3>(instruction, buffers, [](Floats a, Floats b, Floats c) { return a != 0.0f ? b : c; });
    case Operation::kSum: return Reduce(instruction, buffers, 0.0f, sum);
    case Operation::kMax: return Reduce(instruction, buffers, -kInfinity, larger);
    case Operation::kMin: return Reduce(instruction, buffers, kInfinity, smaller);
  }
}

// What instructions make and only they read; kept by each thread from call to call.
float* Scratch(int64_t count) {
  thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < count) kept.resize(count);
  return kept.data();
}

}  // namespace

// `code` is instructions, whose buffers are the scratch memory, `numbers`, the operands and the results.
static ffi::Error Fuse(ffi::RemainingArgs operands, ffi::RemainingRets results, ffi::Span<const int64_t> code,
                       ffi::Span<const float> numbers, int64_t scratch) {
  std::vector<float*> buffers = {Scratch(scratch), const_cast<float*>(numbers.begin())};
  for (size_t i = 0; i < operands.size(); ++i) {
    buffers.push_back(static_cast<float*>(operands.get<ffi::AnyBuffer>(i)->untyped_data()));
  }
  for (size_t i = 0; i < results.size(); ++i) {
    ffi::Result<ffi::AnyBuffer> result = *results.get<ffi::AnyBuffer>(i);
    buffers.push_back(static_cast<float*>(result->untyped_data()));
  }
  const auto* instructions = reinterpret_cast<const Instruction*>(code.begin());
  constexpr size_t kNumbers = sizeof(Instruction) / sizeof(int64_t);
  if (code.size() % kNumbers != 0) return ffi::Error::InvalidArgument("fuse: an instruction is cut off");
  for (size_t i = 0; i < code.size() / kNumbers; ++i) Execute(instructions[i], buffers.data());
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_fuse, Fuse,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("code")
                                  .Attr<ffi::Span<const float>>("numbers")
                                  .Attr<int64_t>("scratch"));
