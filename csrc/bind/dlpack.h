// The structures of DLPack 0.x, as its specification lays them out.
#pragma once

#include <cstdint>

namespace ps3::bind {

constexpr std::int32_t kDlCuda = 2, kDlCudaHost = 3, kDlCudaManaged = 13;
constexpr std::uint8_t kDlInt = 0, kDlUInt = 1, kDlFloat = 2;

struct DlTensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C order
  std::uint64_t byte_offset;
};

struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};

}  // namespace ps3::bind
