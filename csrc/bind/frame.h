// Frame: a FrameView over Python buffers, which it keeps alive.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "arrays.h"
#include "device_array.h"

namespace ps3::bind {

class Frame {
 public:
  Frame(const std::string& format, const py::list& planes, int height, int width, const std::string& matrix, bool full_range);

  const FrameView& view() const { return view_; }
  const std::string& format() const { return format_; }
  int device() const { return device_; }  ///< the GPU its planes lie on; -1: host memory

 private:
  void take_plane(int which, const py::handle& plane, int rows, const std::vector<std::vector<py::ssize_t>>& row_shapes);

  std::string format_;
  FrameView view_;
  int device_ = -1;
  std::vector<py::buffer_info> buffers_;  // released with the frame, as are these
  std::vector<DeviceArray> device_planes_;
};

void add_frame(py::module_& module);

}  // namespace ps3::bind
