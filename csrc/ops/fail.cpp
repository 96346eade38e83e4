#include "fail.h"

#include <cstdarg>
#include <cstdio>

namespace ps3::ops {

Status fail(Code code, const char* format, ...) noexcept {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  try {
    return Status(code, text);
  } catch (...) {
    return Status(code, {});
  }
}

Status check_ids(const char* where, const int* ids, unsigned long num_ids, int rows, int cols) noexcept {
  const long limit = static_cast<long>(rows) * cols;
  for (unsigned long k = 0; k < num_ids; ++k) {
    if (ids[k] < 0 || ids[k] >= limit) {
      return fail(Code::kOutOfRange, "[%s] id[%lu] is %d; a %dx%d grid has ids 0..%ld. Pass ids from select() of the same scale.",
                  where, k, ids[k], rows, cols, limit - 1);
    }
  }
  return {};
}

}  // namespace ps3::ops
