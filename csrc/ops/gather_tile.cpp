#include "gather_tile.h"

#include <algorithm>
#include <type_traits>

#include "frame_strip.h"
#include "isa.h"

namespace ps3::ops {

namespace {

/// Calls body with the number of taps, as a constant where it is a usual one: 4 and 5 for frames up to the base's size, 8 and
/// 9 for twice that.
template <class Body>
PS3_LANES void with_taps(int count, const Body& body) {
  switch (count) {
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 8: return body(std::integral_constant<int, 8>{});
    case 9: return body(std::integral_constant<int, 9>{});
    default: return body(count);
  }
}
#define PS3_BODY __attribute__((always_inline))

/// The weights of one window: kept in registers where their number is a constant.
template <int kLanes, class Count>
struct Weights;
template <int kLanes, int kCount>
struct Weights<kLanes, std::integral_constant<int, kCount>> {
  Ints<kLanes> lanes[kCount];
  PS3_BODY explicit Weights(const std::int32_t* from) {
    for (int t = 0; t < kCount; ++t) lanes[t] = Ints<kLanes>{} + from[t];
  }
  PS3_BODY Ints<kLanes> operator[](int t) const { return lanes[t]; }
};
template <int kLanes>
struct Weights<kLanes, int> {
  const std::int32_t* from;
  PS3_BODY explicit Weights(const std::int32_t* weights) : from(weights) {}
  PS3_BODY std::int32_t operator[](int t) const { return from[t]; }
};

/// Columns pass of one strip: positions x of 16 source rows, for the three channels.
template <int kLanes>
PS3_LANES void columns_pass(const GatherPlan& plan, const TileAxis& x, const std::int32_t* strip, const StripLayout& layout,
                            std::int32_t* turned, int pitch) {
  const long step = 16 * layout.pixel_step, c0 = 16 * layout.channel[0], c1 = 16 * layout.channel[1], c2 = 16 * layout.channel[2];
  std::int32_t *to0 = turned, *to1 = turned + 16 * pitch, *to2 = turned + 32 * pitch;
  const int* const base = x.base.data();
  const int num_positions = x.num_positions, source_first = x.source_first, max_count = plan.x.max_count;
  const Window* const windows = plan.x.windows.data();
  const std::int32_t* const all_weights = plan.x.weights.data();
  for (int p = 0; p < num_positions; ++p, to0 += 16, to1 += 16, to2 += 16) {
    const Window window = windows[base[p]];
    const std::int32_t* weights = all_weights + static_cast<long>(base[p]) * max_count;
    const std::int32_t* from = strip + (window.first - source_first) * step;
    with_taps(window.count, [&](auto count) PS3_BODY {
      for (int group = 0; group < 16; group += kLanes) {
        Ints<kLanes> sum0 = Ints<kLanes>{} + kHalf, sum1 = sum0, sum2 = sum0;
        for (int t = 0; t < count; ++t) {
          const Ints<kLanes> weight = Ints<kLanes>{} + weights[t];
          sum0 += load<Ints<kLanes>>(from + t * step + c0 + group) * weight;
          sum1 += load<Ints<kLanes>>(from + t * step + c1 + group) * weight;
          sum2 += load<Ints<kLanes>>(from + t * step + c2 + group) * weight;
        }
        store(to0 + group, to_byte_range(sum0));
        store(to1 + group, to_byte_range(sum1));
        store(to2 + group, to_byte_range(sum2));
      }
    });
  }
}

/// [position][16 rows] -> [16 rows][pitch]
template <int kLanes>
PS3_LANES void turn_back(const std::int32_t* turned, int num_positions, int pitch, std::int32_t* columns) {
  for (int p = 0; p < num_positions; p += kLanes) {
    for (int r = 0; r < 16; r += kLanes) {
      Ints<kLanes> block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load<Ints<kLanes>>(turned + 16 * (p + i) + r);
      transpose<kLanes>(block);
      for (int i = 0; i < kLanes; ++i) store(columns + (r + i) * pitch + p, block[i]);
    }
  }
}

/// Rows pass: neighbouring positions of one base row, as whole numbers 0..255.
template <int kLanes, class Count>
PS3_LANES Floats<kLanes> rows_pass(const std::int32_t* from, long pitch, const Weights<kLanes, Count>& weights, Count count) {
  Ints<kLanes> sum = Ints<kLanes>{} + kHalf;
  for (int t = 0; t < count; ++t) sum += load<Ints<kLanes>>(from + t * pitch) * weights[t];
  return to_float<kLanes>(to_byte_range(sum));
}

/// What the rows pass needs for one base row.
struct RowTaps {
  const std::int32_t* weights;
  const std::int32_t* from;  // position 0 of its first source row
  int count;
};

struct Channel {
  const std::int32_t* columns;
  float mean, std, scale;
  int index;
};

PS3_LANES RowTaps row_taps(const GatherPlan& plan, const GatherScratch& s, const Channel& channel, int base) {
  const Window window = plan.y.windows[base];
  return {&plan.y.weights[static_cast<std::size_t>(base) * plan.y.max_count],
          channel.columns + static_cast<long>(window.first - s.y.source_first) * s.pitch, window.count};
}

template <class Vector>
PS3_LANES void store_first(float* to, const Vector& v, int count) {
  std::memcpy(to, &v, sizeof(float) * static_cast<std::size_t>(count));
}

/// Step 2 is a copy: rows pass, normalise, store.
template <int kLanes, bool kExactScale>
PS3_LANES void write_exact(const GatherJob& job, const Tile& tile, const GatherScratch& s, const Channel& channel) {
  const GatherPlan& plan = *job.plan;
  const int side = plan.patch_px, area = 3 * side * side, num_cols = tile.num_cols;
  const long pitch = s.pitch;
  const float mean = channel.mean, std = channel.std, scale = channel.scale;
  for (int r = 0; r < tile.num_rows; ++r) {
    float* patches[kMaxTileSide];
    for (int j = 0; j < num_cols; ++j) patches[j] = job.out + static_cast<std::size_t>(plan.order[tile.first[r] + j]) * area;
    for (int y = 0; y < side; ++y) {
      const RowTaps row = row_taps(plan, s, channel, s.y.base[r * side + y]);
      with_taps(row.count, [&](auto count) PS3_BODY {
        const Weights<kLanes, decltype(count)> weights(row.weights);
        for (int at = 0; at < side; at += kLanes) {
          const int begin = (channel.index * side + y) * side + at;
          const std::int32_t* from = row.from + at;
          const auto value = [&](int j) PS3_BODY {
            return normalize_byte<kExactScale>(rows_pass<kLanes>(from + j * side, pitch, weights, count), mean, std, scale);
          };
          if (begin + kLanes <= area) {  // a whole vector stays inside the patch; later rows overwrite what is too much
            for (int j = 0; j < num_cols; ++j) store(patches[j] + begin, value(j));
          } else {
            for (int j = 0; j < num_cols; ++j) store_first(patches[j] + begin, value(j), std::min(side - at, kLanes));
          }
        }
      });
    }
  }
}

/// Step 2 along y: of the four base rows in the ring from `slot` on.
template <int kLanes>
PS3_LANES void blend_rows(const GatherScratch& s, int slot, const float* taps, int width) {
  const float *row0 = s.ring + (slot & 3) * s.pitch, *row1 = s.ring + ((slot + 1) & 3) * s.pitch;
  const float *row2 = s.ring + ((slot + 2) & 3) * s.pitch, *row3 = s.ring + ((slot + 3) & 3) * s.pitch;
  for (int p = 0; p < width; p += kLanes) {
    store(s.row + p, ((load<Floats<kLanes>>(row0 + p) * taps[0] + load<Floats<kLanes>>(row1 + p) * taps[1]) + load<Floats<kLanes>>(row2 + p) * taps[2]) +
                         load<Floats<kLanes>>(row3 + p) * taps[3]);
  }
}

/// Step 2 along x: one row of a patch, of the row that blend_rows made. begin: where in the patch, of `area` values, its row of `side` begins.
PS3_LANES void write_row(const float* made, const int* slots, const float* taps, int side, int area, int begin, const Channel& channel, float* patch) {
  const float mean = channel.mean, scale = channel.scale;
  const auto value = [&](int at) PS3_BODY {
    const float* const taps4 = taps + 4 * at;
    return normalize_sample(sum_each(load<Floats4>(made + slots[at]) * load<Floats4>(taps4), load<Floats4>(made + slots[at + 1]) * load<Floats4>(taps4 + 4),
                                     load<Floats4>(made + slots[at + 2]) * load<Floats4>(taps4 + 8), load<Floats4>(made + slots[at + 3]) * load<Floats4>(taps4 + 12)),
                            mean, scale);
  };
  float* const to = patch + begin;
  int at = 0;  // a vector may pass the row's end while it stays inside the patch; later rows overwrite what is too much
  for (; at < side && begin + at + 4 <= area; at += 4) store(to + at, value(at));
  for (; at < side; at += 4) store_first(to + at, value(at), std::min(side - at, 4));
}

/// Rows of the rider's patches whose last base row is the newest in the ring, from `next` on. Returns the first that is not.
template <int kLanes>
PS3_LANES int write_rider(const GatherJob& job, const Tile& tile, const GatherScratch& s, const Channel& channel, int ready, int next, int width) {
  const Rider& rider = *job.rider;
  const int side = rider.patch_px, area = 3 * side * side, row = tile.row / rider.side, col = tile.col / rider.side;
  const int num_rows = tile.num_rows / rider.side, num_cols = tile.num_cols / rider.side;
  const float* const x_taps = &rider.scale.weights[4 * static_cast<std::size_t>(col * side)];
  for (; next < num_rows * side && s.rider_y[next] + 4 == ready; ++next) {
    blend_rows<kLanes>(s, s.rider_y[next], &rider.scale.weights[4 * static_cast<std::size_t>(row * side + next)], width);
    float* const patch = job.rider_out + (static_cast<std::size_t>(row + next / side) * rider.grid + col) * area;
    for (int j = 0; j < num_cols; ++j) {
      write_row(s.row, s.rider_x.data() + j * side, x_taps + 4 * j * side, side, area, (channel.index * side + next % side) * side, channel, patch + static_cast<std::size_t>(j) * area);
    }
  }
  return next;
}

/// Step 2 with four taps along each axis: y on whole rows of the tile, then x.
template <int kLanes>
PS3_LANES void write_resampled(const GatherJob& job, const Tile& tile, const GatherScratch& s, const Channel& channel) {
  const GatherPlan& plan = *job.plan;
  const int side = plan.patch_px, area = 3 * side * side, width = (s.x.num_positions + 15) / 16 * 16;
  const float* const x_taps = &plan.scale.weights[4 * static_cast<std::size_t>(tile.col * side)];
  const long pitch = s.pitch;
  int ready = 0, ridden = 0;  // base rows made so far; rows of the rider's patches
  for (int i = 0; i < tile.num_rows * side; ++i) {
    const int slot = s.y.slot[i];
    while (ready < slot + 4) {
      const RowTaps row = row_taps(plan, s, channel, s.y.base[ready]);
      float* to = s.ring + (ready & 3) * s.pitch;
      with_taps(row.count, [&](auto count) PS3_BODY {
        const Weights<kLanes, decltype(count)> weights(row.weights);
        for (int p = 0; p < width; p += kLanes) store(to + p, rows_pass<kLanes>(row.from + p, pitch, weights, count));
      });
      ++ready;
      if (job.rider != nullptr) ridden = write_rider<kLanes>(job, tile, s, channel, ready, ridden, width);
    }
    blend_rows<kLanes>(s, slot, &plan.scale.weights[4 * static_cast<std::size_t>(tile.row * side + i)], width);
    const std::int32_t* order = &plan.order[tile.first[i / side]];
    const int begin = (channel.index * side + i % side) * side;
    for (int j = 0; j < tile.num_cols; ++j) {
      write_row(s.row, s.x.slot.data() + j * side, x_taps + 4 * j * side, side, area, begin, channel, job.out + static_cast<std::size_t>(order[j]) * area);
    }
  }
}

template <int kLanes>
PS3_LANES void tile_loop(const GatherJob& job, const Tile& tile, GatherScratch& s) {
  const GatherPlan& plan = *job.plan;
  for (int y = s.y.source_first; y < s.y.source_end; y += 16) {
    const StripLayout layout = load_strip<kLanes>(job.frame, y, s.y.source_end, s.x.source_first, s.x.source_end, s.strip);
    columns_pass<kLanes>(plan, s.x, s.strip, layout, s.turned, s.pitch);
    for (int c = 0; c < 3; ++c) {
      turn_back<kLanes>(s.turned + 16 * c * s.pitch, s.x.num_positions, s.pitch,
                s.columns + (static_cast<std::size_t>(c) * s.source_rows + (y - s.y.source_first)) * s.pitch);
    }
  }
  for (int c = 0; c < 3; ++c) {
    const float std = job.normalize.std[c];
    int exponent;
    const bool power_of_two = std::frexp(std, &exponent) == 0.5f;
    const Channel channel{s.columns + static_cast<std::size_t>(c) * s.source_rows * s.pitch, job.normalize.mean[c], std, 1.0f / std, c};
    if (plan.scale.taps == 4) {
      write_resampled<kLanes>(job, tile, s, channel);
    } else if (power_of_two) {
      write_exact<kLanes, true>(job, tile, s, channel);
    } else {
      write_exact<kLanes, false>(job, tile, s, channel);
    }
  }
}

PS3_FOR_EACH_ISA(run_tile, (const GatherJob& job, const Tile& tile, GatherScratch& scratch), (job, tile, scratch), tile_loop)

}  // namespace

void GatherScratch::allocate(const GatherJob& job) {
  const GatherPlan& plan = *job.plan;
  const auto round16 = [](int n) { return (n + 15) / 16 * 16; };
  pitch = round16(plan.max_positions) + 16;  // vectors may read and write up to 15 positions past the last
  source_rows = round16(plan.max_source_rows);
  const std::size_t strip_bytes = std::size_t{64} * strip_entries(plan.max_source_cols);
  const std::size_t turned_bytes = std::size_t{3} * 4 * 16 * pitch;
  const std::size_t columns_bytes = std::size_t{3} * 4 * source_rows * pitch;
  memory.assign(strip_bytes + turned_bytes + columns_bytes + std::size_t{5} * 4 * pitch + 6 * 64, 0);
  std::uint8_t* at = memory.data();
  const auto take = [&](std::size_t bytes) {
    at += (64 - reinterpret_cast<std::uintptr_t>(at) % 64) % 64;
    std::uint8_t* const taken = at;
    at += bytes;
    return taken;
  };
  strip = reinterpret_cast<std::int32_t*>(take(strip_bytes));
  turned = reinterpret_cast<std::int32_t*>(take(turned_bytes));
  columns = reinterpret_cast<std::int32_t*>(take(columns_bytes));
  ring = reinterpret_cast<float*>(take(std::size_t{4} * 4 * pitch));
  row = reinterpret_cast<float*>(take(std::size_t{4} * pitch));
  for (TileAxis* axis : {&x, &y}) {  // so that lay_out() never allocates inside a worker
    axis->base.reserve(static_cast<std::size_t>(plan.max_positions));
    axis->slot.reserve(static_cast<std::size_t>(plan.patch_px) * kMaxTileSide + 3);
  }
  if (job.rider == nullptr) return;
  for (std::vector<int>* slots : {&rider_x, &rider_y}) slots->resize(static_cast<std::size_t>(job.rider->patch_px) * (kMaxTileSide / job.rider->side) + 3);
}

void gather_tile(const GatherJob& job, const Tile& tile, GatherScratch& scratch) {
  lay_out(*job.plan, job.plan->x, tile.col, tile.num_cols, scratch.x);
  lay_out(*job.plan, job.plan->y, tile.row, tile.num_rows, scratch.y);
  if (job.rider != nullptr) {
    const auto lay = [&](int first, int count, std::vector<int>& slots) {
      const Rider& rider = *job.rider;
      const int begin = first / rider.side * rider.patch_px, num = count / rider.side * rider.patch_px, base = job.plan->scale.first[first * job.plan->patch_px];
      for (int i = 0; i < num + 3; ++i) slots[i] = rider.scale.first[begin + std::min(i, num - 1)] - base;
    };
    lay(tile.col, tile.num_cols, scratch.rider_x);
    lay(tile.row, tile.num_rows, scratch.rider_y);
  }
  run_tile(job, tile, scratch);
}

}  // namespace ps3::ops
