// Kernels inside a loop over layers. What differs from layer to layer, weights and states, is given for all of them,
// and an index says whose is meant: nothing is stacked or copied, and the weights may lie in a mapped file.

#pragma once

#include <cstring>
#include <vector>

#include "angles.h"
#include "attend.h"
#include "fuse.h"
#include "multiply.h"
#include "recur.h"
#include "route.h"

namespace {

// The operands of a kernel by their place in a call: an index i32[], how many buffers each operand has, i32[n], and
// these buffers. Of an operand with one buffer, all layers read the same.
template <XLA_FFI_Handler* kernel>
XLA_FFI_Error* CallForLayer(XLA_FFI_CallFrame* frame) {
  if (frame->args.size == 0) return kernel(frame);  // XLA asks what the kernel is
  const auto buffer = [&](int64_t i) { return static_cast<XLA_FFI_Buffer*>(frame->args.args[i]); };
  const int64_t layer = *static_cast<const int32_t*>(buffer(0)->data), operands = buffer(1)->dims[0];
  const auto* counts = static_cast<const int32_t*>(buffer(1)->data);
  std::vector<XLA_FFI_ArgType> types(operands);
  std::vector<void*> chosen(operands);
  int64_t first = 2;
  for (int64_t i = 0; i < operands; first += counts[i++]) {
    const int64_t at = counts[i] == 1 ? first : first + layer;
    types[i] = frame->args.types[at], chosen[i] = frame->args.args[at];
  }
  XLA_FFI_CallFrame own = *frame;
  own.args.size = operands, own.args.types = types.data(), own.args.args = chosen.data();
  return kernel(&own);
}

// The buffer number `at` of a call.
template <typename Buffers>
auto BufferAt(const Buffers& buffers, size_t at) {
  return buffers.template get<ffi::AnyBuffer>(at).value();
}

}  // namespace

#define SYSTOLIC_FOR_LAYER(name)                                                            \
  extern "C" XLA_FFI_Error* systolic_##name##_for_layer(XLA_FFI_CallFrame* frame) {       \
    return CallForLayer<systolic_##name>(frame);                                           \
  }

SYSTOLIC_FOR_LAYER(project)
SYSTOLIC_FOR_LAYER(attend)
SYSTOLIC_FOR_LAYER(attend_scaled)
SYSTOLIC_FOR_LAYER(recur)
SYSTOLIC_FOR_LAYER(select)
SYSTOLIC_FOR_LAYER(advance)
SYSTOLIC_FOR_LAYER(route)
SYSTOLIC_FOR_LAYER(cosine)
SYSTOLIC_FOR_LAYER(sine)
SYSTOLIC_FOR_LAYER(fuse)

// What one layer has of small parameters, each given for all layers, one after the other: a copy of each.
static ffi::Error TakeLayer(ffi::Buffer<ffi::S32> index, ffi::RemainingArgs all, ffi::RemainingRets taken) {
  const size_t layers = all.size() / taken.size(), layer = index.typed_data()[0];
  for (size_t i = 0; i < taken.size(); ++i) {
    const auto from = BufferAt(all, i * layers + layer);
    auto to = taken.get<ffi::AnyBuffer>(i).value();
    std::memcpy(to->untyped_data(), from.untyped_data(), from.size_bytes());
  }
  return ffi::Error::Success();
}

// The states of all layers, of which those of one become `value`. Results lie where the states do.
static ffi::Error PutLayer(ffi::Buffer<ffi::S32> index, ffi::AnyBuffer value, ffi::RemainingArgs, ffi::RemainingRets all) {
  auto to = all.get<ffi::AnyBuffer>(index.typed_data()[0]).value();
  std::memcpy(to->untyped_data(), value.untyped_data(), value.size_bytes());
  return ffi::Error::Success();
}

// The states [rows, outer..., slots, inner...] of all layers, of which those of one get values[row, i] at slot
// at[row, i] of each row, where there is such a slot. Results lie where the states do.
static ffi::Error WriteLayer(ffi::Buffer<ffi::S32> index, ffi::AnyBuffer values, ffi::Buffer<ffi::S32> at,
                             ffi::RemainingArgs, ffi::RemainingRets all, int64_t axis) {
  auto state = all.get<ffi::AnyBuffer>(index.typed_data()[0]).value();
  const auto shape = state->dimensions();
  const int64_t rows = shape[0], slots = shape[axis], count = at.dimensions()[1];
  int64_t outer = 1, bytes = state->size_bytes() / state->element_count();
  for (int64_t i = 1; i < axis; ++i) outer *= shape[i];
  for (size_t i = axis + 1; i < shape.size(); ++i) bytes *= shape[i];
  auto* to = static_cast<char*>(state->untyped_data());
  const auto* from = static_cast<const char*>(values.untyped_data());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = at.typed_data()[row * count + i];
      if (slot < 0 || slot >= slots) continue;
      for (int64_t o = 0; o < outer; ++o) {
        std::memcpy(to + ((row * outer + o) * slots + slot) * bytes, from + ((row * count + i) * outer + o) * bytes,
                    bytes);
      }
    }
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_take_layer, TakeLayer,
                              ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::S32>>().RemainingArgs().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_put_layer, PutLayer,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_write_layer, WriteLayer,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("axis"));
