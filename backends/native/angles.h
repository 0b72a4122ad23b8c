// Cosines and sines, of the angles by which positions turn queries and keys.
//
// XLA would fuse them into each of their users and compute those of a position again for every layer: in a prompt of
// 512 that took 2.6 ms of a layer's 70. What a kernel has computed is kept.

#pragma once

#include <cmath>

#include "threads.h"

namespace {

enum class Angle { kCosine, kSine };

constexpr int64_t kOperations = 20;  // of one cosine, about

template <Angle kind>
ffi::Error OfAngles(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> angles, ffi::ResultBuffer<ffi::F32> values) {
  const float* from = angles.typed_data();
  float* to = values->typed_data();
  const int64_t count = angles.element_count();
  Spread(pool, count, kOperations * count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) to[i] = kind == Angle::kCosine ? std::cos(from[i]) : std::sin(from[i]);
  });
  return ffi::Error::Success();
}

}  // namespace

#define SYSTOLIC_OF_ANGLES(name, kind)                              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, OfAngles<kind>,               \
                                ffi::Ffi::Bind()                    \
                                    .Ctx<ffi::ThreadPool>()         \
                                    .Arg<ffi::Buffer<ffi::F32>>()   \
                                    .Ret<ffi::Buffer<ffi::F32>>())

SYSTOLIC_OF_ANGLES(systolic_cosine, Angle::kCosine);
SYSTOLIC_OF_ANGLES(systolic_sine, Angle::kSine);
