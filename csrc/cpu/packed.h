// SPDX-License-Identifier: MIT
// Packed, widened copies of token matrices, in the order in which the kernels read them, and sums
// in the order in which they write them.
//
// A block of `capacity` tokens holds panels of kernels' columns, each [row][column]:
//   left    rows are tokens, columns units of channels: left operands of products over channels
//   terms   rows are units of tokens, columns channels: right operands of sums over tokens
//   right   rows are units of channels, columns tokens: right operands of products over channels
// With one number in a unit, `left` and `terms` are the same, and `right` is their transpose.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels.h"
#include "matrix.h"
#include "runtime.h"

namespace ocnet::cpu {

// Kernels for elements as they are in memory: widened, or in pairs where the processor has products
// of pairs.
template <typename T, typename Element>
const Kernels<T>& kernels_for() {
  if constexpr (std::is_same_v<Element, c10::BFloat16>) {
    if (const Kernels<T>* pairs = pair_kernels()) {
      return *pairs;
    }
  }
  return kernels<T>();
}

// Units of a matrix: unit (row, column) begins at row * row_stride + column * column_stride, and
// its second number, if units are pairs, is `pair` further. Only in row `half_row` or column
// `half_column` there is no second number.
struct Units {
  int64_t rows, columns, row_stride, column_stride, pair;
  int64_t half_row = -1, half_column = -1;
};

template <typename T, typename Element, bool Pairs>
T read_unit(const Element* source, const Units& units, int64_t row, int64_t column) {
  const Element* const first = source + row * units.row_stride + column * units.column_stride;
  if constexpr (Pairs) {
    const bool alone = row == units.half_row || column == units.half_column;
    const uint32_t second = alone ? 0 : first[units.pair].x;
    return from_bits(uint32_t{first->x} | second << 16);
  } else {
    return widen(*first);
  }
}

// Writes panels of `capacity` rows; what has no unit becomes 0.
template <bool Pairs, typename T, typename Element>
void pack_panels(const Kernels<T>& run, const Element* source, const Units& units, int64_t capacity,
                 T* target) {
  const int64_t width = run.columns;
  alignas(64) T block[kMaxPanel * kMaxPanel], last[kMaxPanel * kMaxPanel];
  for (int64_t start = 0; start < units.columns; start += width) {
    const int64_t used = std::min(width, units.columns - start);
    if (units.column_stride <= units.row_stride) {
      for (int64_t row = 0; row < units.rows; ++row) {
        T* const to = target + row * width;
        for (int64_t column = 0; column < used; ++column) {
          to[column] = read_unit<T, Element, Pairs>(source, units, row, start + column);
        }
        std::fill(to + used, to + width, T(0));
      }
      std::fill(target + units.rows * width, target + capacity * width, T(0));
    } else {
      for (int64_t first = 0; first < capacity; first += width) {
        const int64_t here = std::clamp<int64_t>(units.rows - first, 0, width);
        std::fill(block, block + width * width, T(0));
        for (int64_t column = 0; column < used; ++column) {
          for (int64_t row = 0; row < here; ++row) {
            block[column * width + row] =
                read_unit<T, Element, Pairs>(source, units, first + row, start + column);
          }
        }
        T* const to = target + first * width;
        if (first + width <= capacity) {
          run.transpose(block, width, to, width);
        } else {
          run.transpose(block, width, last, width);
          std::copy(last, last + (capacity - first) * width, to);
        }
      }
    }
    target += capacity * width;
  }
}

// Chooses by what the kernels put into a unit.
template <typename T, typename Element>
void pack_units(const Kernels<T>& run, const Element* source, const Units& units, int64_t capacity,
                T* target) {
  if constexpr (std::is_same_v<Element, c10::BFloat16>) {
    if (run.per_unit == 2) {
      pack_panels<true>(run, source, units, capacity, target);
      return;
    }
  }
  pack_panels<false>(run, source, units, capacity, target);
}

// `count` tokens from `token` on, single numbers: panels of tokens with a row for every channel.
template <typename T, typename Element>
void pack_by_token(const Kernels<T>& run, const Matrices<const Element>& from, int64_t batch,
                   int64_t token, int64_t count, T* target) {
  const Units units{from.channels, count, from.channel_stride, from.token_stride, 0};
  pack_panels<false>(run, from.at(batch, token), units, from.channels, target);
}

// The same as panels of channels with a row for every token, and 0 in further rows.
template <typename T, typename Element>
void pack_by_channel(const Kernels<T>& run, const Matrices<const Element>& from, int64_t batch,
                     int64_t token, int64_t count, int64_t rows, T* target) {
  const Units units{count, from.channels, from.token_stride, from.channel_stride, 0};
  pack_panels<false>(run, from.at(batch, token), units, rows, target);
}

// How many batch items, or workers, have memory of their own, and whether it is for one block only.
struct Room {
  int64_t items;
  bool one_block;
};

// One token matrix of a few batch items in packed blocks.
template <typename T, typename Element>
class Packed {
 public:
  // `as_left`, `as_terms`: which of the forms are wanted.
  Packed(Workspace<T>& workspace, const Kernels<T>& run, const Matrices<const Element>& from,
         int64_t capacity, const Room& room, bool as_left, bool as_terms)
      : run_(run),
        from_(from),
        capacity_(capacity),
        blocks_(ceil_div(from.tokens, capacity)),
        left_size_(as_left || run.per_unit == 1 ? capacity * width() : 0),
        terms_size_(as_terms && run.per_unit > 1 ? capacity / run.per_unit * sum_width() : 0),
        kept_(room.one_block ? 1 : blocks_),
        memory_(workspace, room.items * kept_ * (left_size_ + terms_size_)) {}

  int64_t blocks() const { return blocks_; }
  int64_t capacity() const { return capacity_; }
  int64_t count(int64_t block) const {
    return std::min(capacity_, from_.tokens - block * capacity_);
  }

  int64_t depth() const { return ceil_div(from_.channels, run_.per_unit); }
  int64_t width() const { return round_up(depth(), run_.columns); }
  int64_t sum_width() const { return round_up(from_.channels, run_.columns); }
  int64_t left_panel() const { return capacity_ * run_.columns; }
  int64_t terms_panel() const { return capacity_ / run_.per_unit * run_.columns; }

  const T* left(int64_t item, int64_t block) const { return at(item, block); }
  const T* terms(int64_t item, int64_t block) const {
    return at(item, block) + (run_.per_unit == 1 ? 0 : left_size_);
  }

  // Packs one block of batch item `batch` as item `item` here.
  void pack(int64_t batch, int64_t item, int64_t block) const {
    const int64_t tokens = count(block), per_unit = run_.per_unit, channels = from_.channels;
    const Element* const source = from_.at(batch, block * capacity_);
    if (left_size_ > 0) {
      const Units units{tokens,
                        depth(),
                        from_.token_stride,
                        per_unit * from_.channel_stride,
                        from_.channel_stride,
                        -1,
                        channels % per_unit ? channels / per_unit : -1};
      pack_units(run_, source, units, capacity_, at(item, block));
    }
    if (terms_size_ > 0) {
      const Units units{ceil_div(tokens, per_unit),
                        channels,
                        per_unit * from_.token_stride,
                        from_.channel_stride,
                        from_.token_stride,
                        tokens % per_unit ? tokens / per_unit : -1,
                        -1};
      pack_units(run_, source, units, capacity_ / per_unit, at(item, block) + left_size_);
    }
  }

  // The tokens from `start` on of one block as a right operand of kResident tokens.
  void as_right(int64_t item, int64_t block, int64_t start, T* target) const {
    const int64_t side = run_.columns;
    for (int64_t panel = 0; panel < width(); panel += side) {
      for (int64_t column = 0; column < kResident; column += side) {
        run_.transpose(left(item, block) + panel * capacity_ + (start + column) * side, side,
                       target + column * width() + panel * side, side);
      }
    }
  }

 private:
  T* at(int64_t item, int64_t block) const {
    return memory_.data() + (item * kept_ + block % kept_) * (left_size_ + terms_size_);
  }

  const Kernels<T>& run_;
  Matrices<const Element> from_;
  int64_t capacity_, blocks_, left_size_, terms_size_, kept_;
  Share<T> memory_;
};

// Where the rows and the panels of a matrix in panels begin.
struct Panels {
  int64_t row, panel;
};

// to[token][channel] = narrow(convert(token, sum)) for `count` rows of sums.
template <typename T, typename Element, typename Convert>
void unpack(const Kernels<T>& run, const T* sums, const Panels& panels, const Matrices<Element>& to,
            int64_t batch, int64_t token, int64_t count, const Convert& convert) {
  const int64_t width = run.columns;
  alignas(64) T block[kMaxPanel * kMaxPanel];
  Element* target = to.at(batch, token);
  for (int64_t start = 0; start < to.channels; start += width) {
    const int64_t used = std::min(width, to.channels - start);
    if (to.channel_stride <= to.token_stride) {
      for (int64_t row = 0; row < count; ++row) {
        for (int64_t column = 0; column < used; ++column) {
          target[row * to.token_stride + column * to.channel_stride] =
              static_cast<Element>(convert(row, sums[row * panels.row + column]));
        }
      }
    } else {
      for (int64_t first = 0; first < count; first += width) {
        const int64_t here = std::min(width, count - first);
        const T* const rows = sums + first * panels.row;
        if (here == width) {
          run.transpose(rows, panels.row, block, width);
        } else {
          for (int64_t row = 0; row < here; ++row) {
            for (int64_t column = 0; column < used; ++column) {
              block[column * width + row] = rows[row * panels.row + column];
            }
          }
        }
        for (int64_t column = 0; column < used; ++column) {
          Element* const to_column = target + column * to.channel_stride;
          for (int64_t row = 0; row < here; ++row) {
            to_column[(first + row) * to.token_stride] =
                static_cast<Element>(convert(first + row, block[column * width + row]));
          }
        }
      }
    }
    sums += panels.panel;
    target += used * to.channel_stride;
  }
}

}  // namespace ocnet::cpu
