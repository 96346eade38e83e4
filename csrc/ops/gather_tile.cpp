#include "gather_tile.h"

#include "frame_strip.h"
#include "isa.h"

namespace ps3::ops {

namespace {

/// Columns pass of one strip: positions x of 16 source rows, for the three channels.
PS3_LANES void columns_pass(const GatherPlan& plan, const TileAxis& x, const Ints16* strip, const StripLayout& layout,
                            std::uint8_t* turned, int pitch) {
  for (int p = 0; p < x.num_positions; ++p) {
    const Window window = plan.x.windows[x.base[p]];
    const std::int32_t* weights = &plan.x.weights[static_cast<std::size_t>(x.base[p]) * plan.x.max_count];
    const Ints16* from = strip + (window.first - x.source_first) * layout.pixel_step;
    Ints16 sum0 = Ints16{} + kHalf, sum1 = sum0, sum2 = sum0;
    for (int t = 0; t < window.count; ++t, from += layout.pixel_step) {
      sum0 += from[layout.channel[0]] * weights[t];
      sum1 += from[layout.channel[1]] * weights[t];
      sum2 += from[layout.channel[2]] * weights[t];
    }
    store(turned + 16 * p, narrow(to_byte_range(sum0)));
    store(turned + 16 * (pitch + p), narrow(to_byte_range(sum1)));
    store(turned + 16 * (2 * pitch + p), narrow(to_byte_range(sum2)));
  }
}

/// [position][16 rows] -> [16 rows][pitch]
PS3_LANES void turn_back(const std::uint8_t* turned, int num_positions, int pitch, std::int32_t* columns) {
  for (int p = 0; p < num_positions; p += 16) {
    Bytes16 block[16];
    for (int i = 0; i < 16; ++i) block[i] = load<Bytes16>(turned + 16 * (p + i));
    transpose(block);
    for (int r = 0; r < 16; ++r) store(columns + r * pitch + p, widen(block[r]));
  }
}

/// Rows pass: 16 neighbouring base positions of one base row, as whole numbers 0..255.
PS3_LANES Ints16 rows_pass(const std::int32_t* from, int pitch, const std::int32_t* weights, int count) {
  Ints16 sum = Ints16{} + kHalf;
  for (int t = 0; t < count; ++t) sum += load<Ints16>(from + t * pitch) * weights[t];
  return to_byte_range(sum);
}

/// Stores the first `count` floats of v. Writes whole vectors while they stay inside the patch: later rows overwrite the rest.
template <class Vector>
PS3_LANES void store_inside(float* to, const Vector& v, int count, const float* patch_end) {
  constexpr int kLanes = sizeof(Vector) / sizeof(float);
  if (to + kLanes <= patch_end) {
    store(to, v);
  } else {
    std::memcpy(to, &v, sizeof(float) * static_cast<std::size_t>(count < kLanes ? count : kLanes));
  }
}

struct Channel {
  const std::int32_t* columns;
  float mean, std, scale;
  int index;
};

/// Step 2 is a copy: rows pass, normalise, store.
template <bool kExactScale>
PS3_LANES void write_exact(const GatherJob& job, const Tile& tile, const GatherScratch& s, const Channel& channel) {
  const GatherPlan& plan = *job.plan;
  const int side = plan.patch_px, area = 3 * side * side;
  for (int i = 0; i < tile.num_rows * side; ++i) {
    const int base = s.y.base[s.y.slot[i]];
    const Window window = plan.y.windows[base];
    const std::int32_t* weights = &plan.y.weights[static_cast<std::size_t>(base) * plan.y.max_count];
    const std::int32_t* from = channel.columns + (window.first - s.y.source_first) * s.pitch;
    const std::int32_t* order = &plan.order[tile.first[i / side]];
    for (int j = 0; j < tile.num_cols; ++j) {
      float* patch = job.out + static_cast<std::size_t>(order[j]) * area;
      float* to = patch + (channel.index * side + i % side) * side;
      for (int at = 0; at < side; at += 16) {
        const Floats16 value = to_float(rows_pass(from + j * side + at, s.pitch, weights, window.count));
        store_inside(to + at, normalize_byte<kExactScale>(value, channel.mean, channel.std, channel.scale), side - at, patch + area);
      }
    }
  }
}

/// Step 2 with four taps along each axis: y on whole rows of the tile, then x.
PS3_LANES void write_resampled(const GatherJob& job, const Tile& tile, const GatherScratch& s, const Channel& channel) {
  const GatherPlan& plan = *job.plan;
  const int side = plan.patch_px, area = 3 * side * side, width = (s.x.num_positions + 15) / 16 * 16;
  int ready = 0;  // base rows made so far
  for (int i = 0; i < tile.num_rows * side; ++i) {
    const int slot = s.y.slot[i];
    for (; ready < slot + 4; ++ready) {
      const Window window = plan.y.windows[s.y.base[ready]];
      const std::int32_t* weights = &plan.y.weights[static_cast<std::size_t>(s.y.base[ready]) * plan.y.max_count];
      const std::int32_t* from = channel.columns + (window.first - s.y.source_first) * s.pitch;
      float* to = s.ring + (ready & 3) * s.pitch;
      for (int p = 0; p < width; p += 16) store(to + p, to_float(rows_pass(from + p, s.pitch, weights, window.count)));
    }
    const float* taps = &plan.scale.weights[4 * static_cast<std::size_t>(tile.row * side + i)];
    for (int p = 0; p < width; p += 16) {
      Floats16 sum = load<Floats16>(s.ring + (slot & 3) * s.pitch + p) * taps[0];
      for (int t = 1; t < 4; ++t) sum += load<Floats16>(s.ring + ((slot + t) & 3) * s.pitch + p) * taps[t];
      store(s.row + p, sum);
    }
    const std::int32_t* order = &plan.order[tile.first[i / side]];
    const float* x_taps = &plan.scale.weights[4 * static_cast<std::size_t>(tile.col * side)];
    for (int j = 0; j < tile.num_cols; ++j) {
      float* patch = job.out + static_cast<std::size_t>(order[j]) * area;
      float* to = patch + (channel.index * side + i % side) * side;
      for (int at = 0; at < side; at += 4) {
        Floats4 product[4];
        for (int l = 0; l < 4; ++l) {
          const int k = j * side + at + l;
          product[l] = load<Floats4>(s.row + s.x.slot[k]) * load<Floats4>(x_taps + 4 * k);
        }
        const Floats4 value = sum_each(product[0], product[1], product[2], product[3]);
        store_inside(to + at, normalize_sample(value, channel.mean, channel.scale), side - at, patch + area);
      }
    }
  }
}

PS3_LANES void tile_loop(const GatherJob& job, const Tile& tile, GatherScratch& s) {
  const GatherPlan& plan = *job.plan;
  for (int y = s.y.source_first; y < s.y.source_end; y += 16) {
    const StripLayout layout = load_strip(job.frame, y, s.y.source_end, s.x.source_first, s.x.source_end, s.converted,
                                          s.source_pitch, s.strip);
    columns_pass(plan, s.x, s.strip, layout, s.turned, s.pitch);
    for (int c = 0; c < 3; ++c) {
      turn_back(s.turned + 16 * c * s.pitch, s.x.num_positions, s.pitch,
                s.columns + (static_cast<std::size_t>(c) * s.source_rows + (y - s.y.source_first)) * s.pitch);
    }
  }
  for (int c = 0; c < 3; ++c) {
    const float std = job.normalize.std[c];
    int exponent;
    const bool power_of_two = std::frexp(std, &exponent) == 0.5f;
    const Channel channel{s.columns + static_cast<std::size_t>(c) * s.source_rows * s.pitch, job.normalize.mean[c], std, 1.0f / std, c};
    if (plan.scale.taps == 4) {
      write_resampled(job, tile, s, channel);
    } else if (power_of_two) {
      write_exact<true>(job, tile, s, channel);
    } else {
      write_exact<false>(job, tile, s, channel);
    }
  }
}

PS3_FOR_EACH_ISA(run_tile, (const GatherJob& job, const Tile& tile, GatherScratch& scratch), (job, tile, scratch), tile_loop)

}  // namespace

void GatherScratch::allocate(const GatherJob& job) {
  const GatherPlan& plan = *job.plan;
  const auto round16 = [](int n) { return (n + 15) / 16 * 16; };
  pitch = round16(plan.max_positions) + 16;  // vectors may read and write up to 15 positions past the last
  source_pitch = round16(plan.max_source_cols + 2);
  source_rows = round16(plan.max_source_rows);
  const std::size_t strip_bytes = sizeof(Ints16) * 4 * static_cast<std::size_t>(plan.max_source_cols);
  const std::size_t converted_bytes = std::size_t{3} * 16 * source_pitch;
  const std::size_t turned_bytes = std::size_t{3} * 16 * pitch;
  const std::size_t columns_bytes = std::size_t{3} * 4 * source_rows * pitch;
  memory.assign(strip_bytes + converted_bytes + turned_bytes + columns_bytes + std::size_t{5} * 4 * pitch + 6 * 64, 0);
  std::uint8_t* at = memory.data();
  const auto take = [&](std::size_t bytes) {
    at += (64 - reinterpret_cast<std::uintptr_t>(at) % 64) % 64;
    std::uint8_t* const taken = at;
    at += bytes;
    return taken;
  };
  strip = reinterpret_cast<Ints16*>(take(strip_bytes));
  converted = take(converted_bytes);
  turned = take(turned_bytes);
  columns = reinterpret_cast<std::int32_t*>(take(columns_bytes));
  ring = reinterpret_cast<float*>(take(std::size_t{4} * 4 * pitch));
  row = reinterpret_cast<float*>(take(std::size_t{4} * pitch));
  for (TileAxis* axis : {&x, &y}) {  // so that lay_out() never allocates inside a worker
    axis->base.reserve(static_cast<std::size_t>(plan.max_positions));
    axis->slot.reserve(static_cast<std::size_t>(plan.patch_px) * kMaxTileRows + 3);
  }
}

void gather_tile(const GatherJob& job, const Tile& tile, GatherScratch& scratch) {
  lay_out(*job.plan, job.plan->x, tile.col, tile.num_cols, scratch.x);
  lay_out(*job.plan, job.plan->y, tile.row, tile.num_rows, scratch.y);
  run_tile(job, tile, scratch);
}

}  // namespace ps3::ops
