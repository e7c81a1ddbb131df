// SPDX-License-Identifier: MIT
// Which groups of pixels a launch works on, and which of them a block: a table of families in the
// parameters of the kernel, in which a block finds its place from its number. Host and device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segments.h"
#include "tokens.h"

namespace ocnet {

constexpr int kStageSlots = 4;
constexpr int kMostFamilies = kStageSlots * kMostShapes;

// From the first token of a group to another, in tokens of the map: a Segment that starts at 0.
struct GroupSteps {
  int64_t row_step;
  int column_step;
  Divisor width;

  OCNET_HOST_DEVICE int64_t map_token(int token) const {
    return Segment{0, row_step, column_step, 0, width}.map_token(token);
  }
};

// The groups of one shape in all images of a stage. Attention without groups is one group.
struct Family {
  int stage;
  int images;
  int groups;   // in an image
  int columns;  // of groups, side by side
  // Of the map: the first token of the first group, and the steps to that of the group below and of
  // the one on the right.
  int64_t origin, down, right;
  GroupSteps steps;
  bool is_run;          // whether the steps from each token to the next are all equal
  int owned, streamed;  // tokens of a group that are dealt to blocks, and that pass by each of them
  // How a launch cuts a group: tiles of both kinds, blocks among which the former are dealt, and
  // all blocks of a group.
  int row_tiles, col_tiles;
  int walkers;
  int group_blocks;
  int64_t first_block;
};

// Families in the order of their blocks.
struct WorkTable {
  int count = 0;
  Family families[kMostFamilies];
};

// What one block works on.
struct WorkPlace {
  int family;
  int block;  // of its group
  int64_t image;
  int64_t origin;  // first token of its group
};

OCNET_HOST_DEVICE WorkPlace locate_work(const WorkTable& work, int64_t block) {
  WorkPlace place;
  place.family = 0;
  while (place.family + 1 < work.count && block >= work.families[place.family + 1].first_block) {
    ++place.family;
  }
  const Family& family = work.families[place.family];
  // A grid has less than 2^31 blocks, and 32 bits divide faster.
  const auto index = static_cast<uint32_t>(block - family.first_block);
  const uint32_t group_index = index / static_cast<uint32_t>(family.group_blocks);
  const uint32_t image = group_index / static_cast<uint32_t>(family.groups);
  const uint32_t group = group_index - image * static_cast<uint32_t>(family.groups);
  const uint32_t row = group / static_cast<uint32_t>(family.columns);
  const uint32_t column = group - row * static_cast<uint32_t>(family.columns);
  place.block = static_cast<int>(index - group_index * static_cast<uint32_t>(family.group_blocks));
  place.image = image;
  place.origin = family.origin + row * family.down + column * family.right;
  return place;
}

// Where the tokens of a block's group are in one matrix. Blocks keep it in shared memory: registers
// are for sums, and parameters that are found by an index take longer to read.
template <typename T>
struct GroupSpan {
  T* data;             // of the first token
  int64_t run_stride;  // from each token to the next; 0 where they have to be looked up
  int64_t token_stride;
  int64_t channel_stride;
  int tokens;
  int channels;
};

template <typename T>
OCNET_HOST_DEVICE GroupSpan<T> span_of(const TokenMatrix<T>& maps, const WorkPlace& place,
                                       const Family& family, int tokens) {
  return {maps.image(place.image).at(place.origin, 0),
          family.is_run ? family.steps.column_step * maps.token_stride : 0,
          maps.token_stride,
          maps.channel_stride,
          tokens,
          maps.channels};
}

// The tokens of a group, as rows of a matrix.
template <typename T>
struct GroupMatrix : GroupSpan<T> {
  GroupSteps steps;

  OCNET_HOST_DEVICE GroupMatrix(const GroupSpan<T>& span, const GroupSteps& group)
      : GroupSpan<T>(span), steps(group) {}

  OCNET_HOST_DEVICE bool is_run() const { return this->run_stride != 0; }
  OCNET_HOST_DEVICE T* at(int token, int channel) const {
    return is_run() ? run().at(token, channel) : scattered(token, channel);
  }
  // The same tokens, where they are a run.
  OCNET_HOST_DEVICE TokenMatrix<T> run() const {
    return {this->data, 0, this->run_stride, this->channel_stride, this->tokens, this->channels};
  }
  // An element where they are not.
  OCNET_HOST_DEVICE T* scattered(int token, int channel) const {
    return this->data + steps.map_token(token) * this->token_stride +
           channel * this->channel_stride;
  }
};

// What a block keeps of its group is derived from this: a span for each matrix.
struct Group {
  GroupSteps steps;

  template <typename T>
  OCNET_HOST_DEVICE GroupMatrix<T> rows(const GroupSpan<T>& span) const {
    return {span, steps};
  }
};

// Bytes at the start of a block's shared memory for its Group, which leave the tiles behind it
// where their layout wants them.
constexpr int kGroupBytes = 640;

// --- host ---

// The groups of one stage. Both kinds of tokens are the group's, but without groups there may be
// others to stream.
struct StageWork {
  int images;
  Partition partition;
  int streamed;
};

// All tokens of maps without a partition.
inline Partition one_group(int tokens) {
  Partition partition;
  partition.columns.size = partition.columns.step = tokens;
  return partition;
}

// The families of all stages, not yet cut.
inline WorkTable list_work(const std::vector<StageWork>& stages) {
  WorkTable work;
  for (int stage = 0; stage < static_cast<int>(stages.size()); ++stage) {
    const Partition& partition = stages[stage].partition;
    const int64_t map_width = partition.columns.size;
    GroupShape shapes[kMostShapes];
    const int shape_count = partition.shapes(shapes);
    for (int i = 0; i < shape_count; ++i) {
      const GroupShape& shape = shapes[i];
      Family family = {};
      family.stage = stage;
      family.images = stages[stage].images;
      family.groups = static_cast<int>(shape.groups());
      family.columns = shape.columns;
      const Segment first = partition.segment(shape.first_row, shape.first_column,
                                              Divisor(static_cast<uint32_t>(shape.width)));
      family.origin = first.origin;
      family.steps = {first.row_step, first.column_step, first.width};
      family.down = partition.rows.step * map_width;
      family.right = partition.columns.step;
      family.is_run =
          shape.height == 1 || first.row_step == int64_t{shape.width} * first.column_step;
      family.owned = shape.tokens();
      family.streamed = partition.groups() == 1 ? stages[stage].streamed : shape.tokens();
      work.families[work.count++] = family;
    }
  }
  return work;
}

// Puts families whose blocks take longest first, numbers the blocks and returns how many there are.
// `cut` sets the tiles and blocks of a family, and returns how long one of its blocks takes.
template <typename Cut>
int64_t deal_work(WorkTable& work, const Cut& cut) {
  int64_t lengths[kMostFamilies];
  int order[kMostFamilies];
  for (int i = 0; i < work.count; ++i) {
    lengths[i] = cut(work.families[i]);
    order[i] = i;
  }
  std::stable_sort(order, order + work.count,
                   [&](int left, int right) { return lengths[left] > lengths[right]; });
  const WorkTable given = work;
  int64_t blocks = 0;
  for (int i = 0; i < work.count; ++i) {
    Family& family = work.families[i];
    family = given.families[order[i]];
    family.first_block = blocks;
    blocks += int64_t{family.images} * family.groups * family.group_blocks;
  }
  return blocks;
}

// A block for each tile of `rows` tokens and each slice, past which tiles of `cols` tokens stream;
// returns how many of those.
inline int64_t cut_family(Family& family, int rows, int cols, int slices) {
  family.row_tiles = family.walkers = static_cast<int>(ceil_div(family.owned, rows));
  family.col_tiles = static_cast<int>(ceil_div(family.streamed, cols));
  family.group_blocks = family.row_tiles * slices;
  return family.col_tiles;
}

}  // namespace ocnet
