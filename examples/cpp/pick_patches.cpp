// Pick the most probable patches of a frame at three scales and cut them out, as input for a vision network.
//
//   pick_patches [frame.ppm]        a binary PPM (P6); without one, a 3840x2160 frame with a bright square is made
//
// The map of probabilities would come from ps3::score(); here it is how far a place is from the mean gray.
#include <ps3/ps3.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace {

struct Picture {
  int height = 0, width = 0;
  std::vector<std::uint8_t> rgb;
};

Picture made_picture() {
  Picture picture{2160, 3840, std::vector<std::uint8_t>(std::size_t{2160} * 3840 * 3, 90)};
  for (int y = 400; y < 700; ++y) {
    for (int x = 2900; x < 3200; ++x) picture.rgb[(std::size_t{3840} * y + x) * 3] = 255;
  }
  return picture;
}

bool read_ppm(const char* path, Picture& picture) {
  std::ifstream file(path, std::ios::binary);
  std::string magic, line;
  int maximum = 0;
  file >> magic;
  for (int* number : {&picture.width, &picture.height, &maximum}) {
    while ((file >> std::ws).peek() == '#') std::getline(file, line);  // a comment
    file >> *number;
  }
  file.ignore(1);
  if (!file || magic != "P6" || maximum != 255 || picture.width < 1 || picture.height < 1) return false;
  picture.rgb.resize(std::size_t{3} * picture.height * picture.width);
  return static_cast<bool>(file.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size())));
}

bool failed(const ps3::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return !status.ok();
}

}  // namespace

int main(int argc, char** argv) {
  Picture picture = made_picture();
  if (argc > 1 && !read_ppm(argv[1], picture)) {
    std::fprintf(stderr, "%s is no binary PPM of 8-bit pixels\n", argv[1]);
    return 1;
  }
  ps3::FrameView frame;
  frame.format = ps3::PixelFormat::kRGB;
  frame.height = picture.height;
  frame.width = picture.width;
  frame.plane[0] = {picture.rgb.data(), std::ptrdiff_t{3} * picture.width, picture.rgb.size()};

  // The whole frame, once, at low resolution: 27 x 27 patches of 14 px.
  const std::vector<int> scales_px = {378, 756, 1512, 3780};
  constexpr int kPatch = 14, kGrid = 27;
  std::vector<std::int32_t> all_ids(kGrid * kGrid);
  for (int i = 0; i < kGrid * kGrid; ++i) all_ids[i] = i;
  std::vector<float> low(all_ids.size() * 3 * kPatch * kPatch);
  if (failed(ps3::gather(ps3::Cpu{}, frame, {scales_px.back(), scales_px[0], kPatch}, all_ids, {}, low))) return 1;

  // A stand-in for score(): how far the patch's mean is from the frame's.
  std::vector<float> prob(all_ids.size());
  const std::size_t values = low.size() / prob.size();
  double frame_mean = 0;
  for (std::size_t i = 0; i < prob.size(); ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < values; ++j) sum += low[i * values + j];
    prob[i] = static_cast<float>(sum / values);
    frame_mean += prob[i] / prob.size();
  }
  for (float& p : prob) p = static_cast<float>(std::min(1.0, std::fabs(p - frame_mean)));

  std::vector<int> counts, capacity;
  std::vector<std::vector<int>> looks;
  if (failed(ps3::per_look(scales_px, 2560, counts))) return 1;
  for (std::size_t i = 1; i < scales_px.size(); ++i) capacity.push_back(scales_px[i] / kPatch * (scales_px[i] / kPatch));
  ps3::LookRequest request;
  request.num_tokens = 512;
  if (failed(ps3::plan_looks(capacity, counts, request, looks))) return 1;

  for (std::size_t i = 1; i < scales_px.size(); ++i) {
    const int grid = scales_px[i] / kPatch;
    std::vector<std::uint8_t> taken(static_cast<std::size_t>(grid) * grid, 0);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(looks[0][i - 1]));
    if (failed(ps3::select(ps3::Cpu{}, {prob, kGrid, kGrid}, grid, grid, taken, ids))) return 1;
    std::vector<float> patches(ids.size() * 3 * kPatch * kPatch);
    const auto start = std::chrono::steady_clock::now();
    if (failed(ps3::gather(ps3::Cpu{}, frame, {scales_px.back(), scales_px[i], kPatch}, ids, {}, patches))) return 1;
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    std::printf("%4d px: %zu of %d patches, first at row %d column %d, cut out in %.2f ms\n", scales_px[i], ids.size(), grid * grid,
                ids.empty() ? -1 : ids[0] / grid, ids.empty() ? -1 : ids[0] % grid, took.count());
  }
  std::printf("ps3 %s, %s loops\n", ps3::version(), ps3::build_info().simd);
  return 0;
}
