/// What every function of this library returns: a code, and a message a person can act on.
///
/// Nothing here throws across the library's border and nothing prints. A message has the form
///   [where] what was got; what is needed. What to do.
#pragma once

#include <string>
#include <utility>

namespace ps3 {

enum class Code : int {
  kOk = 0,
  kInvalidArgument = 1,  ///< a shape, size, stride or value breaks the op's contract
  kOutOfRange = 2,       ///< an id or a count lies outside its grid
  kUnsupported = 3,      ///< a known request that this op does not do
  kNoCuda = 4,           ///< a Cuda overload was called in a build without CUDA, or where no driver or fitting GPU is
  kOutOfMemory = 5,
  kInternal = 6,         ///< a defect of this library
};

/// The enumerator's own name, e.g. "kOutOfRange"; never null.
inline const char* code_name(Code code) noexcept {
  switch (code) {
    case Code::kOk: return "kOk";
    case Code::kInvalidArgument: return "kInvalidArgument";
    case Code::kOutOfRange: return "kOutOfRange";
    case Code::kUnsupported: return "kUnsupported";
    case Code::kNoCuda: return "kNoCuda";
    case Code::kOutOfMemory: return "kOutOfMemory";
    case Code::kInternal: return "kInternal";
  }
  return "kInternal";
}

class [[nodiscard]] Status {
 public:
  Status() noexcept = default;  ///< kOk, no message
  Status(Code code, std::string message) noexcept : code_(code), message_(std::move(message)) {}

  bool ok() const noexcept { return code_ == Code::kOk; }
  Code code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

}  // namespace ps3
