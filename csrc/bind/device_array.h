// DeviceArray: memory of a GPU with shape and dtype, its own or somebody else's, which it keeps alive.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "arrays.h"

namespace ps3::bind {

struct DeviceArray {
  std::uintptr_t at = 0;
  std::string typestr;                // of numpy: "<f4", "<f2", "<i4", "|u1"
  std::vector<py::ssize_t> shape, strides;  // strides in bytes
  int device = 0;
  bool read_only = false;
  bool is_filled = false;     // by work on filled_on, which whoever reads it must come after
  void* filled_on = nullptr;  // a stream
  std::shared_ptr<void> owner;

  std::size_t size() const;
  int item_bytes() const { return typestr.back() - '0'; }
  bool is_packed() const;             // C order
  std::size_t extent_bytes() const;   // from the first byte to the last
  py::dict interface() const;         // __cuda_array_interface__, version 3
  py::capsule dlpack(const py::object& stream) const;  // of a consumer, as DLPack numbers streams
};

/// New memory on the current GPU. dtype: float32, float16, int32 or uint8.
DeviceArray new_device_array(const std::vector<py::ssize_t>& shape, const std::string& typestr);
std::string typestr_of(const std::string& dtype);

/// Whether value says that it lies on a GPU, by __cuda_array_interface__ or __dlpack_device__.
bool is_on_device(const py::handle& value);

/// value as it lies there, never copied; work of its stream comes before work on `stream`. InputError for anything else.
DeviceArray view_device(const py::handle& value, const std::string& lead, void* stream);

void add_device_array(py::module_& module);

}  // namespace ps3::bind
