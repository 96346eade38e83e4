/// gather: cut the picked patches of one scale out of a frame, resampled and normalised. It makes every network input.
///
///   out[k][c][y][x] = (sample(c, r*P + y, q*P + x) / 255 - mean[c]) / std[c],   (r, q) = divmod(ids[k], size_px / P)
///
/// sample() is a pixel of the square size_px picture, which is never made as a whole. It is defined in two steps:
///   1. frame (h, w) -> S x S with S = base_px, 8-bit: Pillow's Image.resize((S, S), BICUBIC), equal to the bit. Per axis,
///      with z = max(in / S, 1) and c = (X + 0.5) * in / S:
///        window   int(c - 2z + 0.5) .. int(c + 2z + 0.5), clipped to the frame
///        weights  cubic((x - c + 0.5) / z), a = -0.5, divided by their sum in double, then rounded to 22-bit fixed point
///        value    clip((2^21 + sum of weight * byte) >> 22)
///      columns first, then rows; each pass rounds to a byte.
///   2. S x S -> size_px x size_px: bicubic, a = -0.75, half-pixel centres, no antialias, clamped at the border, in float:
///      torch.nn.functional.interpolate(mode="bicubic"). A phase of exactly 0 reads one pixel (3780 -> 3780 and -> 756).
/// Step 2 runs on bytes and normalises after; for size_px == base_px and odd integer ratios the result equals
/// torchvision's ToTensor and Normalize to the bit, else it is within 1e-6 of normalised range.
///
/// Shapes: ids i32[K], 0 <= id < (size_px/P)^2, any order, repeats allowed; out f32 [K][3][P][P], the order of a
/// convolution weight (c, y, x). K = 0 is allowed. Ties: none.
/// Memory (Cpu): less than 8 MB beside frame and out for frames up to 8K. Results do not depend on num_threads.
/// Errors: kInvalidArgument (frame, scale, mean/std, size of out), kOutOfRange (an id).
///
/// Cuda: the same values, to the bit. Frame and ids lie in device memory; a patch whose id is out of range is filled with NaN.
/// kUnsupported for frames more than about 15 times base_px.
#pragma once

#include <cstdint>

#include "ps3/device.h"
#include "ps3/frame.h"
#include "ps3/span.h"

namespace ps3 {

/// One scale of the picture pyramid; all sizes in pixels.
struct Scale {
  int base_px = 0;   ///< S: side of the square picture the frame is squashed to (the model's largest scale)
  int size_px = 0;   ///< side of this scale, patch_px <= size_px <= base_px <= 65536, a multiple of patch_px
  int patch_px = 0;  ///< P: side of a patch, 1..1024
};

/// Per channel, red green blue, on values scaled to 0..1.
struct Normalize {
  float mean[3] = {0.5f, 0.5f, 0.5f};
  float std[3] = {0.5f, 0.5f, 0.5f};
};

/// What to gather at one scale: into f32, or into IEEE halves, rounded to nearest even. Exactly one of both.
struct GatherPart {
  Scale scale;
  Span<const std::int32_t> ids;
  Span<float> out;
  Span<std::uint16_t> out_f16;
};

[[nodiscard]] Status gather(Cpu, const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids,
                            const Normalize& normalize, Span<float> out) noexcept;
/// Several parts, f32, of one frame, to the bit what each alone gives. The whole grids of two scales that the base picture is
/// resampled to, such as a model's low-res and 1512 px inputs, share step 1 where patches of the one are a whole number of the other's wide.
[[nodiscard]] Status gather(Cpu, const FrameView& frame, Span<const GatherPart> parts, const Normalize& normalize) noexcept;
/// Makes its tables anew in the workspace (gather_workspace_bytes of this one scale): two launches.
[[nodiscard]] Status gather(Cuda, const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids,
                            const Normalize& normalize, Span<float> out) noexcept;

constexpr int kMaxGatherScales = 8;

/// Windows and weights of one frame size for the scales of a model, in device memory: made once, read by any number of gathers.
struct GatherTables {
  const void* data = nullptr;
  int height = 0, width = 0;  ///< of the frames these tables are for
  int num_scales = 0;
  Scale scales[kMaxGatherScales];
};

/// Bytes of the tables of these scales (1..kMaxGatherScales of one base_px), which are all the workspace gather uses.
[[nodiscard]] Status gather_workspace_bytes(int height, int width, Span<const Scale> scales, std::size_t& bytes) noexcept;

/// Enqueues the making of the tables in cuda.workspace, which belongs to them for as long as they are used.
[[nodiscard]] Status make_gather_tables(Cuda, int height, int width, Span<const Scale> scales, GatherTables& tables) noexcept;

/// All parts (1..kMaxGatherScales, of one output type) in one launch. The workspace is not used.
[[nodiscard]] Status gather(Cuda, const FrameView& frame, const GatherTables& tables, Span<const GatherPart> parts,
                            const Normalize& normalize) noexcept;

}  // namespace ps3
