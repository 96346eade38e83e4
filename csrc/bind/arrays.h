// Checked numpy arguments: dtype, rank and order are verified here, sizes by the op itself.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "ps3/ps3.h"

namespace ps3::bind {

namespace py = pybind11;

/// Raises the class that ps3_sdk.errors.STATUS_ERRORS has for the code.
[[noreturn]] inline void raise(Code code, const std::string& message) {
  const py::object classes = py::module_::import("ps3_sdk.errors").attr("STATUS_ERRORS");
  const py::object error = classes[py::str(code_name(code))];
  PyErr_SetString(error.ptr(), message.c_str());
  throw py::error_already_set();
}

inline void raise_if_failed(const Status& status) {
  if (!status.ok()) raise(status.code(), status.message());
}

template <class T>
const char* dtype_name();
template <> inline const char* dtype_name<float>() { return "float32"; }
template <> inline const char* dtype_name<std::int32_t>() { return "int32"; }
template <> inline const char* dtype_name<std::uint8_t>() { return "uint8"; }

/// value as an array of T with `rank` axes in C order, or InputError.
template <class T>
py::array array_of(const py::handle& value, const std::string& where, const std::string& name, int rank, bool writeable = false) {
  const std::string lead = "[" + where + "] " + name;
  if (!py::isinstance<py::array>(value)) {
    raise(Code::kInvalidArgument, lead + " is a " + std::string(py::str(py::type::of(value).attr("__name__"))) + "; needs a numpy array of " +
                                      dtype_name<T>() + ". Pass numpy.asarray(" + name + ", numpy." + dtype_name<T>() + ").");
  }
  const py::array array = py::reinterpret_borrow<py::array>(value);
  if (!py::isinstance<py::array_t<T>>(value)) {
    raise(Code::kInvalidArgument, lead + " is " + std::string(py::str(array.dtype())) + "; needs " + dtype_name<T>() + ". Pass " + name +
                                      ".astype(numpy." + dtype_name<T>() + ").");
  }
  if (array.ndim() != rank) {
    raise(Code::kInvalidArgument, lead + " has shape " + std::string(py::str(value.attr("shape"))) + "; needs " + std::to_string(rank) +
                                      (rank == 1 ? " axis." : " axes.") + " Reshape it.");
  }
  if (!(array.flags() & py::array::c_style)) {
    raise(Code::kInvalidArgument, lead + " is not in C order; needs contiguous rows. Pass numpy.ascontiguousarray(" + name + ").");
  }
  if (writeable && !array.writeable()) {
    raise(Code::kInvalidArgument, lead + " is read-only; it is written to. Pass a copy.");
  }
  return array;
}

template <class T>
Span<const T> span(const py::array& array) {
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

template <class T>
Span<T> writeable_span(py::array& array) {
  return {static_cast<T*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

inline Normalize normalize_of(const py::object& mean, const py::object& std) {
  Normalize normalize;
  const auto three = [](const py::object& from, const char* name, float (&to)[3]) {
    const py::array_t<float> values = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(from);
    if (!values || values.size() != 3) {
      PyErr_Clear();
      raise(Code::kInvalidArgument, std::string("[gather] ") + name + " is " + std::string(py::repr(from)) + "; needs 3 numbers. Pass one per channel.");
    }
    std::copy_n(values.data(), 3, to);
  };
  three(mean, "mean", normalize.mean);
  three(std, "std", normalize.std);
  return normalize;
}

/// g of g*g places.
inline int side_of(py::ssize_t places, const char* name) {
  const int side = static_cast<int>(std::lround(std::sqrt(static_cast<double>(places))));
  if (static_cast<py::ssize_t>(side) * side != places || side == 0) {
    raise(Code::kInvalidArgument, std::string("[score] ") + name + " has " + std::to_string(places) + " rows; needs a square grid. Pass g*g rows.");
  }
  return side;
}

inline py::array_t<float> new_floats(std::initializer_list<py::ssize_t> shape) {
  return py::array_t<float>(std::vector<py::ssize_t>(shape));
}

}  // namespace ps3::bind
