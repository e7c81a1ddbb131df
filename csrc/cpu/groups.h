// SPDX-License-Identifier: MIT
// The groups of one shape of a partition, as batch items of which each is a list of tokens of a
// map.
#pragma once

#include <cstdint>
#include <vector>

#include "common/segments.h"

namespace ocnet::cpu {

class Groups {
 public:
  Groups(const Partition& partition, const GroupShape& shape)
      : partition_(partition), shape_(shape), places_(static_cast<size_t>(shape.tokens())) {
    const Segment first = segment(0);
    for (int token = 0; token < shape.tokens(); ++token) {
      places_[token] = static_cast<int32_t>(first.map_token(token) - first.origin);
    }
  }

  int64_t count() const { return shape_.groups(); }
  int64_t tokens() const { return shape_.tokens(); }

  // Whether neighbours in a row of the map are of different groups. Those of one row of groups,
  // next to each other in number, then take turns.
  bool interleaved() const { return partition_.columns.stride > 1; }
  int64_t row_of_groups() const { return shape_.columns; }
  int64_t height() const { return shape_.height; }
  int64_t map_width() const { return partition_.columns.size; }
  // The map's token that begins row `row` of the row of groups that starts with `group`.
  int64_t row_start(int64_t group, int64_t row) const {
    const auto first = static_cast<int>(shape_.first_row + group / shape_.columns);
    return partition_.rows.position(first, static_cast<int>(row)) * map_width();
  }
  // Which of the row of groups a column of the map is in, below 0 or too large for others, and
  // which token of row `row` there.
  int64_t turn(int64_t column) const {
    return column % partition_.columns.stride - shape_.first_column;
  }
  int64_t turn_token(int64_t row, int64_t column) const {
    return row * shape_.width + column / partition_.columns.stride;
  }

  // The map's token that is a group's first one.
  int64_t origin(int64_t group) const { return segment(group).origin; }
  // How far each token of a group is from its first one, in tokens of the map.
  const int32_t* places() const { return places_.data(); }

 private:
  Segment segment(int64_t group) const {
    const int row = static_cast<int>(group / shape_.columns);
    const int column = static_cast<int>(group % shape_.columns);
    return partition_.segment(shape_.first_row + row, shape_.first_column + column,
                              Divisor(static_cast<uint32_t>(shape_.width)));
  }

  Partition partition_;
  GroupShape shape_;
  std::vector<int32_t> places_;
};

}  // namespace ocnet::cpu
