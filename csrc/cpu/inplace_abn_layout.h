// SPDX-License-Identifier: MIT
// Maps in chunks. Numbers of a chunk are summed up by one kernel call, and chunks are combined in
// order: results depend on the sizes alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include <torch/csrc/stable/tensor.h>

#include "cache.h"
#include "inplace_abn_kernels.h"
#include "numbers.h"

namespace ocnet::cpu {

// Channels that one kernel call works on: one of planes, neighbours of rows.
struct AbnUnit {
  int64_t channel, width;
};

class AbnLayout {
 public:
  AbnLayout(const torch::stable::Tensor& map, int64_t number_size)
      : rows_(map.dim() == 2),
        images_(rows_ ? 1 : map.size(0)),
        channels_(map.size(1)),
        length_(map.size(rows_ ? 0 : 2)) {
    const int64_t chunk = kBytesOfChunk / number_size;
    if (rows_) {
      together_ = kRowsOfChunk;
      chunks_ = ceil_div(length_, together_);
    } else if (length_ > chunk) {
      part_ = round_up(ceil_div(length_, ceil_div(length_, chunk)), kPartStep);
      chunks_ = images_ * ceil_div(length_, part_);
    } else {
      chunks_ = ceil_div(images_, chunk / length_);
      together_ = ceil_div(images_, chunks_);
      chunks_ = ceil_div(images_, together_);
    }
  }

  bool rows() const { return rows_; }
  int64_t channels() const { return channels_; }
  int64_t count() const { return images_ * length_; }
  int64_t numbers() const { return count() * channels_; }
  int64_t chunks() const { return chunks_; }
  int64_t length() const { return length_; }  // of a plane, or rows

  // Whether what a pass writes should go past the caches: where all its maps together do not fit,
  // and each line is whole cache lines.
  template <typename T, typename Element>
  bool past_caches(const AbnBlock<T, Element>& block) const {
    constexpr int64_t kLine = 64;
    const void* const maps[] = {block.map, block.residual, block.grad_out, block.target,
                                block.grad_residual};
    const int64_t count = std::count_if(std::begin(maps), std::end(maps),
                                        [](const void* map) { return map != nullptr; });
    const auto fits = [](const void* target) {
      return reinterpret_cast<uintptr_t>(target) % kLine == 0;
    };
    return count * numbers() * static_cast<int64_t>(sizeof(Element)) > largest_cache() &&
           (rows_ ? channels_ : length_) * sizeof(Element) % kLine == 0 &&
           block.target != block.map && fits(block.target) && fits(block.grad_residual);
  }

  // Numbers of each channel in a chunk, and in those before it.
  int64_t count_of(int64_t chunk) const {
    const Lines lines = at(chunk);
    return rows_ ? lines.count : lines.count * lines.length;
  }
  int64_t count_before(int64_t chunk) const { return at(chunk).before; }

  // Sets the lines of a block whose pointers are those of the whole map.
  template <typename T, typename Element>
  void place(const AbnUnit& unit, int64_t chunk, AbnBlock<T, Element>& block) const {
    const Lines lines = at(chunk);
    const int64_t offset = lines.offset + unit.channel * (rows_ ? 1 : length_);
    block.map += offset;
    for (const Element** source : {&block.residual, &block.grad_out}) {
      *source = *source == nullptr ? nullptr : *source + offset;
    }
    for (Element** target : {&block.target, &block.grad_residual}) {
      *target = *target == nullptr ? nullptr : *target + offset;
    }
    block.lines = lines.count;
    block.stride = rows_ ? channels_ : channels_ * length_;
    block.length = rows_ ? unit.width : lines.length;
  }

 private:
  // Few enough numbers for sums of a chunk to be short, enough for what is done once for each.
  static constexpr int64_t kBytesOfChunk = 32768;
  static constexpr int64_t kRowsOfChunk = 256;
  static constexpr int64_t kPartStep = 64;

  struct Lines {
    int64_t offset, count, length, before;
  };

  Lines at(int64_t chunk) const {
    if (part_ > 0) {
      const int64_t parts = ceil_div(length_, part_), image = chunk / parts;
      const int64_t start = (chunk - image * parts) * part_;
      return {image * channels_ * length_ + start, 1, std::min(part_, length_ - start),
              image * length_ + start};
    }
    const int64_t lines = rows_ ? length_ : images_, width = rows_ ? 1 : length_;
    const int64_t first = chunk * together_;
    return {first * channels_ * width, std::min(together_, lines - first), length_, first * width};
  }

  bool rows_;
  int64_t images_, channels_, length_;
  int64_t chunks_;
  int64_t together_ = 1;  // lines of a chunk
  int64_t part_ = 0;      // length of a part, where planes are more than a chunk
};

}  // namespace ocnet::cpu
