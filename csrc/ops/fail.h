// Builds a Status whose message is printf-formatted; see status.h for the form of a message.
#pragma once

#include "ps3/status.h"

namespace ps3::ops {

[[nodiscard]] Status fail(Code code, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

/// kOk if every id lies in [0, limit), else kOutOfRange. `where` names the op.
[[nodiscard]] Status check_ids(const char* where, const int* ids, unsigned long num_ids, int rows, int cols) noexcept;

}  // namespace ps3::ops
