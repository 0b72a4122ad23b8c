// Work that is spread over the threads of XLA's pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kSmall = 1 << 15;  // multiply-adds below which another thread costs more than it saves
constexpr int64_t kSpins = 2000;     // looks at whether the others are done before giving way
constexpr int64_t kParts = 4;        // parts for each thread: a thread that is late holds up less
constexpr int64_t kManyParts = 16;   // of work that takes long beside handing it out

struct Progress {
  std::atomic<int64_t> next{0}, done{0};
};

// Runs work(first, last) over [0, count) on the pool and here; returns when all of it is done. A thread of the
// pool that comes late finds nothing left: only parts that were begun are waited for.
template <typename Work>
void Spread(ffi::ThreadPool& pool, int64_t count, int64_t operations, const Work& work, int64_t each = kParts) {
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t parts = std::min(count, operations < kSmall ? 1 : threads * each);
  if (parts <= 1) {
    work(0, count);
    return;
  }
  auto progress = std::make_shared<Progress>();  // outlives this call in threads that come late
  auto drain = [progress, parts, count, &work] {
    for (int64_t part = progress->next.fetch_add(1); part < parts; part = progress->next.fetch_add(1)) {
      work(part * count / parts, (part + 1) * count / parts);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1; i < std::min(threads, parts); ++i) pool.Schedule([drain] { drain(); });
  drain();
  for (int64_t spins = 0; progress->done.load(std::memory_order_acquire) != parts; ++spins) {
    if (spins > kSpins) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace
