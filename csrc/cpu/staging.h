// SPDX-License-Identifier: MIT
// Groups whose tokens take turns in the rows of an NCHW map: numbers of one of them are apart in
// memory, and a cache line has some of each. A worker copies a whole row of such groups to memory
// of its own where channels are side by side, square by square of neighbouring pixels and channels,
// and their results back. The numbers are the same either way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "calls.h"
#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"

namespace ocnet::cpu {

// Groups that a worker takes together; 1 where nothing is copied.
template <typename T, typename Element>
int64_t groups_together(const Matrices<const Element>& query, int64_t batches) {
  const Groups* const groups = query.groups;
  if (!std::is_same_v<T, Element> || groups == nullptr || !groups->interleaved() ||
      query.token_stride >= query.channel_stride) {
    return 1;
  }
  // Workers without groups would cost more than copies save.
  const int64_t together = groups->row_of_groups();
  return batches / together >= torch::stable::get_num_threads() ? together : 1;
}

// A worker's copies of one row of groups, from batch item `batch` on.
template <typename T>
class Stage {
 public:
  Stage(T* memory, const Groups& groups, int64_t batch)
      : next_(memory), groups_(groups), batch_(batch) {}

  // Room for what a matrix has of the groups.
  template <typename Any>
  Matrices<T> room(const Matrices<Any>& like) {
    const Matrices<T> dense{
        next_, like.tokens, like.channels, like.tokens * like.channels, like.channels, 1};
    next_ += groups_.row_of_groups() * dense.image_stride;
    return dense;
  }

  Matrices<const T> copy(const Matrices<const T>& from) {
    const Matrices<T> to = room(from);
    alignas(64) T block[kMaxPanel * kMaxPanel], pixels[kMaxPanel * kMaxPanel];
    each_square(from, [&](const Square& at) {
      const T* const source = corner(from, at);
      if (at.pixels == side() && at.channels == side() && from.token_stride == 1) {
        run_.transpose(source, from.channel_stride, pixels, side());
      } else {
        for (int64_t i = 0; i < at.channels; ++i) {
          for (int64_t pixel = 0; pixel < at.pixels; ++pixel) {
            block[i * side() + pixel] = source[i * from.channel_stride + pixel * from.token_stride];
          }
        }
        run_.transpose(block, side(), pixels, side());
      }
      each_pixel(at, [&](int64_t pixel, int64_t group, int64_t token) {
        std::copy_n(pixels + pixel * side(), at.channels, to.at(group, token) + at.channel);
      });
    });
    return {to.data, to.tokens, to.channels, to.image_stride, to.token_stride, 1};
  }

  void copy_back(const Matrices<T>& from, const Matrices<T>& to) const {
    alignas(64) T pixels[kMaxPanel * kMaxPanel], block[kMaxPanel * kMaxPanel];
    each_square(to, [&](const Square& at) {
      bool mine[kMaxPanel] = {};
      int64_t count = 0;
      each_pixel(at, [&](int64_t pixel, int64_t group, int64_t token) {
        std::copy_n(from.at(group, token) + at.channel, at.channels, pixels + pixel * side());
        mine[pixel] = true;
        ++count;
      });
      T* const target = corner(to, at);
      if (count == side() && at.channels == side() && to.token_stride == 1) {
        run_.transpose(pixels, side(), target, to.channel_stride);
        return;
      }
      run_.transpose(pixels, side(), block, side());
      for (int64_t i = 0; i < at.channels; ++i) {
        for (int64_t pixel = 0; pixel < at.pixels; ++pixel) {
          if (mine[pixel]) {
            target[i * to.channel_stride + pixel * to.token_stride] = block[i * side() + pixel];
          }
        }
      }
    });
  }

 private:
  // Neighbouring pixels of row `row` of the groups, and neighbouring channels.
  struct Square {
    int64_t row, column, pixels, channel, channels;
  };

  int64_t side() const { return run_.columns; }

  template <typename Any>
  Any* corner(const Matrices<Any>& matrix, const Square& at) const {
    const int64_t count = groups_.count(), image = batch_ / count;
    const int64_t pixel = groups_.row_start(batch_ - image * count, at.row) + at.column;
    return matrix.data + image * matrix.image_stride + pixel * matrix.token_stride +
           at.channel * matrix.channel_stride;
  }

  template <typename Any, typename Run>
  void each_square(const Matrices<Any>& matrix, const Run& run) const {
    for (int64_t channel = 0; channel < matrix.channels; channel += side()) {
      for (int64_t row = 0; row < groups_.height(); ++row) {
        for (int64_t column = 0; column < groups_.map_width(); column += side()) {
          run(Square{row, column, std::min(side(), groups_.map_width() - column), channel,
                     std::min(side(), matrix.channels - channel)});
        }
      }
    }
  }

  // Calls run(pixel, group, token) for the pixels of a square that are of these groups.
  template <typename Run>
  void each_pixel(const Square& at, const Run& run) const {
    for (int64_t pixel = 0; pixel < at.pixels; ++pixel) {
      const int64_t column = at.column + pixel, group = groups_.turn(column);
      if (group >= 0 && group < groups_.row_of_groups()) {
        run(pixel, group, groups_.turn_token(at.row, column));
      }
    }
  }

  T* next_;
  const Groups& groups_;
  int64_t batch_;
  const Kernels<T>& run_ = kernels<T>();
};

// Calls attend(call) with calls on dense copies of `together` groups each.
template <typename T, typename Attend>
void forward_in_stages(const ForwardCall<T, T>& call, int64_t together, const Attend& attend) {
  const int64_t bundles = call.batches / together, workers = worker_count(bundles);
  const int64_t channels = 2 * call.query.channels + 2 * call.value.channels + 1;
  const int64_t size = together * call.query.tokens * channels;
  const Buffer<T> memory(call.like, workers * size);
  run_tasks(bundles, workers, [&](int64_t worker, int64_t bundle) {
    Stage<T> stage(memory.data() + worker * size, *call.query.groups, bundle * together);
    ForwardCall<T, T> inner = call;
    inner.batches = together;
    inner.query = stage.copy(call.query);
    if (call.key) {
      inner.key = stage.copy(*call.key);
    }
    inner.value = stage.copy(call.value);
    inner.out = stage.room(call.out);
    inner.lse = stage.room(call.lse);
    attend(inner);
    stage.copy_back(inner.out, call.out);
    stage.copy_back(inner.lse, call.lse);
  });
}

// The same; with few keys the output of forward is not read.
template <typename T, typename Attend>
void backward_in_stages(const BackwardCall<T, T>& call, int64_t together, bool few,
                        const Attend& attend) {
  const int64_t bundles = call.batches / together, workers = worker_count(bundles);
  const int64_t channels = 4 * call.query.channels + 4 * call.value.channels + 1;
  const int64_t size = together * call.query.tokens * channels;
  const Buffer<T> memory(call.like, workers * size);
  run_tasks(bundles, workers, [&](int64_t worker, int64_t bundle) {
    Stage<T> stage(memory.data() + worker * size, *call.query.groups, bundle * together);
    const auto room = [&](const std::optional<Matrices<T>>& like) {
      return like ? std::optional<Matrices<T>>(stage.room(*like)) : std::nullopt;
    };
    BackwardCall<T, T> inner = call;
    inner.batches = together;
    inner.grad_out = stage.copy(call.grad_out);
    inner.query = stage.copy(call.query);
    if (call.key) {
      inner.key = stage.copy(*call.key);
    }
    inner.value = stage.copy(call.value);
    if (!few) {
      inner.out = stage.copy(call.out);
      inner.lse = stage.copy(call.lse);
    }
    inner.grad_query = room(call.grad_query);
    inner.grad_key = room(call.grad_key);
    inner.grad_value = room(call.grad_value);
    attend(inner);
    if (call.grad_query) {
      stage.copy_back(*inner.grad_query, *call.grad_query);
    }
    if (call.grad_key) {
      stage.copy_back(*inner.grad_key, *call.grad_key);
    }
    if (call.grad_value) {
      stage.copy_back(*inner.grad_value, *call.grad_value);
    }
  });
}

}  // namespace ocnet::cpu
