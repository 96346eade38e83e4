// ps3_sdk._core: the ops over numpy arrays. The headers in include/ps3 say what each op computes.
#include <optional>

#include "cuda.h"
#include "frame.h"

namespace ps3::bind {

namespace {

void check_on_host(const Frame& frame) {
  if (frame.device() < 0) return;
  raise(Code::kInvalidArgument, "[gather] the frame lies on GPU " + std::to_string(frame.device()) + "; needs one in host memory. Call gather of Cuda, or copy the frame to the host.");
}

py::ssize_t row_length(int patch_px) { return patch_px > 0 && patch_px <= 1024 ? py::ssize_t{3} * patch_px * patch_px : 0; }

void check_shape(const py::array& out, py::ssize_t num_ids, int patch_px) {
  if (out.shape(0) == num_ids && out.shape(1) == row_length(patch_px)) return;
  raise(Code::kInvalidArgument, "[gather] out has shape " + std::string(py::str(out.attr("shape"))) + "; needs (" + std::to_string(num_ids) + ", " +
                                    std::to_string(row_length(patch_px)) + "). Pass an array of that shape.");
}

py::array gather_array(const Frame& frame, int base_px, int size_px, int patch_px, const py::object& ids, const py::object& mean,
                       const py::object& std, int num_threads, const py::object& out) {
  check_on_host(frame);
  const py::array id_array = array_of<std::int32_t>(ids, "gather", "ids", 1);
  const Normalize normalize = normalize_of(mean, std);
  const Scale scale{base_px, size_px, patch_px};
  py::array result = out.is_none() ? py::array(new_floats({id_array.size(), row_length(patch_px)})) : array_of<float>(out, "gather", "out", 2, true);
  check_shape(result, id_array.size(), patch_px);
  Status status;
  {
    const Span<const std::int32_t> id_span = span<std::int32_t>(id_array);
    const Span<float> out_span = writeable_span<float>(result);
    const py::gil_scoped_release release;
    status = gather(Cpu{num_threads}, frame.view(), scale, id_span, normalize, out_span);
  }
  raise_if_failed(status);
  return result;
}

void gather_parts(const Frame& frame, int base_px, const std::vector<std::tuple<int, int, py::object, py::object>>& parts, const py::object& mean,
                  const py::object& std, int num_threads) {
  check_on_host(frame);
  const Normalize normalize = normalize_of(mean, std);
  std::vector<py::array> kept;
  std::vector<GatherPart> wanted;
  for (const auto& [size_px, patch_px, id_object, out_object] : parts) {
    const py::array ids = array_of<std::int32_t>(id_object, "gather", "ids", 1);
    py::array out = array_of<float>(out_object, "gather", "out", 2, true);
    check_shape(out, ids.size(), patch_px);
    wanted.push_back({{base_px, size_px, patch_px}, span<std::int32_t>(ids), writeable_span<float>(out), {}});
    kept.insert(kept.end(), {ids, out});
  }
  Status status;
  {
    const py::gil_scoped_release release;
    status = gather(Cpu{num_threads}, frame.view(), wanted, normalize);
  }
  raise_if_failed(status);
}

py::array score_array(const py::object& features, const py::object& view_features, const py::object& prompt, const py::object& view_weight,
                      const py::object& view_bias, int num_threads) {
  const py::array low = array_of<float>(features, "score", "features", 2), query = array_of<float>(prompt, "score", "prompt", 1);
  const int grid = side_of(low.shape(0), "features");
  py::array fine, weight, bias;
  ScoreView view;
  if (!view_features.is_none()) {
    fine = array_of<float>(view_features, "score", "view_features", 2);
    weight = array_of<float>(view_weight, "score", "view_weight", 2);
    bias = array_of<float>(view_bias, "score", "view_bias", 1);
    view = {span<float>(fine), side_of(fine.shape(0), "view_features"), static_cast<int>(fine.shape(1)), span<float>(weight), span<float>(bias)};
  }
  py::array prob = new_floats({grid, grid});
  Status status;
  {
    const Span<const float> low_span = span<float>(low), query_span = span<float>(query);
    const Span<float> prob_span = writeable_span<float>(prob);
    const int width = static_cast<int>(low.shape(1));
    const py::gil_scoped_release release;
    status = score(Cpu{num_threads}, low_span, grid, width, query_span, view, prob_span);
  }
  raise_if_failed(status);
  return prob;
}

py::array select_array(const py::object& prob, int rows, int cols, int count, const py::object& taken) {
  const py::array map = array_of<float>(prob, "select", "prob", 2);
  py::array marks = array_of<std::uint8_t>(taken, "select", "taken", 1, true);
  if (count < 0 || count > marks.size()) {
    raise(Code::kOutOfRange, "[select] count is " + std::to_string(count) + "; needs 0.." + std::to_string(marks.size()) + ". Ask for patches there are.");
  }
  py::array ids = py::array_t<std::int32_t>(count);
  Status status;
  {
    const ProbMap view{span<float>(map), static_cast<int>(map.shape(0)), static_cast<int>(map.shape(1))};
    const Span<std::uint8_t> mark_span = writeable_span<std::uint8_t>(marks);
    const Span<std::int32_t> id_span = writeable_span<std::int32_t>(ids);
    const py::gil_scoped_release release;
    status = select(Cpu{1}, view, rows, cols, mark_span, id_span);
  }
  raise_if_failed(status);
  return ids;
}

std::vector<std::vector<int>> plan_look_lists(const std::vector<int>& capacity, const std::vector<int>& per_look_counts,
                                              std::optional<int> num_looks, std::optional<int> num_tokens, bool all,
                                              std::optional<int> first_scales) {
  const auto given = [](std::optional<int> value) { return value && *value == -1 ? -2 : value.value_or(-1); };  // -1 means not given
  std::vector<std::vector<int>> looks;
  if (first_scales && *first_scales < 1) {
    raise(Code::kInvalidArgument, "[plan_looks] first_scales is " + std::to_string(*first_scales) + "; needs 1 or more. Pass None for all scales.");
  }
  raise_if_failed(plan_looks(capacity, per_look_counts, {given(num_looks), given(num_tokens), all, first_scales.value_or(0)}, looks));
  return looks;
}

std::vector<int> per_look_list(const std::vector<int>& scales_px, int max_select_num) {
  std::vector<int> counts;
  raise_if_failed(per_look(scales_px, max_select_num, counts));
  return counts;
}

py::array position_array(const py::object& table, int g, int n, const py::object& ids, const py::object& residual, bool crop, int num_threads) {
  const py::array values = array_of<float>(table, "position_rows", "table", 2);
  const py::array id_array = array_of<std::int32_t>(ids, "position_rows", "ids", 1);
  PositionTable view{span<float>(values), g, static_cast<int>(values.shape(1)), {}, {}, crop};
  py::array more;
  if (!residual.is_none()) {
    const bool is_half = py::isinstance<py::array>(residual) && py::reinterpret_borrow<py::array>(residual).dtype().equal(py::dtype("=f2"));
    more = is_half ? py::reinterpret_borrow<py::array>(residual) : array_of<float>(residual, "position_rows", "residual", 2);
    if (more.ndim() != 2 || !(more.flags() & py::array::c_style)) {
      raise(Code::kInvalidArgument, "[position_rows] residual has shape " + std::string(py::str(residual.attr("shape"))) +
                                        "; needs (n*n, width) in C order. Pass numpy.ascontiguousarray of it.");
    }
    if (is_half) {
      view.residual_f16 = {static_cast<const std::uint16_t*>(more.data()), static_cast<std::size_t>(more.size())};
    } else {
      view.residual_f32 = span<float>(more);
    }
  }
  py::array out = new_floats({id_array.size(), view.width});
  Status status;
  {
    const Span<const std::int32_t> id_span = span<std::int32_t>(id_array);
    const Span<float> out_span = writeable_span<float>(out);
    const py::gil_scoped_release release;
    status = position_rows(Cpu{num_threads}, view, n, id_span, out_span);
  }
  raise_if_failed(status);
  return out;
}

py::array scatter_array(const py::object& tokens, const py::object& ids, int rows, int cols) {
  const py::array values = array_of<float>(tokens, "scatter", "tokens", 2);
  const py::array id_array = array_of<std::int32_t>(ids, "scatter", "ids", 1);
  if (rows < 1 || cols < 1 || rows > 32768 || cols > 32768) {
    raise(Code::kInvalidArgument, "[scatter] grid is " + std::to_string(rows) + "x" + std::to_string(cols) + "; needs 1..32768 each. Pass the grid of a scale.");
  }
  py::array map = new_floats({values.shape(1), rows, cols});
  Status status;
  {
    const int channels = static_cast<int>(values.shape(1));
    const Span<const float> token_span = span<float>(values);
    const Span<const std::int32_t> id_span = span<std::int32_t>(id_array);
    const Span<float> map_span = writeable_span<float>(map);
    const py::gil_scoped_release release;
    status = scatter(Cpu{1}, token_span, channels, id_span, rows, cols, map_span);
  }
  raise_if_failed(status);
  return map;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The ops of PS3 between its networks, in C++: score, select, gather, position_rows, scatter.";
  add_device_array(module);
  add_frame(module);
  add_cuda(module);
  module.def("gather", &gather_array, py::arg("frame"), py::arg("base_px"), py::arg("size_px"), py::arg("patch_px"), py::arg("ids"),
             py::arg("mean"), py::arg("std"), py::arg("num_threads") = 0, py::arg("out") = py::none(),
             "Cut patches of one scale out of a frame, resampled and normalised -> f32 (K, 3*patch*patch), order (c, y, x).\n"
             "ids int32 (K,), row-major on the scale's grid. Raises InputError.");
  module.def("gather_parts", &gather_parts, py::arg("frame"), py::arg("base_px"), py::arg("parts"), py::arg("mean"), py::arg("std"), py::arg("num_threads") = 0,
             "Patches of several scales as gather() cuts them, into f32 (K, 3*patch*patch) arrays. parts: (size_px, patch_px, ids, out) each.\n"
             "The whole grids of two scales, such as the low-res and the 1512 px input, share work. Raises InputError.");
  module.def("score", &score_array, py::arg("features"), py::arg("view_features"), py::arg("prompt"), py::arg("view_weight"),
             py::arg("view_bias"), py::arg("num_threads") = 0,
             "How much a prompt cares about every place -> prob f32 (g, g) in (0, 1).\n"
             "features f32 (g*g, width), prompt f32 (width,); view_* f32 (v*v, view_width), (view_width, width), (view_width,) or None.");
  module.def("select", &select_array, py::arg("prob"), py::arg("rows"), py::arg("cols"), py::arg("count"), py::arg("taken"),
             "The `count` most probable free patches -> ids int32 ascending; marks them in taken uint8 (rows*cols,).\n"
             "Ties: the lower id wins. Raises InputError; taken is then unchanged.");
  module.def("plan_looks", &plan_look_lists, py::arg("capacity"), py::arg("per_look"), py::arg("num_looks") = py::none(),
             py::arg("num_tokens") = py::none(), py::arg("all") = false, py::arg("first_scales") = py::none(),
             "Patches per look and high-res scale -> list of lists. Exactly one of num_looks, num_tokens, all. Raises InputError.");
  module.def("per_look", &per_look_list, py::arg("scales_px"), py::arg("max_select_num"),
             "Patches one look takes per high-res scale: int(max_select_num * s_i^2 / sum of s_j^2 over the high-res scales).");
  module.def("position_rows", &position_array, py::arg("table"), py::arg("g"), py::arg("n"), py::arg("ids"), py::arg("residual") = py::none(),
             py::arg("crop") = false, py::arg("num_threads") = 0,
             "Position vectors of picked patches -> f32 (K, width): the g x g table resampled to n x n (or cropped), plus the residual row.");
  module.def("scatter", &scatter_array, py::arg("tokens"), py::arg("ids"), py::arg("rows"), py::arg("cols"),
             "Tokens f32 (K, C) to a feature map f32 (C, rows, cols), zeros elsewhere; ids int32 unique. Raises InputError.");
  module.def("version", [] { return version(); }, "Version of the core.");
  module.def("build_info", [] {
    const BuildInfo info = build_info();
    py::dict result;
    result["compiler"] = info.compiler;
    result["cuda"] = info.cuda;
    if (info.cuda) {
      result["cuda_archs"] = info.cuda_archs;
      result["cuda_runtime"] = info.cuda_runtime;
    }
    result["simd"] = info.simd;
    result["threads"] = info.threads;
    return result;
  }, "What the core was built with: dict of compiler, cuda, simd, threads; with kernels also cuda_archs, cuda_runtime.");
}

}  // namespace ps3::bind
