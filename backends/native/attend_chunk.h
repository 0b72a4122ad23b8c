// Attention of a chunk of positions, block by block of slots, as in FlashAttention: scores are never written.
//
// The lanes of a vector are queries. Scores of a block of slots are keys times queries, what is mixed is values,
// turned, times probabilities: both are the tiles of multiply.h. A running maximum and a running sum for each query
// make a softmax of the blocks. A block of which the mask shows nothing to any query is not read.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "multiply.h"
#include "states.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr int kSlots = 4 * kRows;  // in a block

// How many slots of each block a position sees: [lines of the mask][blocks].
inline std::vector<uint8_t> CountSeen(const uint8_t* mask, int64_t lines, int64_t slots) {
  const int64_t blocks = (slots + kSlots - 1) / kSlots;
  std::vector<uint8_t> seen(lines * blocks);
  for (int64_t line = 0; line < lines; ++line) {
    for (int64_t block = 0; block < blocks; ++block) {
      const uint8_t* from = mask + line * slots + block * kSlots;
      const int64_t size = std::min<int64_t>(kSlots, slots - block * kSlots);
      uint8_t count = 0;
      for (int64_t i = 0; i < size; ++i) count += from[i];
      seen[line * blocks + block] = count;
    }
  }
  return seen;
}

// Up to kPanel queries of one head that are worked on together, and what they have gathered so far.
class QueryPanel {
 public:
  QueryPanel(const Shape& shape)
      : s_(shape), rounded_((shape.value + kRows - 1) / kRows * kRows), queries_(kPanel * shape.key),
        scores_(kSlots * kPanel), mixed_(rounded_ * kPanel), tile_(kRows * std::max<int64_t>(kApart, kSlots)) {}

  // Queries `first` .. first + count of one row and head, of all its positions times its group.
  void Begin(const float* q, int64_t first, int64_t count, float scale) {
    first_ = first, count_ = count;
    std::fill_n(queries_.data(), kPanel * s_.key, 0.0f);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t query = first + lane, position = query / s_.group;
      const float* from = q + (position * s_.heads * s_.group + query % s_.group) * s_.key;
      for (int64_t i = 0; i < s_.key; ++i) queries_[i * kPanel + lane] = from[i] * scale;
    }
    std::fill_n(mixed_.data(), rounded_ * kPanel, 0.0f);
    for (int v = 0; v < 2; ++v) {
      largest_[v] = Floats{} - std::numeric_limits<float>::infinity();
      total_[v] = Floats{};
    }
  }

  // Takes in a block of `size` slots. `mask` is that of the first position at the first slot, null if all is seen.
  template <typename W>
  void Add(Store<W> keys, Store<W> values, int64_t size, const uint8_t* mask, float cap) {
    Score(keys, size);
    if (cap > 0) {
      for (int64_t i = 0; i < size * kPanel; ++i) scores_[i] = cap * std::tanh(scores_[i] / cap);
    }
    if (mask != nullptr) Hide(mask, size);
    Floats shrink[2];
    for (int v = 0; v < 2; ++v) shrink[v] = Normalize(scores_.data() + v * kLanes, size, v);
    for (int64_t i = 0; i < rounded_; ++i) {
      for (int v = 0; v < 2; ++v) {
        float* at = mixed_.data() + i * kPanel + v * kLanes;
        Write(Read<Floats>(at) * shrink[v], at);
      }
    }
    Mix(values, size);
  }

  // Writes what was mixed; zeros for a query that sees nothing, which is padding.
  void End(float* out) const {
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int64_t query = first_ + lane, position = query / s_.group;
      float* to = out + (position * s_.heads * s_.group + query % s_.group) * s_.value;
      const float total = total_[lane / kLanes][lane % kLanes], inverse = total > 0 ? 1 / total : 0;
      for (int64_t i = 0; i < s_.value; ++i) to[i] = mixed_[i * kPanel + lane] * inverse;
    }
  }

 private:
  template <typename W>
  void Score(Store<W> keys, int64_t size) {
    for (int64_t slot = 0; slot < size; slot += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, size - slot);
      for (int64_t at = 0; at < s_.key; at += kSteps) {
        const int64_t steps = std::min(kSteps, s_.key - at);
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t row = slot + std::min(r, rows - 1);
          const float scale = keys.scales == nullptr ? 1.0f : keys.scales[row];
          WidenGroup(keys.numbers + row * s_.key, s_.key, scale, at, steps, tile_.data() + r * kApart);
        }
        MultiplyTile<Single, Floats, 2, false>(tile_.data(), queries_.data() + at * kPanel, steps,
                                               scores_.data() + slot * kPanel, kPanel, at == 0, Ahead{});
      }
    }
  }

  void Hide(const uint8_t* mask, int64_t size) {
    const int64_t start = first_ / s_.group;
    for (int64_t lane = 0; lane < count_; ++lane) {
      const uint8_t* visible = mask + ((first_ + lane) / s_.group - start) * s_.slots;
      for (int64_t slot = 0; slot < size; ++slot) {
        if (!visible[slot]) scores_[slot * kPanel + lane] = -std::numeric_limits<float>::infinity();
      }
    }
  }

  // Scores of one vector of queries to probabilities beside the largest score yet; by what those before shrink.
  Floats Normalize(float* scores, int64_t size, int v) {
    Floats largest = largest_[v];
    for (int64_t slot = 0; slot < size; ++slot) largest = Larger(largest, Read<Floats>(scores + slot * kPanel));
    // A query that has seen nothing yet has no largest score: beside 0, its scores of -inf become nothing.
    const Floats beside = largest > -std::numeric_limits<float>::max() ? largest : Floats{};
    const Floats shrink = Exp(largest_[v] - beside);
    Floats total{};
    for (int64_t slot = 0; slot < size; ++slot) {
      const Floats from = Read<Floats>(scores + slot * kPanel) - beside;
      const Floats seen = from > -std::numeric_limits<float>::max() ? Exp(from) : Floats{};
      Write(seen, scores + slot * kPanel);
      total += seen;
    }
    total_[v] = total_[v] * shrink + total;
    largest_[v] = largest;
    return shrink;
  }

  template <typename W>
  void Mix(Store<W> values, int64_t size) {
    for (int64_t at = 0; at < s_.value; at += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, s_.value - at);
      for (int64_t slot = 0; slot < size; ++slot) {
        const W* from = values.numbers + slot * s_.value + at;
        const float scale = values.scales == nullptr ? 1.0f : values.scales[slot];
        float* to = tile_.data() + slot * kRows;
        if (std::is_same<W, float>::value && rows == kRows) {
          std::memcpy(to, from, kRows * sizeof(float));
        } else {
          for (int64_t r = 0; r < kRows; ++r) to[r] = r < rows ? Widen(from[r]) * scale : 0.0f;
        }
      }
      MultiplyTile<Single, Floats, 2, true>(tile_.data(), scores_.data(), size, mixed_.data() + at * kPanel, kPanel,
                                            false, Ahead{});
    }
  }

  const Shape s_;
  const int64_t rounded_;  // numbers of a value, rounded up to whole tiles
  Buffer<float> queries_, scores_, mixed_, tile_;
  Floats largest_[2], total_[2];
  int64_t first_ = 0, count_ = 0;
};

// The slots of a store from `slot` on.
template <typename W>
Store<W> From(Store<W> store, int64_t slot, int64_t size) {
  return {store.numbers + slot * size, store.scales == nullptr ? nullptr : store.scales + slot};
}

// out[b, p, h, g] of all positions of a chunk; `lines` of the mask are those of one row, or of all rows.
template <typename W>
void AttendChunk(ffi::ThreadPool& pool, const float* q, Store<W> keys, Store<W> values, const uint8_t* mask,
                 int64_t lines, const Shape& s, float scale, float cap, float* out) {
  const std::vector<uint8_t> seen = CountSeen(mask, lines, s.slots);
  const int64_t blocks = (s.slots + kSlots - 1) / kSlots, queries = s.positions * s.group;
  const int64_t panels = (queries + kPanel - 1) / kPanel, count = panels * s.rows * s.heads;
  Spread(pool, count, count * kPanel * s.slots * (s.key + s.value), [&](int64_t first, int64_t last) {
    QueryPanel panel(s);
    for (int64_t item = first; item < last; ++item) {
      const int64_t number = panels - 1 - item / (s.rows * s.heads);  // late positions, which see more, come first
      const int64_t row = item % (s.rows * s.heads) / s.heads, head = item % s.heads, begin = number * kPanel;
      const int64_t size = std::min<int64_t>(kPanel, queries - begin), start = begin / s.group;
      const int64_t positions = (begin + size - 1) / s.group - start + 1;
      const int64_t line = (lines == s.positions ? 0 : row * s.positions) + start;
      const int64_t place = row * s.positions * s.heads * s.group + head * s.group;
      panel.Begin(q + place * s.key, begin, size, scale);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t slot = block * kSlots, length = std::min<int64_t>(kSlots, s.slots - slot);
        int64_t visible = 0;
        for (int64_t p = 0; p < positions; ++p) visible += seen[(line + p) * blocks + block];
        if (visible == 0) continue;
        const int64_t store = (row * s.heads + head) * s.slots + slot;
        const uint8_t* shown = visible == positions * length ? nullptr : mask + line * s.slots + slot;
        panel.Add(From(keys, store, s.key), From(values, store, s.value), length, shown, cap);
      }
      panel.End(out + place * s.value);
    }
  }, kManyParts);
}

}  // namespace
