// SPDX-License-Identifier: MIT
// Packed copies of token matrices, in the order in which the kernels read them, and sums in the
// order in which they write them.
//
// A block of `capacity` tokens holds panels of kernels' columns, each [row][column]:
//   left    rows are tokens, columns units of channels: left operands of products over channels
//   terms   rows are units of tokens, columns channels: right operands of sums over tokens
//   right   rows are units of channels, columns tokens: right operands of products over channels
// With one number in a unit, `left` and `terms` are the same, and `right` is their transpose.
//
// What is kept for a whole pass takes no more than the matrix itself: panels of `left`, in which
// 16-bit numbers stay 16-bit numbers. A worker turns one block at a time into what it multiplies.
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

// Units of a matrix: unit (i, j) begins at row[i] + column[j], and its second number, if units are
// pairs, is `pair` further. Only in row `half_row` or column `half_column` there is no second
// number.
struct Units {
  int64_t rows, columns;
  Steps row, column;
  int64_t pair;
  int64_t half_row = -1, half_column = -1;
};

// What a panel holds: numbers of type T, pairs of bfloat16 numbers in their place, or the bits of
// 16-bit numbers.
enum class Unit { kNumber, kPair, kBits };

// A unit as it goes through the kernels' transpose, which moves bits and does not look at them.
template <typename T, Unit Kind, typename Element>
T read_unit(const Element* first, const Units& units, int64_t row, int64_t column) {
  if constexpr (Kind == Unit::kPair) {
    const bool alone = row == units.half_row || column == units.half_column;
    const uint32_t second = alone ? 0 : first[units.pair].x;
    return from_bits(uint32_t{first->x} | second << 16);
  } else if constexpr (Kind == Unit::kBits) {
    return from_bits(first->x);
  } else {
    return widen(*first);
  }
}

template <typename Target, typename T>
Target stored(T unit) {
  if constexpr (std::is_same_v<Target, T>) {
    return unit;
  } else {
    return static_cast<Target>(to_bits(unit));
  }
}

// pack_panels where neighbours in a row are neighbours in memory: whole rows, as they are there.
template <Unit Kind, typename T, typename Element, typename Target>
void pack_rows(int64_t width, const Element* source, const Units& units, int64_t capacity,
               Target* target) {
  for (int64_t row = 0; row < units.rows; ++row) {
    for (int64_t start = 0; start < units.columns; start += width) {
      const int64_t used = std::min(width, units.columns - start);
      const Element* const from = source + units.row[row];
      Target* const to = target + start * capacity + row * width;
      for (int64_t column = 0; column < used; ++column) {
        const Element* const unit = from + units.column[start + column];
        to[column] = stored<Target>(read_unit<T, Kind>(unit, units, row, start + column));
      }
      std::fill(to + used, to + width, Target(0));
    }
  }
  for (int64_t start = 0; start < units.columns; start += width) {
    std::fill(target + start * capacity + units.rows * width, target + (start + width) * capacity,
              Target(0));
  }
}

// Units of one column, from row `first` on.
template <Unit Kind, typename T, typename Element>
void read_column(const Element* source, const Units& units, int64_t first, int64_t count,
                 int64_t column, T* target) {
  source += units.column[column];
  if (Kind != Unit::kPair && units.row.adjacent(first, count)) {
    source += units.row[first];
    for (int64_t row = 0; row < count; ++row) {
      target[row] = read_unit<T, Kind>(source + row, units, 0, 0);
    }
    return;
  }
  if (Kind != Unit::kPair && units.row.places != nullptr && units.row.stride == 1) {
    const int32_t* const places = units.row.places + first;
    for (int64_t row = 0; row < count; ++row) {
      target[row] = read_unit<T, Kind>(source + places[row], units, 0, 0);
    }
    return;
  }
  for (int64_t row = 0; row < count; ++row) {
    target[row] = read_unit<T, Kind>(source + units.row[first + row], units, first + row, column);
  }
}

// pack_panels where neighbours in a column are: squares, transposed.
template <Unit Kind, typename T, typename Element, typename Target>
void pack_squares(const Kernels<T>& run, const Element* source, const Units& units,
                  int64_t capacity, Target* target) {
  const int64_t width = run.columns;
  alignas(64) T block[kMaxPanel * kMaxPanel], last[kMaxPanel * kMaxPanel];
  for (int64_t start = 0; start < units.columns; start += width) {
    const int64_t used = std::min(width, units.columns - start);
    for (int64_t first = 0; first < capacity; first += width) {
      const int64_t here = std::clamp<int64_t>(units.rows - first, 0, width);
      const bool whole = used == width && here == width;
      Target* const to = target + start * capacity + first * width;
      if constexpr (Kind == Unit::kNumber && std::is_same_v<Element, T>) {
        if (whole && units.column.places == nullptr && units.row.adjacent(first, width)) {
          run.transpose(source + units.row[first] + units.column[start], units.column.stride, to,
                        width);
          continue;
        }
      }
      if (!whole) {
        std::fill(block, block + width * width, T(0));
      }
      if (here > 0) {
        for (int64_t column = 0; column < used; ++column) {
          read_column<Kind>(source, units, first, here, start + column, block + column * width);
        }
      }
      run.transpose(block, width, last, width);
      std::transform(last, last + std::min(width, capacity - first) * width, to, stored<Target, T>);
    }
  }
}

// Writes panels of `capacity` rows; what has no unit becomes 0.
template <Unit Kind, typename T, typename Element, typename Target>
void pack_panels(const Kernels<T>& run, const Element* source, const Units& units, int64_t capacity,
                 Target* target) {
  if (units.column.stride <= units.row.stride) {
    pack_rows<Kind, T>(run.columns, source, units, capacity, target);
  } else {
    pack_squares<Kind>(run, source, units, capacity, target);
  }
}

// Chooses by what the kernels put into a unit.
template <typename T, typename Element>
void pack_units(const Kernels<T>& run, const Element* source, const Units& units, int64_t capacity,
                T* target) {
  if constexpr (std::is_same_v<Element, c10::BFloat16>) {
    if (run.per_unit == 2) {
      pack_panels<Unit::kPair>(run, source, units, capacity, target);
      return;
    }
  }
  pack_panels<Unit::kNumber>(run, source, units, capacity, target);
}

// `count` tokens from `token` on, single numbers: panels of tokens with a row for every channel.
template <typename T, typename Element>
void pack_by_token(const Kernels<T>& run, const Matrices<const Element>& from, int64_t batch,
                   int64_t token, int64_t count, T* target) {
  const TokenRange<const Element> tokens(from, batch, token);
  const Units units{from.channels, count, {from.channel_stride}, tokens.steps, 0};
  pack_panels<Unit::kNumber>(run, tokens.source, units, from.channels, target);
}

// The same as panels of channels with a row for every token, and 0 in further rows.
template <typename T, typename Element>
void pack_by_channel(const Kernels<T>& run, const Matrices<const Element>& from, int64_t batch,
                     int64_t token, int64_t count, int64_t rows, T* target) {
  const TokenRange<const Element> tokens(from, batch, token);
  const Units units{count, from.channels, tokens.steps, {from.channel_stride}, 0};
  pack_panels<Unit::kNumber>(run, tokens.source, units, rows, target);
}

struct Range {
  int64_t start, count;
};

// A worker's memory for what it makes of a kept block, and what is in it.
template <typename T>
struct Opened {
  T* memory;
  const T* kept = nullptr;
  Range tokens{};

  bool has(const T* wanted, const Range& part) const {
    return kept == wanted && tokens.start <= part.start &&
           part.start + part.count <= tokens.start + tokens.count;
  }
};

// One token matrix of a few batch items in packed blocks.
template <typename T, typename Element>
class Packed {
 public:
  Packed(Workspace<T>& workspace, const Kernels<T>& run, const Matrices<const Element>& from,
         int64_t capacity, int64_t items)
      : run_(run),
        from_(from),
        capacity_(capacity),
        blocks_(ceil_div(from.tokens, capacity)),
        memory_(workspace, items * blocks_ * stored_size()) {}

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

  // The numbers of a worker's own memory that an opened block takes.
  int64_t opened_size() const { return kNarrow ? capacity_ * width() : 0; }

  // One block as a left operand: as it is kept, or opened.
  const T* left(int64_t item, int64_t block, Opened<T>& opened) const {
    return narrow() ? open(item, block, {0, count(block)}, opened) : at(item, block);
  }

  // Tokens of one block as terms of sums, at their place in the panels of the whole block. The
  // first of them begins a unit.
  const T* terms(int64_t item, int64_t block, const Range& tokens, Opened<T>& opened) const {
    const bool kept = !narrow() && run_.per_unit == 1;
    return kept ? at(item, block) : open(item, block, tokens, opened);
  }

  // Packs one block of batch item `batch` as item `item` here.
  void pack(int64_t batch, int64_t item, int64_t block) const {
    const int64_t per_unit = run_.per_unit, channels = from_.channels;
    const TokenRange<const Element> tokens(from_, batch, block * capacity_);
    const Units units{count(block),
                      depth(),
                      tokens.steps,
                      {per_unit * from_.channel_stride},
                      from_.channel_stride,
                      -1,
                      channels % per_unit ? channels / per_unit : -1};
    if constexpr (kNarrow) {
      if (narrow()) {
        pack_panels<Unit::kBits>(run_, tokens.source, units, capacity_, bits(item, block));
        return;
      }
    }
    pack_units(run_, tokens.source, units, capacity_, at(item, block));
  }

  // The tokens from `start` on of one block as a right operand of kResident tokens.
  void as_right(int64_t item, int64_t block, int64_t start, T* target) const {
    const int64_t side = run_.columns;
    alignas(64) T square[kMaxPanel * kMaxPanel];
    for (int64_t panel = 0; panel < width(); panel += side) {
      for (int64_t column = 0; column < kResident; column += side) {
        const int64_t offset = panel * capacity_ + (start + column) * side;
        const T* source = square;
        if (narrow()) {
          widen_units(bits(item, block) + offset, side * side, square);
        } else {
          source = at(item, block) + offset;
        }
        run_.transpose(source, side, target + column * width() + panel * side, side);
      }
    }
  }

 private:
  static constexpr bool kNarrow = sizeof(Element) < sizeof(T);

  // Whether 16-bit numbers are kept for kernels that multiply single numbers.
  bool narrow() const { return kNarrow && run_.per_unit == 1; }
  int64_t stored_size() const { return capacity_ * width() / (narrow() ? 2 : 1); }

  T* at(int64_t item, int64_t block) const {
    return memory_.data() + (item * blocks_ + block) * stored_size();
  }
  uint16_t* bits(int64_t item, int64_t block) const {
    return reinterpret_cast<uint16_t*>(at(item, block));
  }

  void widen_units(const uint16_t* from, int64_t size, T* to) const {
    (std::is_same_v<Element, c10::Half> ? run_.widen_half : run_.widen_bfloat16)(from, size, to);
  }

  const T* open(int64_t item, int64_t block, const Range& tokens, Opened<T>& opened) const {
    const T* const kept = at(item, block);
    if (!opened.has(kept, tokens)) {
      for (int64_t panel = 0; panel < width(); panel += run_.columns) {
        if (narrow()) {
          widen_panel(bits(item, block), panel, tokens, opened.memory);
        } else {
          pair_panel(kept, panel, tokens, opened.memory);
        }
      }
      opened.kept = kept;
      opened.tokens = tokens;
    }
    return opened.memory;
  }

  void widen_panel(const uint16_t* kept, int64_t panel, const Range& tokens, T* target) const {
    const int64_t offset = panel * capacity_ + tokens.start * run_.columns;
    widen_units(kept + offset, round_up(tokens.count, run_.rows) * run_.columns, target + offset);
  }

  // A panel of left units becomes two panels of terms: its pairs are of channels, theirs of tokens.
  void pair_panel(const T* kept, int64_t panel, const Range& tokens, T* target) const {
    T* const first = target + panel * capacity_ + tokens.start / run_.per_unit * run_.columns;
    run_.pair_tokens(kept + panel * capacity_ + tokens.start * run_.columns,
                     ceil_div(tokens.count, run_.per_unit), first, first + terms_panel());
  }

  const Kernels<T>& run_;
  Matrices<const Element> from_;
  int64_t capacity_, blocks_;
  Share<T> memory_;
};

// to[token][channel] = narrow(convert(token, sum)) for `count` rows of sums.
template <typename T, typename Element, typename Convert>
void unpack(const Kernels<T>& run, const T* sums, const Panels& panels, const Matrices<Element>& to,
            int64_t batch, int64_t token, int64_t count, const Convert& convert) {
  const int64_t width = run.columns;
  alignas(64) T block[kMaxPanel * kMaxPanel];
  const TokenRange<Element> tokens(to, batch, token);
  Element* target = tokens.source;
  for (int64_t start = 0; start < to.channels; start += width) {
    const int64_t used = std::min(width, to.channels - start);
    if (to.channel_stride <= to.token_stride) {
      for (int64_t row = 0; row < count; ++row) {
        Element* const to_row = target + tokens.steps[row];
        for (int64_t column = 0; column < used; ++column) {
          to_row[column * to.channel_stride] =
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
            to_column[tokens.steps[first + row]] =
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
