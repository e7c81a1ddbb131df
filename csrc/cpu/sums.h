// SPDX-License-Identifier: MIT
// Sums over tokens that many tasks add to, one block of tokens at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"

namespace ocnet::cpu {

// Tokens of a block whose sums one task adds to: small enough that a few thousand tokens make
// many blocks, large enough that packing is a small part of a task.
inline int64_t block_capacity(int64_t tokens) { return tokens < 8 * kStream ? 96 : 192; }

// Sums for every block of a few batch items, in panels of `capacity` rows. With more
// than one copy, tasks of different copies run at the same time, and `total` adds up the copies.
template <typename T>
class Sums {
 public:
  Sums(Workspace<T>& workspace, const Kernels<T>& run, int64_t capacity, int64_t blocks,
       int64_t channels, int64_t items, int64_t copies)
      : width_(round_up(channels, run.columns)),
        panel_(capacity * run.columns),
        columns_(run.columns),
        size_(capacity * width_),
        blocks_(blocks),
        copies_(copies),
        memory_(workspace, items * copies * blocks_ * size_) {}

  int64_t width() const { return width_; }
  int64_t panels() const { return width_ / columns_; }

  T* at(int64_t item, int64_t copy, int64_t block) const {
    return memory_.data() + ((item * copies_ + copy) * blocks_ + block) * size_;
  }

  // Sets the first `rows` rows of a block to 0 in every copy.
  void clear(int64_t item, int64_t block, int64_t rows) const {
    for (int64_t copy = 0; copy < copies_; ++copy) {
      T* const sums = at(item, copy, block);
      for (int64_t panel = 0; panel < size_; panel += panel_) {
        std::fill(sums + panel, sums + panel + rows * columns_, T(0));
      }
    }
  }

  // Adds one panel of the other copies to the first, in order.
  void add_copies(int64_t item, int64_t block, int64_t panel, int64_t rows) const {
    T* const sums = at(item, 0, block) + panel * panel_;
    for (int64_t copy = 1; copy < copies_; ++copy) {
      const T* const others = at(item, copy, block) + panel * panel_;
      std::transform(sums, sums + rows * columns_, others, sums, std::plus<T>());
    }
  }

  // The first copy, after it took the others.
  const T* total(int64_t item, int64_t block, int64_t rows) const {
    for (int64_t panel = 0; panel < panels(); ++panel) {
      add_copies(item, block, panel, rows);
    }
    return at(item, 0, block);
  }

 private:
  int64_t width_, panel_, columns_, size_, blocks_, copies_;
  Share<T> memory_;
};

}  // namespace ocnet::cpu
