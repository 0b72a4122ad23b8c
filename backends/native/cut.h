// The smallest of the numbers of a row that stay, where those below are dropped as long as they weigh little: the last
// of the best k of a vocabulary, or of those that have most of the probability.

#pragma once

#include <utility>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Floats in their order as integers with a sign.
inline Ints OrderedAll(Ints bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
inline int32_t Ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

// The elements of a row that may still be the one: their keys, and what each weighs, or nothing where each weighs 1.
template <bool kWeighed>
class Candidates {
 public:
  Candidates(const float* row, const float* weights, int64_t count)
      : count_(count), keys_(count + kLanes), weights_(kWeighed ? count + kLanes : 0) {
    for (int64_t i = 0; i < count; i += kLanes) {
      if (i + kLanes > count) {  // the rest as zeros
        Write(Ints{}, keys_.data() + i);
        std::memcpy(keys_.data() + i, row + i, (count - i) * sizeof(float));
        Write(OrderedAll(Read<Ints>(keys_.data() + i)), keys_.data() + i);
      } else {
        Write(OrderedAll(Read<Ints>(row + i)), keys_.data() + i);
      }
    }
    if constexpr (kWeighed) std::memcpy(weights_.data(), weights, count * sizeof(float));
  }

  int64_t count() const { return count_; }

  // How many have a key below this one, and what they weigh together.
  struct Share {
    int64_t count;
    double weight;
  };
  Share Below(int32_t key) const {
    constexpr int kApart = 4, kStep = kApart * kLanes;
    Floats sums[kApart] = {};
    Ints counts[kApart] = {};
    int64_t i = 0;
    for (; i + kStep <= count_; i += kStep) {
#pragma GCC unroll 4
      for (int p = 0; p < kApart; ++p) {
        const Ints is_below = Read<Ints>(keys_.data() + i + p * kLanes) < key;
        counts[p] -= is_below;
        if constexpr (kWeighed) sums[p] += (Floats)(is_below & Read<Ints>(weights_.data() + i + p * kLanes));
      }
    }
    Share share = {0, 0.0};
    for (int p = 0; p < kApart; ++p) {
      for (int lane = 0; lane < kLanes; ++lane) {
        share.count += counts[p][lane];
        share.weight += sums[p][lane];
      }
    }
    for (; i < count_; ++i) {
      const bool is_below = keys_[i] < key;
      share.count += is_below;
      if constexpr (kWeighed) share.weight += is_below ? weights_[i] : 0.0f;
    }
    if constexpr (!kWeighed) share.weight = static_cast<double>(share.count);
    return share;
  }

  // Forgets those with keys below `first`, or from `end` on.
  void Keep(int64_t first, int64_t end) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t own = keys_[i];
      keys_[kept] = keys_[i];
      if constexpr (kWeighed) weights_[kept] = weights_[i];
      kept += own >= first && own < end;
    }
    count_ = kept;
  }

  // The smallest key and the largest.
  std::pair<int32_t, int32_t> Ends() const {
    int32_t least = keys_[0], most = keys_[0];
    for (int64_t i = 1; i < count_; ++i) {
      least = std::min(least, keys_[i]);
      most = std::max(most, keys_[i]);
    }
    return {least, most};
  }

 private:
  int64_t count_;
  Buffer<int32_t> keys_;
  Buffer<float> weights_;
};

// The largest element of a row such that all smaller ones weigh at most `limit` together: its key is found bit by bit,
// the highest first. Whenever that leaves half of the elements at most, the others are forgotten.
template <bool kWeighed>
float CutRow(const float* row, const float* weights, int64_t count, double limit) {
  Candidates<kWeighed> candidates(row, weights, count);
  const auto [least, most] = candidates.Ends();
  constexpr uint32_t kSign = 1u << 31;
  uint32_t found = 0;          // with the sign turned, so that it counts up
  int64_t end = kSign;         // keys from here on are too large
  double forgotten = 0.0;      // what smaller elements weighed that are forgotten
  typename Candidates<kWeighed>::Share low = {0, 0.0}, high = {count, 0.0};  // below what is found, and below the end
  for (uint32_t bit = kSign; bit != 0 && candidates.count() > 0; bit >>= 1) {
    const auto higher = static_cast<int32_t>((found | bit) ^ kSign);
    const auto share = candidates.Below(higher);
    if (forgotten + share.weight <= limit) {
      found |= bit;
      low = share;
    } else {
      end = higher;
      high = share;
    }
    if (2 * (high.count - low.count) <= candidates.count()) {
      candidates.Keep(static_cast<int32_t>(found ^ kSign), end);
      forgotten += low.weight;
      low = {0, 0.0}, high = {candidates.count(), 0.0};
    }
  }
  const int32_t bits = Ordered(std::clamp(static_cast<int32_t>(found ^ kSign), least, most));
  return Read<float>(&bits);
}

}  // namespace

// x [rows, n]; the weights of its elements [rows, n]; a limit for each row.
static ffi::Error Cut(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> weights, ffi::Buffer<ffi::F32> limits,
                      ffi::ResultBuffer<ffi::F32> least) {
  const int64_t count = x.dimensions().back(), rows = x.element_count() / count;
  for (int64_t row = 0; row < rows; ++row) {
    const float* const from = x.typed_data() + row * count;
    least->typed_data()[row] = CutRow<true>(from, weights.typed_data() + row * count, count, limits.typed_data()[row]);
  }
  return ffi::Error::Success();
}

// The same where each element weighs 1: the limit is how many are smaller.
static ffi::Error Rank(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> limits, ffi::ResultBuffer<ffi::F32> least) {
  const int64_t count = x.dimensions().back(), rows = x.element_count() / count;
  for (int64_t row = 0; row < rows; ++row) {
    const float* const from = x.typed_data() + row * count;
    least->typed_data()[row] = CutRow<false>(from, nullptr, count, limits.typed_data()[row]);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_cut, Cut,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    systolic_rank, Rank,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::Buffer<ffi::F32>>());
