// route: rows times the matrices of a stack that indices choose, as in a mixture of experts:
//   y[m] = w[index[m]] . x[m / (M / R)], x [R, k], w [E, n, k] or, turned, [E, k, n], index [M], y [M, n].
//
// The products of one matrix are made together, so that it is read once for all of them. An index outside chooses
// none, and its result is zeros.

#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "multiply.h"
#include "project.h"

namespace {

template <typename W>
ffi::Error RouteKind(ffi::ThreadPool& pool, const ffi::Buffer<ffi::F32>& x, ffi::AnyBuffer w,
                     const ffi::Buffer<ffi::S32>& index, float* y, bool turned) {
  const int64_t count = index.element_count(), rows = x.dimensions()[0], k = x.dimensions()[1];
  const int64_t matrices = w.dimensions()[0], n = w.dimensions()[turned ? 2 : 1];
  const auto* weights = static_cast<const W*>(w.untyped_data());
  const int32_t* chosen = index.typed_data();
  const Form form{k, 1, turned, false};
  std::fill_n(y, count * n, 0.0f);
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  order.erase(std::remove_if(order.begin(), order.end(),
                             [&](int64_t m) { return chosen[m] < 0 || chosen[m] >= matrices; }),
              order.end());
  if (rows == 1) {  // the matrices that one row meets, side by side
    std::vector<Matrix<W>> beside;
    for (int64_t m : order) beside.push_back({weights + chosen[m] * n * k, nullptr, y + m * n, n});
    if (!beside.empty()) ProjectFew<W>(pool, x.typed_data(), 1, k, 1, turned, beside);
    return ffi::Error::Success();
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return chosen[a] < chosen[b]; });
  std::vector<float> from, to;
  for (size_t begin = 0, end; begin < order.size(); begin = end) {
    const int32_t matrix = chosen[order[begin]];
    end = begin;
    while (end < order.size() && chosen[order[end]] == matrix) ++end;
    const int64_t together = end - begin;
    from.resize(together * k), to.resize(together * n);
    for (int64_t i = 0; i < together; ++i) {
      std::copy_n(x.typed_data() + order[begin + i] / (count / rows) * k, k, from.data() + i * k);
    }
    MultiplyRows<W>(pool, from.data(), together, form, {{weights + matrix * n * k, nullptr, to.data(), n}});
    for (int64_t i = 0; i < together; ++i) std::copy_n(to.data() + i * n, n, y + order[begin + i] * n);
  }
  return ffi::Error::Success();
}

}  // namespace

static ffi::Error Route(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::Buffer<ffi::S32> index,
                        ffi::Result<ffi::Buffer<ffi::F32>> y, bool turned) {
  switch (w.element_type()) {
    case ffi::F32: return RouteKind<float>(pool, x, w, index, y->typed_data(), turned);
    case ffi::BF16: return RouteKind<uint16_t>(pool, x, w, index, y->typed_data(), turned);
    default: return ffi::Error::InvalidArgument("route: weights must be f32 or bf16");
  }
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_route, Route,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("turned"));
