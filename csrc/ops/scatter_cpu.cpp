#include "ps3/scatter.h"

#include <algorithm>
#include <new>
#include <vector>

#include "fail.h"
#include "scatter_math.h"

namespace ps3 {

Status scatter(Cpu, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
               Span<float> map) noexcept {
  if (channels < 1 || rows < 1 || cols < 1 || rows > 32768 || cols > 32768) {
    return ops::fail(Code::kInvalidArgument, "[scatter] %d channels on a %dx%d grid; needs at least 1 and 1..32768 each. Pass the grid of a scale.",
                     channels, rows, cols);
  }
  const std::size_t places = static_cast<std::size_t>(rows) * cols;
  if (tokens.size() != ids.size() * channels || map.size() != places * channels) {
    return ops::fail(Code::kInvalidArgument, "[scatter] %zu token values for %zu ids and a map of %zu; needs %zu and %zu. Pass arrays of one scale.",
                     tokens.size(), ids.size(), map.size(), ids.size() * channels, places * channels);
  }
  Status status = ops::check_ids("scatter", ids.data(), ids.size(), rows, cols);
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
