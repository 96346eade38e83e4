#include "cuda.h"

#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>

#include "../ops/cuda_memory.h"
#include "device_array.h"
#include "frame.h"

namespace ps3::bind {

namespace {

/// A GPU that is this thread's current one as long as this lives.
class Current {
 public:
  explicit Current(int device) : before_(ops::use_device(device)) {}
  ~Current() {
    if (before_ >= 0) (void)ops::use_device(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int before_;
};

/// One stream's workspace, tables and counts. Calls on one object must not overlap; use one per thread.
class CudaOps {
 public:
  CudaOps(std::uintptr_t stream, int device, int num_threads) : stream_(reinterpret_cast<void*>(stream)), cpu_{num_threads} {
    raise_if_failed(check_cuda());
    device_ = device < 0 ? ops::current_device() : device;
    const Current current(device_);
    if (ops::current_device() != device_) {
      raise(Code::kInvalidArgument, "[cuda] device " + std::to_string(device) + "; CUDA cannot use a GPU of that number here. Check nvidia-smi.");
    }
  }

  DeviceArray empty(const std::vector<py::ssize_t>& shape, const std::string& dtype) const {
    const Current current(device_);
    return mine(new_device_array(shape, typestr_of(dtype)));
  }

  DeviceArray upload(const py::array& array, const py::object& out) {
    const Current current(device_);
    const py::array packed = py::array::ensure(array, py::array::c_style);
    const std::vector<py::ssize_t> shape(packed.shape(), packed.shape() + packed.ndim());
    const DeviceArray to = out_of(out, shape, typestr_of(py::cast<std::string>(packed.dtype().attr("name"))), "upload");
    copy_in(to.at, packed.data(), static_cast<std::size_t>(packed.nbytes()));
    return to;
  }

  py::array download(const py::object& from) {
    const Current current(device_);
    const DeviceArray array = view_device(from, "[cuda] the array", stream_);
    py::array bytes = py::array_t<std::uint8_t>(static_cast<py::ssize_t>(array.extent_bytes()));
    copy_out(bytes.mutable_data(), array.at, array.extent_bytes());
    return py::array(py::dtype(array.typestr), array.shape, array.strides, bytes.mutable_data(), bytes);
  }

  void synchronize() const {
    const Current current(device_);
    Status status;
    {
      const py::gil_scoped_release release;
      status = ops::wait_for(stream_);
    }
    raise_if_failed(status);
  }

  void order_after(std::uintptr_t other) const {
    const Current current(device_);
    raise_if_failed(ops::order_after(stream_, reinterpret_cast<void*>(other)));
  }

  py::dict copies() const {
    py::dict result;
    result["to_device"] = num_in_;
    result["to_device_bytes"] = bytes_in_;
    result["to_host"] = num_out_;
    result["to_host_bytes"] = bytes_out_;
    return result;
  }

  int device() const { return device_; }
  std::uintptr_t stream() const { return reinterpret_cast<std::uintptr_t>(stream_); }

  using Part = std::tuple<int, int, py::object, py::object>;  // size_px, patch_px, ids, out
  std::vector<DeviceArray> gather(const Frame& frame, int base_px, const std::vector<Part>& parts, const py::object& mean, const py::object& std,
                                  const std::string& dtype) {
    const Current current(device_);
    const Normalize normalize = normalize_of(mean, std);
    FrameView view = frame.view();
    DeviceArray staged[2];
    if (frame.device() < 0) stage(view, staged);
    std::vector<GatherPart> wanted;
    std::vector<DeviceArray> ids, outs;
    std::vector<Scale> scales;
    for (const auto& [size_px, patch_px, id_object, out_object] : parts) {
      const Scale scale{base_px, size_px, patch_px};
      scales.push_back(scale);
      ids.push_back(ids_of(id_object, "gather", ids.size()));
      const py::ssize_t row = patch_px > 0 && patch_px <= 1024 ? py::ssize_t{3} * patch_px * patch_px : 0;
      const std::vector<py::ssize_t> shape{ids.back().shape[0], row};
      outs.push_back(out_of(out_object, shape, typestr_of(dtype), "gather", out_object.is_none() ? "" : "<f2"));
      GatherPart part{scale, {reinterpret_cast<const std::int32_t*>(ids.back().at), ids.back().size()}, {}, {}};
      if (outs.back().typestr == "<f2") {
        part.out_f16 = span<std::uint16_t>(outs.back());
      } else {
        part.out = span<float>(outs.back());
      }
      wanted.push_back(part);
    }
    const GatherTables& tables = tables_for(view.height, view.width, scales);
    raise_if_failed(ps3::gather(Cuda{stream_}, view, tables, wanted, normalize));
    return outs;
  }

  DeviceArray score(const py::object& features, const py::object& view_features, const py::object& prompt, const py::object& view_weight,
                    const py::object& view_bias, const py::object& out) {
    const Current current(device_);
    const DeviceArray low = floats(features, "score", "features", 2), query = floats(prompt, "score", "prompt", 1);
    const int grid = side_of(low.shape[0], "features");
    DeviceArray fine, weight, bias;
    ScoreView view;
    if (!view_features.is_none()) {
      fine = floats(view_features, "score", "view_features", 2);
      weight = floats(view_weight, "score", "view_weight", 2);
      bias = floats(view_bias, "score", "view_bias", 1);
      view = {span<const float>(fine), side_of(fine.shape[0], "view_features"), static_cast<int>(fine.shape[1]), span<const float>(weight), span<const float>(bias)};
    }
    const DeviceArray prob = out_of(out, {grid, grid}, "<f4", "score");
    raise_if_failed(ps3::score(cuda(score_workspace_bytes(grid, view)), span<const float>(low), grid, static_cast<int>(low.shape[1]),
                               span<const float>(query), view, span<float>(prob)));
    return prob;
  }

  DeviceArray select(const py::object& prob, int rows, int cols, int count, const py::object& taken, const py::object& out) {
    const Current current(device_);
    const DeviceArray map = floats(prob, "select", "prob", 2), marks = typed(taken, "|u1", "select", "taken", 1);
    if (count < 0) raise(Code::kOutOfRange, "[select] count is " + std::to_string(count) + "; needs 0 or more. Ask for patches there are.");
    const DeviceArray ids = out_of(out, {count}, "<i4", "select");
    const int height = static_cast<int>(map.shape[0]), width = static_cast<int>(map.shape[1]);
    const std::size_t bytes = rows > 0 && cols > 0 && rows <= 32768 && cols <= 32768 && map.size() <= 1u << 20 ? select_workspace_bytes(height, width, rows, cols) : 0;
    raise_if_failed(ps3::select(cuda(bytes), {span<const float>(map), height, width}, rows, cols, span<std::uint8_t>(marks), span<std::int32_t>(ids)));
    return ids;
  }

  DeviceArray position_rows(const py::object& table, int g, int n, const py::object& id_object, const py::object& residual, bool crop, const py::object& out) {
    const Current current(device_);
    const DeviceArray values = floats(table, "position_rows", "table", 2), ids = ids_of(id_object, "position_rows");
    PositionTable view{span<const float>(values), g, static_cast<int>(values.shape[1]), {}, {}, crop};
    DeviceArray more;
    if (!residual.is_none()) {
      more = view_device(residual, "[position_rows] residual", stream_);
      const bool is_half = more.typestr == "<f2";
      more = typed(residual, is_half ? "<f2" : "<f4", "position_rows", "residual", 2);
      if (is_half) {
        view.residual_f16 = span<const std::uint16_t>(more);
      } else {
        view.residual_f32 = span<const float>(more);
      }
    }
    const DeviceArray rows = out_of(out, {ids.shape[0], values.shape[1]}, "<f4", "position_rows");
    const std::size_t bytes = n > 0 && n <= 16384 && g > 0 && g <= 16384 ? position_rows_workspace_bytes(view, n) : 0;
    raise_if_failed(ps3::position_rows(cuda(bytes), view, n, span<const std::int32_t>(ids), span<float>(rows)));
    return rows;
  }

  DeviceArray scatter(const py::object& tokens, const py::object& id_object, int rows, int cols, const py::object& out) {
    const Current current(device_);
    const DeviceArray values = floats(tokens, "scatter", "tokens", 2), ids = ids_of(id_object, "scatter");
    if (rows < 1 || cols < 1 || rows > 32768 || cols > 32768) {
      raise(Code::kInvalidArgument, "[scatter] grid is " + std::to_string(rows) + "x" + std::to_string(cols) + "; needs 1..32768 each. Pass the grid of a scale.");
    }
    const DeviceArray map = out_of(out, {values.shape[1], rows, cols}, "<f4", "scatter");
    raise_if_failed(ps3::scatter(cuda(scatter_workspace_bytes(rows, cols)), span<const float>(values), static_cast<int>(values.shape[1]),
                                 span<const std::int32_t>(ids), rows, cols, span<float>(map)));
    return map;
  }

 private:
  template <class T>
  static Span<T> span(const DeviceArray& array) {
    return {reinterpret_cast<T*>(array.at), array.size()};
  }

  DeviceArray typed(const py::object& value, const std::string& typestr, const std::string& where, const std::string& name, std::size_t rank) const {
    const std::string lead = "[" + where + "] " + name;
    const DeviceArray array = view_device(value, lead, stream_);
    if (array.typestr != typestr) raise(Code::kInvalidArgument, lead + " is of type " + array.typestr + "; needs " + typestr + ". Convert it on the GPU.");
    if (array.shape.size() != rank) raise(Code::kInvalidArgument, lead + " has " + std::to_string(array.shape.size()) + " axes; needs " + std::to_string(rank) + ". Reshape it.");
    if (!array.is_packed()) raise(Code::kInvalidArgument, lead + " is not in C order; needs contiguous rows. Pass a contiguous copy.");
    return array;
  }
  DeviceArray floats(const py::object& value, const std::string& where, const std::string& name, std::size_t rank) const { return typed(value, "<f4", where, name, rank); }

  /// ids on the GPU, or a numpy array that is copied there.
  DeviceArray ids_of(const py::object& value, const std::string& where, std::size_t slot = 0) {
    if (!py::isinstance<py::array>(value)) return typed(value, "<i4", where, "ids", 1);
    const py::array array = array_of<std::int32_t>(value, where, "ids", 1);
    if (slot >= id_memory_.size()) id_memory_.resize(slot + 1);
    DeviceArray& memory = id_memory_[slot];  // kept: freeing it would wait for the GPU
    if (memory.owner == nullptr || memory.extent_bytes() < static_cast<std::size_t>(array.nbytes())) {
      memory = new_device_array({std::max<py::ssize_t>(1, array.size())}, "<i4");
    }
    copy_in(memory.at, array.data(), static_cast<std::size_t>(array.nbytes()));
    DeviceArray ids = memory;
    ids.shape = {array.size()};
    return ids;
  }

  /// or_type: another type that a given out may have.
  DeviceArray out_of(const py::object& out, const std::vector<py::ssize_t>& shape, const std::string& typestr, const std::string& where,
                     const std::string& or_type = "") const {
    if (out.is_none()) return mine(new_device_array(shape, typestr));
    const std::string lead = "[" + where + "] out";
    DeviceArray array = view_device(out, lead, stream_);
    if ((array.typestr != typestr && array.typestr != or_type) || array.shape != shape || !array.is_packed() || array.read_only) {
      raise(Code::kInvalidArgument, lead + " is " + array.typestr + " of shape " + std::string(py::str(py::tuple(py::cast(array.shape)))) + (array.read_only ? ", read-only" : "") +
                                        "; needs writeable " + typestr + " of shape " + std::string(py::str(py::tuple(py::cast(shape)))) + " in C order. Pass such an array.");
    }
    return mine(array);
  }

  /// What this object's stream fills.
  DeviceArray mine(DeviceArray array) const {
    array.filled_on = stream_;
    array.is_filled = true;
    return array;
  }

  /// A workspace of at least that size. It grows seldom; what it replaces is freed after the stream's work.
  Cuda cuda(std::size_t bytes) {
    if (bytes > workspace_bytes_) {
      workspace_ = new_device_array({static_cast<py::ssize_t>(bytes)}, "|u1");
      workspace_bytes_ = bytes;
    }
    return {stream_, reinterpret_cast<void*>(workspace_.at), workspace_bytes_};
  }

  const GatherTables& tables_for(int height, int width, const std::vector<Scale>& scales) {
    std::vector<int> key{height, width};
    for (const Scale& scale : scales) key.insert(key.end(), {scale.base_px, scale.size_px, scale.patch_px});
    const auto found = tables_.find(key);
    if (found != tables_.end()) return found->second.tables;
    std::size_t bytes = 0;
    raise_if_failed(gather_workspace_bytes(height, width, scales, bytes));
    if (tables_.size() >= 16) tables_.clear();  // frames of ever new sizes
    Made made{new_device_array({static_cast<py::ssize_t>(bytes)}, "|u1"), {}};
    raise_if_failed(make_gather_tables(Cuda{stream_, reinterpret_cast<void*>(made.memory.at), bytes}, height, width, scales, made.tables));
    return tables_.emplace(key, made).first->second.tables;
  }

  /// Planes the GPU does not reach are copied to it, in buffers that are kept for the next frame.
  void stage(FrameView& view, DeviceArray (&staged)[2]) {
    for (int i = 0; i < (view.format == PixelFormat::kNV12 ? 2 : 1); ++i) {
      Plane& plane = view.plane[i];
      if (ops::reachable(plane.data)) continue;
      if (staging_[i].owner == nullptr || staging_[i].extent_bytes() < plane.size_bytes) {
        staging_[i] = new_device_array({static_cast<py::ssize_t>(plane.size_bytes)}, "|u1");
      }
      staged[i] = staging_[i];
      copy_in(staged[i].at, plane.data, plane.size_bytes);
      plane.data = reinterpret_cast<const std::uint8_t*>(staged[i].at);
    }
  }

  void copy_in(std::uintptr_t to, const void* from, std::size_t bytes) {
    Status status;
    {
      const py::gil_scoped_release release;
      void* const at = reinterpret_cast<void*>(to);
      const bool pinned = ops::reachable(from);  // from there the GPU reads later, when the caller may have written it anew
      status = bytes >= kFerried && !pinned ? ferry_->carry(at, from, bytes, cpu_, stream_) : ops::copy_memory(at, from, bytes, ops::Copy::kToDevice, stream_);
      if (status.ok() && pinned) status = ops::wait_for(stream_);
    }
    raise_if_failed(status);
    num_in_ += 1;
    bytes_in_ += static_cast<long>(bytes);
  }
  void copy_out(void* to, std::uintptr_t from, std::size_t bytes) {
    Status status;
    {
      const py::gil_scoped_release release;
      status = ops::copy_memory(to, reinterpret_cast<const void*>(from), bytes, ops::Copy::kToHost, stream_);
    }
    raise_if_failed(status);
    num_out_ += 1;
    bytes_out_ += static_cast<long>(bytes);
  }

  struct Made {
    DeviceArray memory;
    GatherTables tables;
  };
  static constexpr std::size_t kFerried = std::size_t{1} << 22;
  void* stream_;
  Cpu cpu_;  // what fills pinned memory
  int device_ = 0;
  std::unique_ptr<ops::Ferry> ferry_ = std::make_unique<ops::Ferry>();
  DeviceArray workspace_, staging_[2];
  std::vector<DeviceArray> id_memory_;
  std::size_t workspace_bytes_ = 0;
  std::map<std::vector<int>, Made> tables_;
  long num_in_ = 0, bytes_in_ = 0, num_out_ = 0, bytes_out_ = 0;
};

}  // namespace

void add_cuda(py::module_& module) {
  const py::object none = py::none();
  py::class_<CudaOps>(module, "Cuda",
                      "The ops on one GPU (device; -1: the current one), on one stream (an address, e.g. torch.cuda.current_stream().cuda_stream).\n"
                      "num_threads copy large host memory, 0: all cores, 8 at most.\n\n"
                      "Arrays are torch, cupy or numba tensors of the GPU, read and written in place, or DeviceArrays; nothing waits for the GPU\n"
                      "but download(), synchronize(), what is copied from pinned memory or from any that the GPU reads itself, and memory that is freed: pass out= in a loop. copies counts every copy between host and GPU this object made. One object per thread.\n"
                      "Raises RuntimeMissingError without kernels, driver or GPU.")
      .def(py::init<std::uintptr_t, int, int>(), py::arg("stream") = 0, py::arg("device") = -1, py::arg("num_threads") = 0)
      .def_property_readonly("device", &CudaOps::device)
      .def_property_readonly("stream", &CudaOps::stream)
      .def_property_readonly("copies", &CudaOps::copies, "dict of to_device, to_device_bytes, to_host, to_host_bytes")
      .def("empty", &CudaOps::empty, py::arg("shape"), py::arg("dtype") = "float32", "A new DeviceArray.")
      .def("upload", &CudaOps::upload, py::arg("array"), py::arg("out") = none, "A numpy array's copy on the GPU -> DeviceArray, out where it is given.")
      .def("download", &CudaOps::download, py::arg("array"), "A copy in host memory -> numpy array, when the stream's work is done.")
      .def("order_after", &CudaOps::order_after, py::arg("stream"), "What is called from now on comes after what is on another stream now.")
      .def("synchronize", &CudaOps::synchronize, "Waits for the stream's work. Raises RuntimeFailedError: some of it failed.")
      .def("gather", &CudaOps::gather, py::arg("frame"), py::arg("base_px"), py::arg("parts"), py::arg("mean"), py::arg("std"), py::arg("dtype") = "float32",
           "Patches of several scales in one launch -> list of DeviceArray (K, 3*patch*patch). parts: (size_px, patch_px, ids, out or None) each; ids int32\n"
           "of the GPU, or numpy (copied); dtype float32 or float16 of new outs. A frame in pageable host memory is copied first, others are read in place:\n"
           "where one was written on another stream than this object's, order_after(that stream) first, 0 for the default one.\n"
           "A patch whose id is out of range is NaN.")
      .def("score", &CudaOps::score, py::arg("features"), py::arg("view_features"), py::arg("prompt"), py::arg("view_weight"), py::arg("view_bias"),
           py::arg("out") = none, "-> prob f32 (g, g), as score() of this module.")
      .def("select", &CudaOps::select, py::arg("prob"), py::arg("rows"), py::arg("cols"), py::arg("count"), py::arg("taken"), py::arg("out") = none,
           "-> ids int32 ascending, as select() of this module; -1 where fewer are free.")
      .def("position_rows", &CudaOps::position_rows, py::arg("table"), py::arg("g"), py::arg("n"), py::arg("ids"), py::arg("residual") = none,
           py::arg("crop") = false, py::arg("out") = none, "-> f32 (K, width), as position_rows() of this module.")
      .def("scatter", &CudaOps::scatter, py::arg("tokens"), py::arg("ids"), py::arg("rows"), py::arg("cols"), py::arg("out") = none,
           "-> f32 (C, rows, cols), as scatter() of this module.");
}

}  // namespace ps3::bind
