// Bicubic weights with antialias, as Pillow's resize and torch's interpolate(antialias=True) define them.
#pragma once

#include "hd.h"

namespace ps3::ops {

/// Keys' cubic with a = -0.5; zero outside (-2, 2).
PS3_HD double cubic_antialias(double x) {
  constexpr double a = -0.5;
  x = x < 0.0 ? -x : x;
  const double near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  const double far = (((x - 5) * x + 8) * x - 4) * a;
  return x < 1.0 ? near : (x < 2.0 ? far : 0.0);
}

/// The input samples that one output sample is made of.
struct Window {
  int first;
  int count;
};

PS3_HD double filter_scale(int in_size, int out_size) {
  const double scale = static_cast<double>(in_size) / out_size;
  return scale < 1.0 ? 1.0 : scale;
}

/// At most this many samples in any window of the axis.
PS3_HD int max_window(int in_size, int out_size) {
  return static_cast<int>(4.0 * filter_scale(in_size, out_size)) + 2;
}

/// center: where the output sample lies on the input axis, in samples.
PS3_HD Window antialias_window(double center, int in_size, int out_size) {
  const double support = 2.0 * filter_scale(in_size, out_size);
  int first = static_cast<int>(center - support + 0.5);
  int end = static_cast<int>(center + support + 0.5);
  first = first < 0 ? 0 : first;
  end = end > in_size ? in_size : end;
  return {first, end - first};
}

/// Weight of sample first + t before normalisation, in Pillow's order of operations. inverse: 1 / filter_scale.
PS3_HD double antialias_weight(int t, int first, double center, double inverse) {
  return cubic_antialias((t + first - center + 0.5) * inverse);
}

/// weights[0 .. window.count): normalised to sum 1 in double.
PS3_HD void antialias_weights(double center, int in_size, int out_size, Window window, double* weights) {
  const double inverse = 1.0 / filter_scale(in_size, out_size);
  double sum = 0.0;
  for (int t = 0; t < window.count; ++t) {
    weights[t] = antialias_weight(t, window.first, center, inverse);
    sum += weights[t];
  }
  if (sum != 0.0) {
    for (int t = 0; t < window.count; ++t) weights[t] /= sum;
  }
}

}  // namespace ps3::ops
