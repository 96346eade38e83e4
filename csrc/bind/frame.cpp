#include "frame.h"

#include <utility>

namespace ps3::bind {

namespace {

const std::vector<std::string> kFormats = {"RGB", "BGR", "RGBA", "BGRA", "GRAY", "NV12", "YUYV"};

std::string shape_text(int rows, const std::vector<py::ssize_t>& row_shape) {
  std::string text = "(" + std::to_string(rows);
  for (const py::ssize_t size : row_shape) text += ", " + std::to_string(size);
  return text + ")";
}

}  // namespace

Frame::Frame(const std::string& format, const py::list& planes, int height, int width, const std::string& matrix, bool full_range)
    : format_(format) {
  const auto found = std::find(kFormats.begin(), kFormats.end(), format);
  if (found == kFormats.end()) {
    raise(Code::kInvalidArgument, "[frame] format is '" + format + "'; needs RGB, BGR, RGBA, BGRA, GRAY, NV12 or YUYV. Pass one of them.");
  }
  if (matrix != "bt601" && matrix != "bt709") {
    raise(Code::kInvalidArgument, "[frame] matrix is '" + matrix + "'; needs bt601 or bt709. Pass one of them.");
  }
  view_.format = static_cast<PixelFormat>(found - kFormats.begin());
  view_.height = height;
  view_.width = width;
  view_.matrix = matrix == "bt601" ? ColorMatrix::kBT601 : ColorMatrix::kBT709;
  view_.full_range = full_range;
  const bool is_nv12 = view_.format == PixelFormat::kNV12;
  if (planes.size() != (is_nv12 ? 2u : 1u)) {
    raise(Code::kInvalidArgument, "[frame] " + format + " got " + std::to_string(planes.size()) + " planes; needs " + (is_nv12 ? "2" : "1") +
                                      ". Pass a list of them.");
  }
  const py::ssize_t w = width;
  switch (view_.format) {
    case PixelFormat::kRGB:
    case PixelFormat::kBGR: take_plane(0, planes[0], height, {{w, 3}}); break;
    case PixelFormat::kRGBA:
    case PixelFormat::kBGRA: take_plane(0, planes[0], height, {{w, 4}}); break;
    case PixelFormat::kYUYV: take_plane(0, planes[0], height, {{2 * w}, {w, 2}}); break;
    case PixelFormat::kNV12:
      take_plane(0, planes[0], height, {{w}});
      take_plane(1, planes[1], height / 2, {{w}, {w / 2, 2}});
      break;
    case PixelFormat::kGRAY: take_plane(0, planes[0], height, {{w}}); break;
  }
  raise_if_failed(check(view_));
}

void Frame::take_plane(int which, const py::handle& plane, int rows, const std::vector<std::vector<py::ssize_t>>& row_shapes) {
  const std::string lead = "[frame] " + format_ + " plane " + std::to_string(which);
  struct {
    std::uintptr_t at;
    std::vector<py::ssize_t> shape, strides;
  } memory;
  const bool on_device = is_on_device(plane);
  if (which > 0 && on_device != (device_ >= 0)) {
    raise(Code::kInvalidArgument, lead + " lies " + (on_device ? "on a GPU" : "in host memory") + ", plane 0 does not; needs both in one place. Copy one.");
  }
  if (on_device) {
    DeviceArray array = view_device(plane, lead, nullptr);
    if (array.typestr != "|u1") raise(Code::kInvalidArgument, lead + " has dtype code '" + array.typestr + "'; needs uint8. Pass 8-bit pixels.");
    if (which > 0 && array.device != device_) {
      raise(Code::kInvalidArgument, lead + " lies on GPU " + std::to_string(array.device) + ", plane 0 on GPU " + std::to_string(device_) + "; needs one GPU. Move one.");
    }
    device_ = array.device;
    memory = {array.at, array.shape, array.strides};
    device_planes_.push_back(std::move(array));
  } else {
    if (!PyObject_CheckBuffer(plane.ptr())) {
      raise(Code::kInvalidArgument, lead + " is a " + std::string(py::str(py::type::of(plane).attr("__name__"))) +
                                        "; needs a uint8 array. Pass a numpy array.");
    }
    py::buffer_info buffer = py::reinterpret_borrow<py::buffer>(plane).request();
    if (buffer.itemsize != 1 || buffer.format != "B") {
      raise(Code::kInvalidArgument, lead + " has dtype code '" + buffer.format + "'; needs uint8. Pass 8-bit pixels.");
    }
    memory = {reinterpret_cast<std::uintptr_t>(buffer.ptr), buffer.shape, buffer.strides};
    buffers_.push_back(std::move(buffer));
  }
  const auto matches = [&](const std::vector<py::ssize_t>& row) {
    return memory.shape.size() == row.size() + 1 && memory.shape[0] == rows &&
           std::equal(row.begin(), row.end(), memory.shape.begin() + 1);
  };
  if (std::none_of(row_shapes.begin(), row_shapes.end(), matches)) {
    std::string got = "(";
    for (std::size_t i = 0; i < memory.shape.size(); ++i) got += (i ? ", " : "") + std::to_string(memory.shape[i]);
    raise(Code::kInvalidArgument, lead + " has shape " + got + "); a frame of " + std::to_string(view_.height) + "x" +
                                      std::to_string(view_.width) + " (h, w) needs " + shape_text(rows, row_shapes[0]) +
                                      ". Pass the format and size the pixels have.");
  }
  py::ssize_t row_bytes = 1;
  for (std::size_t axis = memory.shape.size() - 1; axis > 0; --axis) {
    if (memory.shape[axis] > 1 && memory.strides[axis] != row_bytes) {
      raise(Code::kInvalidArgument, lead + " has stride " + std::to_string(memory.strides[axis]) + " on axis " + std::to_string(axis) +
                                        "; needs " + std::to_string(row_bytes) + ", packed pixels. Pass numpy.ascontiguousarray of it.");
    }
    row_bytes *= memory.shape[axis];
  }
  Plane& to = view_.plane[which];
  to.data = reinterpret_cast<const std::uint8_t*>(memory.at);
  to.stride_bytes = rows > 1 ? memory.strides[0] : row_bytes;
  to.size_bytes = to.stride_bytes > 0 && rows > 0 ? static_cast<std::size_t>(to.stride_bytes * (rows - 1) + row_bytes) : 0;
}

void add_frame(py::module_& module) {
  py::class_<Frame>(module, "Frame",
                    "A frame of 8-bit pixels in memory that others own; keeps its planes alive.\n\n"
                    "Frame(format, planes, height, width, matrix='bt709', full_range=False)\n"
                    "RGB BGR (h, w, 3), RGBA BGRA (h, w, 4), GRAY (h, w), NV12 [(h, w), (h/2, w)], YUYV (h, 2w); rows may be padded.\n"
                    "Planes are numpy arrays, or all lie on one GPU (DLPack, __cuda_array_interface__).\n"
                    "Raises InputError.")
      .def(py::init<const std::string&, const py::list&, int, int, const std::string&, bool>(), py::arg("format"), py::arg("planes"),
           py::arg("height"), py::arg("width"), py::arg("matrix") = "bt709", py::arg("full_range") = false)
      .def_property_readonly("format", &Frame::format)
      .def_property_readonly("height", [](const Frame& frame) { return frame.view().height; })
      .def_property_readonly("width", [](const Frame& frame) { return frame.view().width; })
      .def_property_readonly("matrix", [](const Frame& frame) { return frame.view().matrix == ColorMatrix::kBT601 ? "bt601" : "bt709"; })
      .def_property_readonly("device", [](const Frame& frame) { return frame.device() < 0 ? std::string("cpu") : "cuda:" + std::to_string(frame.device()); })
      .def_property_readonly("full_range", [](const Frame& frame) { return frame.view().full_range; });
}

}  // namespace ps3::bind
