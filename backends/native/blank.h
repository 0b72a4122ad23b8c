// Zeros that take no memory before they are written: states before the first step, of which few slots are used.

#pragma once

#include <cstdint>
#include <cstring>

#include "xla/ffi/api/ffi.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

namespace ffi = xla::ffi;

// Whole pages are given back to the system, which has zeros for whoever touches them next: that holds for memory of
// this process alone that no file is behind, as all is that an allocator hands out.
ffi::Error Blank(ffi::Result<ffi::AnyBuffer> made) {
  char* from = static_cast<char*>(made->untyped_data());
  char* end = from + made->size_bytes();
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  char* first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(from) + page - 1) / page * page);
  char* last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(end) / page * page);
  if (first < last && madvise(first, last - first, MADV_DONTNEED) == 0) {
    std::memset(from, 0, first - from);
    from = last;
  }
#endif
  std::memset(from, 0, end - from);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(systolic_blank, Blank, ffi::Ffi::Bind().Ret<ffi::AnyBuffer>());

}  // namespace
