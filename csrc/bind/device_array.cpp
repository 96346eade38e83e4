#include "device_array.h"

#include <pybind11/stl.h>

#include <utility>

#include "../ops/cuda_memory.h"
#include "dlpack.h"

namespace ps3::bind {

namespace {

constexpr std::pair<const char*, const char*> kTypes[] = {{"float32", "<f4"}, {"float16", "<f2"}, {"int32", "<i4"}, {"uint8", "|u1"}};

std::vector<py::ssize_t> packed_strides(const std::vector<py::ssize_t>& shape, py::ssize_t item) {
  std::vector<py::ssize_t> strides(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0; item *= shape[axis]) strides[axis] = item;
  return strides;
}

void check_type(const std::string& typestr, const std::string& lead) {
  for (const auto& [name, known] : kTypes) {
    if (typestr == known) return;
  }
  raise(Code::kInvalidArgument, lead + " is of type " + typestr + "; needs float32, float16, int32 or uint8. Convert it on the GPU.");
}

DeviceArray of_interface(const py::dict& from, const py::handle& value, const std::string& lead, void* stream) {
  DeviceArray array;
  array.typestr = py::cast<std::string>(from["typestr"]);
  if (array.typestr == "<u1") array.typestr = "|u1";
  check_type(array.typestr, lead);
  array.shape = py::cast<std::vector<py::ssize_t>>(from["shape"]);
  const py::tuple data = from["data"];
  array.at = py::cast<std::uintptr_t>(data[0]);
  array.read_only = py::cast<bool>(data[1]);
  array.strides = from.contains("strides") && !from["strides"].is_none() ? py::cast<std::vector<py::ssize_t>>(from["strides"])
                                                                         : packed_strides(array.shape, array.item_bytes());
  if (from.contains("stream") && !from["stream"].is_none()) {
    const std::uintptr_t theirs = py::cast<std::uintptr_t>(from["stream"]);
    if (theirs != reinterpret_cast<std::uintptr_t>(stream)) raise_if_failed(ops::order_after(stream, reinterpret_cast<void*>(theirs)));
  }
  if (py::hasattr(value, "__dlpack_device__")) {
    array.device = py::cast<int>(py::tuple(value.attr("__dlpack_device__")())[1]);
  } else {
    array.device = ops::current_device();
  }
  auto* kept = new py::object(py::reinterpret_borrow<py::object>(value));
  array.owner = std::shared_ptr<void>(kept, [](void* object) {
    const py::gil_scoped_acquire acquire;
    delete static_cast<py::object*>(object);
  });
  return array;
}

DeviceArray of_dlpack(const py::handle& value, const std::string& lead, void* stream) {
  // 1 names the legacy default stream, which DLPack does not call 0.
  const std::uintptr_t number = stream == nullptr ? 1 : reinterpret_cast<std::uintptr_t>(stream);
  const py::object capsule = value.attr("__dlpack__")(py::arg("stream") = number);
  auto* managed = static_cast<DlManaged*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  DeviceArray array;
  array.owner = std::shared_ptr<void>(managed, [](void* tensor) {
    const py::gil_scoped_acquire acquire;
    auto* const of = static_cast<DlManaged*>(tensor);
    if (of->deleter != nullptr) of->deleter(of);
  });
  const DlTensor& t = managed->tensor;
  if (t.device_type != kDlCuda && t.device_type != kDlCudaHost && t.device_type != kDlCudaManaged) {
    raise(Code::kInvalidArgument, lead + " is on DLPack device " + std::to_string(t.device_type) + "; needs CUDA memory. Copy it to the GPU.");
  }
  const char* const kind = t.code == kDlFloat ? "<f" : (t.code == kDlInt ? "<i" : (t.bits == 8 ? "|u" : "<u"));
  array.typestr = kind + std::to_string(t.bits / 8);
  if (t.code > kDlFloat || t.lanes != 1) array.typestr = "code " + std::to_string(t.code);
  check_type(array.typestr, lead);
  array.at = reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset;
  array.device = t.device_id;
  array.shape.assign(t.shape, t.shape + t.ndim);
  array.strides = packed_strides(array.shape, array.item_bytes());
  for (int i = 0; t.strides != nullptr && i < t.ndim; ++i) array.strides[i] = t.strides[i] * array.item_bytes();
  return array;
}

DeviceArray device_plane(const DeviceArray& of, std::size_t offset, const std::vector<py::ssize_t>& shape, const std::vector<py::ssize_t>& strides) {
  DeviceArray plane = of;
  plane.at += offset;
  plane.shape = shape;
  plane.strides = strides;
  if (shape.size() != strides.size() || offset + plane.extent_bytes() > of.extent_bytes()) {
    raise(Code::kInvalidArgument, "[cuda] a plane at byte " + std::to_string(offset) + " of " + std::to_string(of.extent_bytes()) + "; needs one that lies inside. Pass its place.");
  }
  return plane;
}

struct Exported {
  DlManaged managed;
  DeviceArray array;
  std::vector<std::int64_t> shape, strides;
};

}  // namespace

std::size_t DeviceArray::size() const {
  std::size_t n = 1;
  for (const py::ssize_t side : shape) n *= static_cast<std::size_t>(side);
  return n;
}

bool DeviceArray::is_packed() const {
  const std::vector<py::ssize_t> packed = packed_strides(shape, item_bytes());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] > 1 && strides[i] != packed[i]) return false;
  }
  return true;
}

std::size_t DeviceArray::extent_bytes() const {
  if (size() == 0) return 0;
  std::size_t bytes = static_cast<std::size_t>(item_bytes());
  for (std::size_t i = 0; i < shape.size(); ++i) bytes += static_cast<std::size_t>(shape[i] - 1) * static_cast<std::size_t>(strides[i]);
  return bytes;
}

py::dict DeviceArray::interface() const {
  py::dict result;
  result["shape"] = py::tuple(py::cast(shape));
  result["typestr"] = typestr;
  result["data"] = py::make_tuple(at, read_only);
  result["strides"] = py::tuple(py::cast(strides));
  result["version"] = 3;
  if (is_filled) result["stream"] = filled_on == nullptr ? std::uintptr_t{1} : reinterpret_cast<std::uintptr_t>(filled_on);
  return result;
}

py::capsule DeviceArray::dlpack(const py::object& stream) const {
  const long consumer = stream.is_none() ? 1 : py::cast<long>(stream);  // -1: nobody is to wait; 0 and 1: the default one
  void* const theirs = consumer > 1 ? reinterpret_cast<void*>(consumer) : nullptr;
  if (is_filled && consumer >= 0 && theirs != filled_on) {
    const int before = ops::use_device(device);
    const Status status = ops::order_after(theirs, filled_on);
    if (before >= 0) (void)ops::use_device(before);
    raise_if_failed(status);
  }
  auto* const out = new Exported{{}, *this, {shape.begin(), shape.end()}, {}};
  for (const py::ssize_t stride : strides) out->strides.push_back(stride / item_bytes());
  const bool is_float = typestr[1] == 'f';
  out->managed.tensor = {reinterpret_cast<void*>(at), kDlCuda, device, static_cast<std::int32_t>(shape.size()),
                         is_float ? kDlFloat : (typestr[1] == 'i' ? kDlInt : kDlUInt), static_cast<std::uint8_t>(8 * item_bytes()), 1,
                         out->shape.data(), out->strides.data(), 0};
  out->managed.context = out;
  out->managed.deleter = [](DlManaged* managed) { delete static_cast<Exported*>(managed->context); };
  return py::capsule(&out->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // a consumer has it
    auto* const managed = static_cast<DlManaged*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

std::string typestr_of(const std::string& dtype) {
  for (const auto& [name, typestr] : kTypes) {
    if (dtype == name) return typestr;
  }
  raise(Code::kInvalidArgument, "[cuda] dtype is '" + dtype + "'; needs float32, float16, int32 or uint8. Pass one of them.");
}

DeviceArray new_device_array(const std::vector<py::ssize_t>& shape, const std::string& typestr) {
  DeviceArray array;
  array.typestr = typestr;
  array.shape = shape;
  array.strides = packed_strides(shape, array.item_bytes());
  array.device = ops::current_device();
  for (const py::ssize_t side : shape) {
    if (side < 0) raise(Code::kInvalidArgument, "[cuda] shape has a side of " + std::to_string(side) + "; needs 0 or more. Pass sizes.");
  }
  void* memory = nullptr;
  Status status;
  {
    const py::gil_scoped_release release;
    status = ops::allocate_device(array.size() * static_cast<std::size_t>(array.item_bytes()), memory);
  }
  raise_if_failed(status);
  array.owner = std::shared_ptr<void>(memory, [](void* at) {  // which waits for all that the GPU does
    if (PyGILState_Check() == 0) return ops::free_device(at);
    const py::gil_scoped_release release;
    ops::free_device(at);
  });
  array.at = reinterpret_cast<std::uintptr_t>(memory);
  return array;
}

bool is_on_device(const py::handle& value) {
  if (py::isinstance<DeviceArray>(value)) return true;
  if (py::isinstance<py::array>(value)) return false;
  if (py::hasattr(value, "__dlpack_device__")) {
    try {
      const int type = py::cast<int>(py::tuple(value.attr("__dlpack_device__")())[0]);
      return type == kDlCuda || type == kDlCudaManaged;
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) throw;
      return false;  // a device DLPack has no number for
    }
  }
  return py::hasattr(value, "__cuda_array_interface__");
}

DeviceArray view_device(const py::handle& value, const std::string& lead, void* stream) {
  if (py::isinstance<DeviceArray>(value)) {
    DeviceArray array = py::cast<DeviceArray>(value);
    if (array.is_filled && array.filled_on != stream) raise_if_failed(ops::order_after(stream, array.filled_on));
    return array;
  }
  if (!is_on_device(value)) {
    raise(Code::kInvalidArgument, lead + " is a " + std::string(py::str(py::type::of(value).attr("__name__"))) +
                                      " in host memory; needs GPU memory, by DLPack or __cuda_array_interface__. Pass Cuda.upload of it.");
  }
  if (py::hasattr(value, "__dlpack__")) return of_dlpack(value, lead, stream);
  return of_interface(value.attr("__cuda_array_interface__"), value, lead, stream);
}

void add_device_array(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray",
                          "Memory of a GPU with shape and dtype. torch.from_dlpack, cupy.from_dlpack, torch.as_tensor and numba read it in place.")
      .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape)); })
      .def_property_readonly("strides", [](const DeviceArray& a) { return py::tuple(py::cast(a.strides)); }, "in bytes")
      .def_property_readonly("dtype", [](const DeviceArray& a) { return py::dtype(a.typestr); })
      .def_readonly("device", &DeviceArray::device)
      .def_readonly("data_ptr", &DeviceArray::at)
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::interface)
      .def("plane", &device_plane, py::arg("offset_bytes"), py::arg("shape"), py::arg("strides"), "A part of this memory, strides in bytes.")
      .def("__dlpack__", &DeviceArray::dlpack, py::arg("stream") = py::none())
      .def("__dlpack_device__", [](const DeviceArray& a) { return py::make_tuple(kDlCuda, a.device); });
  module.def("is_on_device", [](const py::object& value) { return is_on_device(value); }, py::arg("value"),
             "Whether value says that it lies on a GPU, by DLPack or __cuda_array_interface__.");
  module.def("view_device", [](const py::object& value, std::uintptr_t stream) { return view_device(value, "[cuda] the array", reinterpret_cast<void*>(stream)); },
             py::arg("value"), py::arg("stream") = 0,
             "A tensor on a GPU as a DeviceArray, in place. Its stream's work comes before work on `stream`. Raises InputError.");
}

}  // namespace ps3::bind
