// Cuda: the ops over GPU memory, on one stream.
#pragma once

#include "arrays.h"

namespace ps3::bind {

void add_cuda(py::module_& module);

}  // namespace ps3::bind
