#include "ps3/frame.h"

#include "fail.h"
#include "frame_math.h"

namespace ps3 {

namespace {

const char* format_name(PixelFormat format) {
  static const char* const names[] = {"RGB", "BGR", "RGBA", "BGRA", "GRAY", "NV12", "YUYV"};
  return names[static_cast<int>(format)];
}

Status check_plane(const FrameView& frame, int which, int rows, long row_bytes) {
  const Plane& plane = frame.plane[which];
  const char* name = format_name(frame.format);
  if (plane.data == nullptr) {
    return ops::fail(Code::kInvalidArgument, "[frame] %s plane %d is null; needs %d rows of %ld bytes. Pass its memory.", name,
                     which, rows, row_bytes);
  }
  if (plane.stride_bytes < row_bytes) {
    return ops::fail(Code::kInvalidArgument,
                     "[frame] %s plane %d has row stride %ld; needs at least %ld, the bytes of a row. Pass a copy in row order.",
                     name, which, static_cast<long>(plane.stride_bytes), row_bytes);
  }
  const std::size_t last = static_cast<std::size_t>(row_bytes), stride = static_cast<std::size_t>(plane.stride_bytes);
  if (plane.size_bytes < last || (plane.size_bytes - last) / stride < static_cast<std::size_t>(rows - 1)) {  // a product could wrap
    return ops::fail(Code::kInvalidArgument,
                     "[frame] %s plane %d holds %lu bytes; %d rows of %ld bytes at stride %ld need more. Pass the whole plane.", name, which,
                     static_cast<unsigned long>(plane.size_bytes), rows, row_bytes, static_cast<long>(plane.stride_bytes));
  }
  return {};
}

}  // namespace

Status check(const FrameView& frame) noexcept {
  const int format = static_cast<int>(frame.format);
  if (format < 0 || format > static_cast<int>(PixelFormat::kYUYV)) {
    return ops::fail(Code::kInvalidArgument, "[frame] pixel format %d; needs 0..6. Pass a PixelFormat.", format);
  }
  if (frame.height < 1 || frame.width < 1 || frame.height > 65536 || frame.width > 65536) {
    return ops::fail(Code::kInvalidArgument, "[frame] size is %dx%d (h, w); needs 1..65536 each. Pass a frame that holds pixels.",
                     frame.height, frame.width);
  }
  if (frame.format == PixelFormat::kNV12) {
    if (frame.height % 2 != 0 || frame.width % 2 != 0) {
      return ops::fail(Code::kInvalidArgument, "[frame] NV12 of %dx%d (h, w); needs even height and width. Crop a row or column.",
                       frame.height, frame.width);
    }
    Status luma = check_plane(frame, 0, frame.height, frame.width);
    return luma.ok() ? check_plane(frame, 1, frame.height / 2, frame.width) : luma;
  }
  if (frame.format == PixelFormat::kYUYV && frame.width % 2 != 0) {
    return ops::fail(Code::kInvalidArgument, "[frame] YUYV of width %d; needs an even width. Crop a column.", frame.width);
  }
  return check_plane(frame, 0, frame.height, static_cast<long>(frame.width) * ops::pixel_bytes(frame.format));
}

}  // namespace ps3
