// C structures to C++ ones, and a Status to a code and a message.
#pragma once

#include <algorithm>
#include <cstring>

#include "fail.h"
#include "ps3/c_api.h"
#include "ps3/ps3.h"

namespace ps3::ops {

inline int answer(const Status& status, char* message, size_t message_bytes) {
  if (!status.ok() && message != nullptr && message_bytes > 0) {
    const size_t length = std::min(status.message().size(), message_bytes - 1);
    std::memcpy(message, status.message().data(), length);
    message[length] = '\0';
  }
  return static_cast<int>(status.code());
}

inline Status null_pointer(const char* where, const char* name) {
  return fail(Code::kInvalidArgument, "[%s] %s is NULL; needs memory. Pass a pointer.", where, name);
}

/// Negative sizes become 0 elements, which the op then refuses by its own message.
inline size_t area(int a, int b) { return a < 0 || b < 0 ? 0 : static_cast<size_t>(a) * static_cast<size_t>(b); }

template <class T>
Span<T> span(T* data, size_t size) {
  return {data, data == nullptr ? 0 : size};
}

inline FrameView frame_view(const ps3_frame& frame) {
  FrameView view;
  view.format = static_cast<PixelFormat>(frame.format);
  view.height = frame.height;
  view.width = frame.width;
  for (int i = 0; i < 2; ++i) view.plane[i] = {frame.plane[i], frame.stride_bytes[i], frame.size_bytes[i]};
  view.matrix = static_cast<ColorMatrix>(frame.matrix);
  view.full_range = frame.full_range != 0;
  return view;
}

inline Normalize normalize_of(const float mean[3], const float std[3]) {
  Normalize normalize;
  std::copy_n(mean, 3, normalize.mean);
  std::copy_n(std, 3, normalize.std);
  return normalize;
}

inline ScoreView score_view(const ps3_score_view* view, int width) {
  if (view == nullptr) return {};
  return {span(view->features, area(view->grid, view->grid) * area(view->width, 1)), view->grid, view->width,
          span(view->weight, area(view->width, width)), span(view->bias, area(view->width, 1))};
}

inline PositionTable position_table(const ps3_position_table& table, int n) {
  const size_t width = area(table.width, 1), residual = area(n, n) * width;
  return {span(table.values, area(table.grid, table.grid) * width), table.grid, table.width, span(table.residual_f32, residual),
          span(table.residual_f16, residual), table.crop != 0};
}

/// Values of a patch; 0 for sizes that gather() refuses.
inline size_t patch_values(int patch_px) { return patch_px > 1024 ? 0 : 3 * area(patch_px, patch_px); }

}  // namespace ps3::ops
