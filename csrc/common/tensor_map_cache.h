// SPDX-License-Identifier: MIT
// Tensor maps that were made before. A call of attention needs several, encoding one costs about a
// microsecond, and training asks for the same ones over and over. Host.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>

#include "tensor_map.h"

namespace ocnet {

// From requests to maps; the oldest makes way for one too many. For threads to share.
class TensorMapCache {
 public:
  explicit TensorMapCache(size_t most) : most_(most) {}

  // The map of an equal request, or what encode() returns. Where that throws, nothing is kept.
  template <typename Encode>
  TensorMap get(const TensorMapRequest& request, const Encode& encode) {
    const Key key = key_of(request);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = maps_.find(key);
    if (found != maps_.end()) return found->second;
    const TensorMap map = encode();
    if (ages_.size() == most_) {
      maps_.erase(ages_.front());
      ages_.pop_front();
    }
    ages_.push_back(maps_.emplace(key, map).first);
    return map;
  }

 private:
  using Key = std::array<uint64_t, 14>;
  using Maps = std::map<Key, TensorMap>;

  // Everything that the map says. An address that was freed and given out again has the same map.
  static Key key_of(const TensorMapRequest& request) {
    Key key{};
    auto next = key.begin();
    const auto add = [&](uint64_t word) { *next++ = word; };
    add(reinterpret_cast<uint64_t>(request.data));
    add(static_cast<uint64_t>(request.element) << 32 | static_cast<uint64_t>(request.rank) << 1 |
        static_cast<uint64_t>(request.swizzle));
    for (const uint64_t size : request.sizes) add(size);
    for (const uint64_t stride : request.stride_bytes) add(stride);
    for (const uint32_t side : request.box) add(side);
    return key;
  }

  const size_t most_;
  std::mutex mutex_;
  Maps maps_;
  std::deque<Maps::iterator> ages_;
};

// encode_tensor_map, of requests that are new or were forgotten.
inline TensorMap cached_tensor_map(const char* function, const TensorMapRequest& request) {
  static TensorMapCache cache(256);
  return cache.get(request, [&] { return encode_tensor_map(function, request); });
}

}  // namespace ocnet
