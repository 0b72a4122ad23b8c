// recur: h[t] = decay[t] * h[t-1] + inflow[t], or maximum(decay[t] + h[t-1], inflow[t]), element by element.
// select: the recurrence of Mamba, s[t] = exp(step[t] * rate) * s[t-1] + inflow[t] * enter[t], of which only
//   y[t] = leave[t] . s[t] is wanted. No state but the last one leaves the registers and the nearest cache.
// advance: one step of the same, exp(step * rate) * state + inflow * enter.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));

// e^x to about 1e-7 of it; beyond what a float can hold, the largest or the smallest power that it can.
inline Floats ExpAll(Floats x) {
  const Floats high = Floats{} + 88.0f, low = Floats{} - 87.0f;
  x = x > high ? high : x;
  x = x < low ? low : x;
  const Floats nearest = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: what is added rounds to an integer
  const Floats n = nearest - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Integers bits;
  std::memcpy(&bits, &nearest, sizeof(bits));
  bits = (bits + 127) << 23;  // the lower bits of `nearest` are n
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// `count` numbers, up to kLanes, and zeros behind them.
inline Floats ReadSome(const float* from, int64_t count) {
  if (count >= kLanes) return Read<Floats>(from);
  Floats values = {};
  std::memcpy(&values, from, count * sizeof(float));
  return values;
}

inline void WriteSome(float* to, Floats values, int64_t count) {
  std::memcpy(to, &values, std::min<int64_t>(count, kLanes) * sizeof(float));
}

// ---- recur ----

constexpr int64_t kWide = 4;   // vectors side by side, whose sums do not wait for each other
constexpr int64_t kEarly = 8;  // positions that are asked for before they are needed: they lie far apart

struct Line {
  int64_t positions, width;  // of decay and inflow [rows, positions, width]
};

template <bool kMaximum>
inline Floats Next(Floats state, Floats decay, Floats inflow) {
  if constexpr (kMaximum) {
    const Floats kept = decay + state;
    return kept > inflow ? kept : inflow;
  } else {
    return decay * state + inflow;
  }
}

// All positions of up to kWide * kLanes elements that lie side by side.
template <bool kMaximum>
void RecurColumn(const float* decay, const float* inflow, const float* start, float* states, Line line,
                 int64_t count) {
  Floats state[kWide];
  const int64_t parts = (count + kLanes - 1) / kLanes;
  for (int64_t i = 0; i < parts; ++i) state[i] = ReadSome(start + i * kLanes, count - i * kLanes);
  for (int64_t t = 0; t < line.positions; ++t) {
    const int64_t at = t * line.width;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = at + i * kLanes, left = count - i * kLanes;
      __builtin_prefetch(decay + from + kEarly * line.width);
      __builtin_prefetch(inflow + from + kEarly * line.width);
      state[i] = Next<kMaximum>(state[i], ReadSome(decay + from, left), ReadSome(inflow + from, left));
      WriteSome(states + from, state[i], left);
    }
  }
}

// ---- select ----

struct Channels {
  int64_t rows, positions, groups, width, size;  // `width` channels of `size` numbers in each group
};

struct Selection {
  const float *start, *step, *rate, *inflow, *enter, *leave;
  const uint8_t* valid;
  float *end, *y;
};

// kLanes channels of a group, from `channel` on, over all positions of a row; `state` and `rate` have room
// for a vector for each number of a state.
void SelectChannels(const Selection& s, const Channels& c, int64_t row, int64_t group, int64_t channel,
                    Floats* state, Floats* rate) {
  const int64_t lanes = std::min<int64_t>(kLanes, c.width - channel), stride = c.groups * c.width;
  const int64_t first = group * c.width + channel;
  for (int64_t n = 0; n < c.size; ++n) {
    state[n] = rate[n] = Floats{};
    for (int64_t lane = 0; lane < lanes; ++lane) {
      state[n][lane] = s.start[(row * stride + first + lane) * c.size + n];
      rate[n][lane] = s.rate[(first + lane) * c.size + n];
    }
  }
  for (int64_t t = 0; t < c.positions; ++t) {
    const int64_t line = row * c.positions + t, at = line * stride + first;
    const float* enter = s.enter + (line * c.groups + group) * c.size;
    const float* leave = s.leave + (line * c.groups + group) * c.size;
    __builtin_prefetch(s.step + at + kEarly * stride);
    __builtin_prefetch(s.inflow + at + kEarly * stride);
    __builtin_prefetch(s.y + at + kEarly * stride, 1);
    Floats y = {};
    if (s.valid[line]) {
      const Floats step = ReadSome(s.step + at, lanes), inflow = ReadSome(s.inflow + at, lanes);
      for (int64_t n = 0; n < c.size; ++n) {
        state[n] = ExpAll(step * rate[n]) * state[n] + inflow * enter[n];
        y += state[n] * leave[n];
      }
    } else {
      for (int64_t n = 0; n < c.size; ++n) y += state[n] * leave[n];
    }
    WriteSome(s.y + at, y, lanes);
  }
  for (int64_t n = 0; n < c.size; ++n) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      s.end[(row * stride + first + lane) * c.size + n] = state[n][lane];
    }
  }
}

// ---- advance ----

// All numbers of one channel, which lie side by side.
inline void AdvanceChannel(const float* state, float step, const float* rate, float inflow, const float* enter,
                           float* to, int64_t size) {
  for (int64_t n = 0; n < size; n += kLanes) {
    const int64_t left = size - n;
    const Floats decay = ExpAll(ReadSome(rate + n, left) * step);
    WriteSome(to + n, decay * ReadSome(state + n, left) + ReadSome(enter + n, left) * inflow, left);
  }
}

}  // namespace

// ---- what XLA calls ----

static ffi::Error Recur(ffi::ThreadPool pool, ffi::AnyBuffer decay, ffi::AnyBuffer inflow,
                        ffi::AnyBuffer start, ffi::Result<ffi::AnyBuffer> states, bool maximum) {
  const int64_t rows = decay.dimensions()[0], positions = decay.dimensions()[1], width = decay.dimensions()[2];
  const int64_t across = kWide * kLanes, columns = (width + across - 1) / across;
  const float *factor = decay.typed_data<float>(), *term = inflow.typed_data<float>();
  const float* before = start.typed_data<float>();
  float* to = states->typed_data<float>();
  Spread(pool, rows * columns, rows * positions * width, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t row = item / columns, column = item % columns * across;
      const int64_t at = row * positions * width + column, count = std::min(across, width - column);
      const Line line{positions, width};
      if (maximum) {
        RecurColumn<true>(factor + at, term + at, before + row * width + column, to + at, line, count);
      } else {
        RecurColumn<false>(factor + at, term + at, before + row * width + column, to + at, line, count);
      }
    }
  });
  return ffi::Error::Success();
}

static ffi::Error Select(ffi::ThreadPool pool, ffi::AnyBuffer start, ffi::AnyBuffer valid, ffi::AnyBuffer step,
                         ffi::AnyBuffer rate, ffi::AnyBuffer inflow, ffi::AnyBuffer enter, ffi::AnyBuffer leave,
                         ffi::Result<ffi::AnyBuffer> end, ffi::Result<ffi::AnyBuffer> y) {
  const auto d = step.dimensions();  // [rows, positions, groups, width]
  const Channels c{d[0], d[1], d[2], d[3], enter.dimensions()[3]};
  const Selection s{start.typed_data<float>(),  step.typed_data<float>(),  rate.typed_data<float>(),
                    inflow.typed_data<float>(), enter.typed_data<float>(), leave.typed_data<float>(),
                    static_cast<const uint8_t*>(valid.untyped_data()),
                    end->typed_data<float>(),   y->typed_data<float>()};
  const int64_t blocks = (c.width + kLanes - 1) / kLanes;
  const int64_t work = c.rows * c.positions * c.groups * c.width * c.size;
  Spread(pool, c.rows * c.groups * blocks, work, [&](int64_t first, int64_t last) {
    std::vector<Floats> state(c.size), rate(c.size);
    for (int64_t item = first; item < last; ++item) {
      const int64_t block = item % blocks, line = item / blocks;
      SelectChannels(s, c, line / c.groups, line % c.groups, block * kLanes, state.data(), rate.data());
    }
  });
  return ffi::Error::Success();
}

static ffi::Error Advance(ffi::ThreadPool pool, ffi::AnyBuffer state, ffi::AnyBuffer step, ffi::AnyBuffer rate,
                          ffi::AnyBuffer inflow, ffi::AnyBuffer enter, ffi::Result<ffi::AnyBuffer> after) {
  const auto d = state.dimensions();  // [values, groups, width, size]; what enters is [values, groups, size]
  const int64_t channels = d[1] * d[2], width = d[2], size = d[3];
  const float *from = state.typed_data<float>(), *steps = step.typed_data<float>();
  const float *rates = rate.typed_data<float>(), *flow = inflow.typed_data<float>();
  const float* entering = enter.typed_data<float>();
  float* to = after->typed_data<float>();
  Spread(pool, d[0] * channels, d[0] * channels * size, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      AdvanceChannel(from + i * size, steps[i], rates + i % channels * size, flow[i], entering + i / width * size,
                     to + i * size, size);
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_advance, Advance,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_recur, Recur,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("maximum"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_select, Select,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
