// Work that is spread over the threads of XLA's pool.
//
// A thread that has finished looks for more for a while: the kernels of a step follow each other closely. Meanwhile it
// fetches what it will probably read next, which is what was read next the last time: memory would rest otherwise, while
// what lies between two products is computed.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kSmall = 1 << 15;    // multiply-adds below which another thread costs more than it saves
constexpr int64_t kSpins = 2000;       // looks at whether the others are done before giving way
constexpr int64_t kParts = 4;          // parts for each thread: a thread that is late holds up less
constexpr int64_t kManyParts = 16;     // of work that takes long beside handing it out
constexpr int64_t kMostAhead = 1 << 20;  // bytes that a thread fetches ahead at most: the next cache has what one loses
constexpr auto kLinger = std::chrono::microseconds(200);  // that a thread looks for more

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Memory that is read from its beginning to its end; of unknown work, none. What the next thread reads is `apart` bytes on.
struct Range {
  const char* from = nullptr;
  int64_t bytes = 0;
  int64_t apart = 0;
};

// Parts of a piece of work. Each thread has a stretch of them, which it takes one after the other, since memory that
// goes on where it was read is fetched by the machine; then it takes what is left of the others'.
class Task {
 public:
  Task(int64_t parts, int64_t threads, const void* work, void (*run)(const void*, int64_t), Range second)
      : second(second), parts_(parts), threads_(threads), next_(threads), work_(work), run_(run) {
    for (int64_t stretch = 0; stretch < threads_; ++stretch) next_[stretch].store(Start(stretch));
  }

  const Range second;  // what the second thread reads first, by which the task is known, too

  // A thread that comes late finds nothing left and does not touch the work, which may be gone.
  void Drain(int64_t seat) {
    for (int64_t i = 0; i < threads_; ++i) {
      const int64_t stretch = (seat + i) % threads_, end = Start(stretch + 1);
      for (int64_t part = next_[stretch].fetch_add(1); part < end; part = next_[stretch].fetch_add(1)) {
        run_(work_, part);
        done_.fetch_add(1, std::memory_order_release);
      }
    }
  }
  bool IsDone() const { return done_.load(std::memory_order_acquire) == parts_; }

  // Which thread of the task the next one is; 0 is the one that waits for it, and from here on that means none.
  int64_t TakeSeat() {
    const int64_t seat = seats_.fetch_add(1);
    return seat < threads_ ? seat : 0;
  }

 private:
  int64_t Start(int64_t stretch) const { return stretch * parts_ / threads_; }

  const int64_t parts_, threads_;
  std::vector<std::atomic<int64_t>> next_;
  std::atomic<int64_t> done_{0}, seats_{1};
  const void* const work_;
  void (*const run_)(const void*, int64_t);
};

// Where threads that have finished find what is next.
class Board {
 public:
  // The newest task is shown; how many threads are looking.
  int64_t Show(const std::shared_ptr<Task>& task) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      newest_ = task;
      if (task->second.from != nullptr) {
        followers_[Slot(last_)] = {last_, task->second};
        last_ = task->second.from;
      }
    }
    shown_.fetch_add(1);
    return looking_.load();
  }

  // Takes part in the task, then in those that are shown soon behind it, unless `most` others look for them already. Only
  // behind what is known to be read from memory: in a prompt XLA has work for the threads of the pool, too.
  void Help(std::shared_ptr<Task> task, int64_t most) {
    uint64_t seen = shown_.load();
    while (task != nullptr) {
      if (const int64_t seat = task->TakeSeat(); seat > 0) task->Drain(seat);
      const char* const read = task->second.from;
      task = read == nullptr ? nullptr : Await(&seen, most, read);
    }
  }

 private:
  // What is shown next; null if nothing is for a while.
  std::shared_ptr<Task> Await(uint64_t* seen, int64_t most, const char* last) {
    const int64_t others = looking_.fetch_add(1);
    const bool stays = others < most;
    if (stays) Fetch(Follower(last), others, *seen);
    const auto end = std::chrono::steady_clock::now() + kLinger;
    for (int64_t looks = 1; stays && shown_.load() == *seen; ++looks) {
      if (looks % 64 == 0 && std::chrono::steady_clock::now() > end) break;
      if (looks > kSpins) std::this_thread::yield();
      Pause();
    }
    looking_.fetch_sub(1);
    // Who shows a task counts threads behind it, so what it counted on this one for is seen here.
    const uint64_t shown = shown_.load();
    if (shown == *seen) return nullptr;
    *seen = shown;
    const std::lock_guard<std::mutex> lock(mutex_);
    return newest_;
  }

  // Into the nearest cache but one, until something is shown: what each of those who look will begin with.
  void Fetch(Range second, int64_t others, uint64_t seen) {
    constexpr int64_t kStep = 1024, kLine = 64;
    const char* const first = second.from + others * second.apart;
    const char* const end = first + std::min(second.bytes, kMostAhead);
    for (const char* from = first; from < end && shown_.load() == seen; from += kStep) {
      for (int64_t at = 0; at < kStep; at += kLine) __builtin_prefetch(from + at, 0, 2);
    }
  }

  // What followed the last time.
  Range Follower(const char* task) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto& found = followers_[Slot(task)];
    return found.first == task ? found.second : Range{};
  }
  static size_t Slot(const char* task) { return (reinterpret_cast<uintptr_t>(task) >> 6) * 0x9e3779b97f4a7c15u >> 54; }

  std::mutex mutex_;
  std::array<std::pair<const char*, Range>, 1024> followers_{};
  const char* last_ = nullptr;
  std::shared_ptr<Task> newest_;
  std::atomic<uint64_t> shown_{0};
  std::atomic<int64_t> looking_{0};
};

// One for all pools of a process. It is never destroyed: threads may look at it until the end.
inline Board& TheBoard() {
  static Board* const board = new Board;
  return *board;
}

// Runs work(first, last) over [0, count) on the pool and here; returns when all of it is done: only parts that were
// begun are waited for. Where it is known, source(first) is the memory that is read from there on.
template <typename Work, typename Source>
void Spread(ffi::ThreadPool& pool, int64_t count, int64_t operations, const Work& work, int64_t each,
            const Source& source) {
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t parts = std::min(count, operations < kSmall ? 1 : threads * each);
  if (parts <= 1) {
    work(0, count);
    return;
  }
  const auto run = [parts, count, &work](int64_t part) { work(part * count / parts, (part + 1) * count / parts); };
  using Run = decltype(run);
  const int64_t helpers = std::min(threads, parts) - 1;
  const auto read = [&](int64_t part) { return source(part * count / parts); };
  Range second = read(parts / (helpers + 1));
  if (helpers > 1) second.apart = read(2 * parts / (helpers + 1)).from - second.from;
  const auto task = std::make_shared<Task>(parts, helpers + 1, &run, [](const void* all, int64_t part) {
    (*static_cast<Run*>(all))(part);
  }, second);
  Board& board = TheBoard();
  for (int64_t i = board.Show(task); i < helpers; ++i) pool.Schedule([=, &board] { board.Help(task, helpers); });
  task->Drain(0);
  for (int64_t spins = 0; !task->IsDone(); ++spins) {
    if (spins > kSpins) std::this_thread::yield();
    Pause();
  }
}

template <typename Work>
void Spread(ffi::ThreadPool& pool, int64_t count, int64_t operations, const Work& work, int64_t each = kParts) {
  Spread(pool, count, operations, work, each, [](int64_t) { return Range{}; });
}

}  // namespace
