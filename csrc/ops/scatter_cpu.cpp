#include "ps3/scatter.h"

#include <algorithm>
#include <new>
#include <vector>

#include "checks.h"
#include "fail.h"
#include "scatter_math.h"

namespace ps3 {

Status scatter(Cpu, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
               Span<float> map) noexcept {
  Status status = ops::check_scatter(tokens, channels, ids.size(), rows, cols, map);
  if (!status.ok()) return status;
  const std::size_t places = static_cast<std::size_t>(rows) * cols;
  status = ops::check_ids("scatter", ids.data(), ids.size(), rows, cols);
  if (!status.ok()) return status;
  try {
    std::vector<char> seen(places, 0);
    for (std::size_t k = 0; k < ids.size(); ++k) {
      if (seen[ids[k]]) return ops::fail(Code::kInvalidArgument, "[scatter] id[%zu] is %d for the second time; needs unique ids. Pass ids from select().", k, ids[k]);
      seen[ids[k]] = 1;
    }
  } catch (...) {
    return ops::fail(Code::kOutOfMemory, "[scatter] no memory to check %zu ids. Free memory.", ids.size());
  }
  std::fill(map.begin(), map.end(), 0.0f);
  for (int c = 0; c < channels; ++c) {
    for (std::size_t k = 0; k < ids.size(); ++k) map[ops::map_index(c, ids[k], static_cast<int>(places))] = tokens[k * channels + c];
  }
  return {};
}

}  // namespace ps3
