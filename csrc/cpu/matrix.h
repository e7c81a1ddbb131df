// SPDX-License-Identifier: MIT
// Token matrices as the caller has them.
#pragma once

#include <cstdint>

#include "groups.h"
#include "numbers.h"

namespace ocnet::cpu {

// A batch of token matrices with the strides of the tensor, in elements. Batch items are images, or
// the groups of each image, whose tokens are where `groups` has them.
template <typename Element>
struct Matrices {
  Element* data;
  int64_t tokens, channels;
  int64_t image_stride, token_stride, channel_stride;
  const Groups* groups = nullptr;

  // The first token of a batch item.
  Element* first(int64_t batch) const {
    if (groups == nullptr) {
      return data + batch * image_stride;
    }
    const int64_t image = batch / groups->count();
    return data + image * image_stride +
           groups->origin(batch - image * groups->count()) * token_stride;
  }
  // How far a token is from the first one, in tokens of the map.
  int64_t place(int64_t token) const { return groups == nullptr ? token : groups->places()[token]; }
  Element* at(int64_t batch, int64_t token) const {
    return first(batch) + place(token) * token_stride;
  }
};

// One axis of a matrix, as it is walked along: position i is at places[i] * stride, or at i *
// stride where neighbours are equally far apart.
struct Steps {
  int64_t stride;
  const int32_t* places = nullptr;

  int64_t operator[](int64_t i) const { return (places == nullptr ? i : places[i]) * stride; }
  // Whether `count` positions from `first` on are side by side.
  bool adjacent(int64_t first, int64_t count) const {
    return stride == 1 &&
           (places == nullptr || places[first + count - 1] == places[first] + count - 1);
  }
};

// The tokens from one on of a batch item: where the first is looked up from, and how.
template <typename Element>
struct TokenRange {
  Element* source;
  Steps steps;

  TokenRange(const Matrices<Element>& from, int64_t batch, int64_t token)
      : source(from.groups == nullptr ? from.at(batch, token) : from.first(batch)),
        steps{from.token_stride, from.groups == nullptr ? nullptr : from.groups->places() + token} {
  }
};

}  // namespace ocnet::cpu
