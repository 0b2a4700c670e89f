// Errors of the native side: a stable code and a message that names the thing and what was
// expected. They are thrown within core/, cpu/, cuda/ and binding/, and caught at the edge of the
// addon, which hands (code, message) to TypeScript; the classes people see are made in
// lib/errors.ts. The library of cuda/ hands them over its own edge: cuda/loader.cpp has a table of
// its codes.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

namespace unifluid {

// Codes are strings; lib/errors.ts lists them all.
class Error : public std::exception {
 public:
  Error(const char* code, std::string message) : code_(code), message_(std::move(message)) {}
  const char* code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  const char* code_;  // a string literal
  std::string message_;
};

namespace error_code {
inline constexpr char kInsufficientMemory[] = "INSUFFICIENT_MEMORY";
inline constexpr char kInvalidArgument[] = "INVALID_ARGUMENT";
inline constexpr char kInvalidCheckpoint[] = "INVALID_CHECKPOINT";
inline constexpr char kUnsupportedTask[] = "UNSUPPORTED_TASK";
inline constexpr char kQueueFull[] = "QUEUE_FULL";
inline constexpr char kDisposed[] = "DISPOSED";
inline constexpr char kNumerical[] = "NUMERICAL_ERROR";
inline constexpr char kDevice[] = "DEVICE_ERROR";
inline constexpr char kInternal[] = "INTERNAL";
}  // namespace error_code

struct ErrorDescription {
  const char* code;
  const char* message;
};

// What to tell of an error, in its own memory: none is allocated, since that may be what lacks.
inline ErrorDescription describe(const std::exception& error) noexcept {
  if (const auto* known = dynamic_cast<const Error*>(&error)) return {known->code(), known->what()};
  if (dynamic_cast<const std::bad_alloc*>(&error))
    return {error_code::kInsufficientMemory, "the system has no more memory"};
  return {error_code::kInternal, error.what()};
}

// Whether an error says that memory did not suffice.
inline bool lacks_memory(const std::exception& error) {
  return describe(error).code == error_code::kInsufficientMemory;
}

}  // namespace unifluid
