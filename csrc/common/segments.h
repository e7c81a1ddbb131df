// SPDX-License-Identifier: MIT
// Groups of pixels that attend to each other, as arithmetic of indices: nothing is gathered. A
// partition deals the rows of a map to groups, and its columns; a group of pixels is a group of
// rows times a group of columns. Host and device.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "tokens.h"

namespace ocnet {

// Positions 0 .. size - 1 of one axis, dealt to `count` groups: position `index` of a group is
// group * step + index * stride. Either neighbours are together (stride 1: groups of `step`, the
// last has what is left), or positions with equal remainders (step 1, stride `count`). No group is
// empty.
struct GroupAxis {
  int size = 1;
  int count = 1;
  int step = 1;
  int stride = 1;

  OCNET_HOST_DEVICE int extent(int group) const {
    if (stride > 1) return (size - group + stride - 1) / stride;
    return group + 1 < count ? step : size - group * step;
  }
  OCNET_HOST_DEVICE int position(int group, int index) const {
    return group * step + index * stride;
  }
  OCNET_HOST_DEVICE int group_of(int position) const {
    return stride > 1 ? position % stride : min_of(position / step, count - 1);
  }
  OCNET_HOST_DEVICE int index_of(int position) const {
    return (position - group_of(position) * step) / stride;
  }
  // As many groups, from the first on, have the extent of the first; the others that of the last.
  OCNET_HOST_DEVICE int like_first() const {
    if (extent(0) == extent(count - 1)) return count;
    return stride > 1 ? size % stride : count - 1;
  }
};

// Quotients by a number that is known before a launch, without a division.
struct Divisor {
  uint32_t divisor = 1;
  uint32_t factor = 0;
  uint32_t shift = 0;

  Divisor() = default;
  // From 1 to 2^31 - 1, as what it divides.
  explicit Divisor(uint32_t number) : divisor(number) {
    while ((uint64_t{1} << shift) < number) ++shift;
    factor = static_cast<uint32_t>(
        ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - number)) / number + 1);
  }
  OCNET_HOST_DEVICE uint32_t quotient(uint32_t number) const {
    const auto high = static_cast<uint32_t>((uint64_t{number} * factor) >> 32);
    return (high + number) >> shift;
  }
};

// The tokens of one group, row by row: where they are in the map, whose tokens are its pixels row
// by row.
struct Segment {
  int64_t origin = 0;
  int64_t row_step = 0;  // from a pixel of the group to the one below, in tokens of the map
  int column_step = 1;   // to the one on the right
  int tokens = 0;
  Divisor width;

  OCNET_HOST_DEVICE int64_t map_token(int token) const {
    const int row = static_cast<int>(width.quotient(static_cast<uint32_t>(token)));
    const int column = token - row * static_cast<int>(width.divisor);
    return origin + row * row_step + int64_t{column} * column_step;
  }
};

// Groups next to each other along both axes that have one shape.
struct GroupShape {
  int first_row, rows, first_column, columns;  // of groups
  int height, width;                           // of each, in pixels

  OCNET_HOST_DEVICE int64_t groups() const { return int64_t{rows} * columns; }
  OCNET_HOST_DEVICE int tokens() const { return height * width; }
};

constexpr int kMostShapes = 4;

struct Partition {
  GroupAxis rows, columns;

  OCNET_HOST_DEVICE int64_t groups() const { return int64_t{rows.count} * columns.count; }

  // A group, by its place among the groups of rows and of columns.
  OCNET_HOST_DEVICE Segment segment(int row_group, int column_group, const Divisor& width) const {
    const int64_t map_width = columns.size;
    Segment segment;
    segment.origin = rows.position(row_group, 0) * map_width + columns.position(column_group, 0);
    segment.row_step = rows.stride * map_width;
    segment.column_step = columns.stride;
    segment.tokens = rows.extent(row_group) * columns.extent(column_group);
    segment.width = width;
    return segment;
  }

  // The shapes that its groups have; returns how many.
  int shapes(GroupShape (&shapes)[kMostShapes]) const {
    int count = 0;
    const auto each = [](const GroupAxis& axis, const auto& take) {
      const int first = axis.like_first();
      take(0, first, axis.extent(0));
      if (first < axis.count) take(first, axis.count - first, axis.extent(axis.count - 1));
    };
    each(rows, [&](int first_row, int row_count, int height) {
      each(columns, [&](int first_column, int column_count, int width) {
        shapes[count++] = {first_row, row_count, first_column, column_count, height, width};
      });
    });
    return count;
  }
};

}  // namespace ocnet
