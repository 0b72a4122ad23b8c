// The place of the largest number in each row: the token that is chosen of tens of thousands.

#pragma once

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// The first place of the largest of `count` numbers; as in NumPy, one that is not a number counts as the largest.
inline int32_t PlaceOfLargest(const float* row, int64_t count) {
  constexpr int kApart = 4, kStep = kApart * kLanes;
  Floats parts[kApart];
  for (auto& part : parts) part = Floats{} + row[0];
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
#pragma GCC unroll 4
    for (int p = 0; p < kApart; ++p) {
      const Floats some = Read<Floats>(row + i + p * kLanes);
      parts[p] = parts[p] >= some || parts[p] != parts[p] ? parts[p] : some;
    }
  }
  float largest = row[0];
  const auto take = [&](float value) { largest = largest >= value || largest != largest ? largest : value; };
  for (const auto& part : parts) {
    for (int lane = 0; lane < kLanes; ++lane) take(part[lane]);
  }
  for (; i < count; ++i) take(row[i]);
  const bool is_number = largest == largest;
  const auto is_it = [&](float value) { return is_number ? value == largest : value != value; };
  const Floats wanted = Floats{} + largest;
  int64_t place = 0;
  for (; place + kLanes <= count; place += kLanes) {  // past all vectors without it
    const Floats some = Read<Floats>(row + place);
    const Ints found = is_number ? some == wanted : some != some;
    int32_t any = 0;
    for (int lane = 0; lane < kLanes; ++lane) any |= found[lane];
    if (any != 0) break;
  }
  while (place < count && !is_it(row[place])) ++place;
  return static_cast<int32_t>(place);
}

}  // namespace

static ffi::Error Argmax(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::S32> places) {
  const int64_t count = x.dimensions().back(), rows = x.element_count() / count;
  for (int64_t row = 0; row < rows; ++row) {
    places->typed_data()[row] = PlaceOfLargest(x.typed_data() + row * count, count);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_argmax, Argmax,
                              ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::S32>>());
