// SPDX-License-Identifier: MIT
// How maps are dealt to the blocks of activated batch norm, and where a block finds its numbers.
// Arithmetic of sizes: no tensors. What kernels call is for host and device.
//
// Maps are read 16 bytes at a time. The same number of all maps of a call lies at the same place
// within its 16 bytes: maps are dense, start at a multiple of 16 bytes, and have one layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"
#include "common/segments.h"
#include "common/tokens.h"

namespace ocnet::abn {

// Numbers of a vector of 16 bytes.
template <typename scalar_t>
constexpr int kWidth = 16 / static_cast<int>(sizeof(scalar_t));

// Threads of kernels that stream, and vectors that a thread has in flight.
constexpr int kStreamThreads = 256;
constexpr int kInFlight = 4;
// Blocks that keep the largest device at hand (132 multiprocessors) busy: four on each at a time.
constexpr int64_t kStreamBlocks = 2 * 4 * 132;

// --- planes: (N, C, L) ---

// A vector of a map, and which of its numbers are meant: one bit for each.
struct Slot {
  int64_t at = 0;  // the number of the map that it starts with
  uint32_t mask = 0;

  // The numbers from `begin` on, before `end`; none where these are the wrong way round.
  OCNET_HOST_DEVICE static Slot between(int64_t at, int begin, int end) {
    return {at, end > begin ? (1u << end) - (1u << begin) : 0};
  }
  OCNET_HOST_DEVICE bool has(int j) const { return (mask >> j & 1) != 0; }
};

// The numbers of one channel that a block has: runs of equal length, `step` numbers apart.
struct Share {
  int64_t first = 0;
  int64_t step = 0;
  int runs = 0;
  int length = 0;

  OCNET_HOST_DEVICE int64_t numbers() const { return int64_t{runs} * length; }
};

// How the planes of every channel are dealt to parts. A part has one segment of each of `planes`
// planes; the parts of a group of planes are neighbours.
struct PlaneCut {
  // Records that blocks merge for themselves before they stream: more are first made one. A warp
  // merges those of the one channel of a block.
  static constexpr int64_t kOwnRecords = 128;

  int64_t images = 0;
  int64_t channels = 0;
  int64_t length = 0;  // of a plane
  int planes = 0;      // of a part
  int segments = 0;    // of a plane
  int segment = 0;     // numbers of a segment; the last has what is left
  int parts = 0;
  // Whether vectors belong to one run each, because planes and segments are whole vectors. If not,
  // runs start anywhere, and as many vectors are looked at for each as the longest may touch.
  bool whole = false;
  Divisor slots_of_run;

  // Of the statistics of a channel.
  int64_t records() const { return parts; }
  int64_t blocks() const { return channels * parts; }
  OCNET_HOST_DEVICE Share share(int64_t channel, int part) const {
    const int group = part / segments;
    const int64_t image = int64_t{group} * planes;
    const int64_t start = int64_t{part - group * segments} * segment;
    Share share;
    share.first = (image * channels + channel) * length + start;
    share.step = channels * length;
    share.runs = images > image ? smaller(images - image, planes) : 0;
    share.length = length > start ? smaller(length - start, segment) : 0;
    return share;
  }
  OCNET_HOST_DEVICE int slots(const Share& share) const {
    return share.runs * static_cast<int>(slots_of_run.divisor);
  }
  // `kWhole` is for cuts that are known to be `whole`.
  template <int kNumbers, bool kWhole = false>
  OCNET_HOST_DEVICE Slot slot(const Share& share, int index) const {
    const int run = static_cast<int>(slots_of_run.quotient(static_cast<uint32_t>(index)));
    const int64_t first = share.first + run * share.step;
    const int number = (index - run * static_cast<int>(slots_of_run.divisor)) * kNumbers;
    if (kWhole || whole) {
      return {first + number, number < share.length ? (1u << kNumbers) - 1 : 0};
    }
    const int skipped = number - static_cast<int>(static_cast<uint32_t>(first) % kNumbers);
    return Slot::between(first + skipped, max_of(-skipped, 0),
                         min_of(kNumbers, share.length - skipped));
  }

 private:
  OCNET_HOST_DEVICE static int smaller(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }
};

inline PlaneCut cut_planes(int64_t images, int64_t channels, int64_t length, int64_t planes,
                           int64_t segments, int width) {
  constexpr int64_t kWhole = 64;  // segments start with a vector of any dtype where planes do
  PlaneCut cut;
  cut.images = images;
  cut.channels = channels;
  cut.length = length;
  cut.planes = static_cast<int>(planes);
  const int64_t segment =
      segments == 1 ? length : ceil_div(ceil_div(length, segments), kWhole) * kWhole;
  cut.segment = static_cast<int>(segment);
  cut.segments = static_cast<int>(segments);
  cut.parts = static_cast<int>(ceil_div(images, planes) * segments);
  cut.whole = length % width == 0 && segment % width == 0;
  const int64_t slots = (cut.whole ? segment : segment + 2 * width - 2) / width;
  cut.slots_of_run = Divisor(static_cast<uint32_t>(slots));
  return cut;
}

// Parts for kernels that stream: enough blocks for every multiprocessor, but no part so short that
// a thread has fewer vectors than it can have in flight, nor so long that its sums get long.
inline PlaneCut cut_stream(int64_t images, int64_t channels, int64_t length, int width) {
  const int64_t shortest = int64_t{kStreamThreads} * kInFlight * width;
  constexpr int64_t kLongest = int64_t{1} << 22;
  const int64_t numbers = images * length;
  const int64_t wanted = ceil_div(kStreamBlocks, channels);
  const int64_t most = ceil_div(numbers, shortest);
  const int64_t least = ceil_div(numbers, kLongest);
  const int64_t some = wanted < most ? wanted : most;
  const int64_t parts = some > least ? some : least;
  if (parts <= images) {
    return cut_planes(images, channels, length, ceil_div(images, parts), 1, width);
  }
  PlaneCut cut = cut_planes(images, channels, length, 1, ceil_div(parts, images), width);
  // Rounding segments up may have left some without numbers.
  cut.segments = static_cast<int>(ceil_div(length, cut.segment));
  cut.parts = static_cast<int>(images) * cut.segments;
  return cut;
}

// --- planes whose channels stay on chip ---

constexpr int kMostTeamThreads = 512;
constexpr int kMostCluster = 8;  // blocks, that every device with clusters grants
constexpr int kWarpsOfTeam = kMostTeamThreads / 32;
// Partial results of the warps of a block: three numbers of 8 bytes each.
constexpr size_t kScratchBytes = kWarpsOfTeam * 3 * 8;

// A team is the threads that share a part of a channel: a block, or for tiny channels a warp. The
// blocks of a cluster are the parts of one channel.
struct SlabPlan {
  int cluster = 0;  // 0: a channel does not fit
  int teams = 0;    // of a block
  int team_threads = 0;
  int team_slots = 0;
  int64_t blocks = 0;
  size_t shared_bytes = 0;
  PlaneCut cut;
};

// The cut into `parts` that leaves a part the fewest vectors.
inline PlaneCut cut_evenly(int64_t images, int64_t channels, int64_t length, int parts, int width) {
  PlaneCut best;
  int64_t fewest = 0;
  for (int segments = 1; segments <= parts; segments *= 2) {
    const int64_t planes = ceil_div(images, parts / segments);
    const PlaneCut cut = cut_planes(images, channels, length, planes, segments, width);
    const int64_t slots = planes * cut.slots_of_run.divisor;
    if (segments > 1 && slots >= fewest) continue;
    best = cut;
    fewest = slots;
  }
  return best;
}

// Into how many blocks a channel goes: as few as leave room for two on each multiprocessor, but
// more where there are few channels; at worst as many as a cluster may have.
inline void choose_cluster(SlabPlan& plan, int64_t images, int64_t channels, int64_t length,
                           int width, int maps, size_t shared_limit, int most) {
  const size_t half = shared_limit / 2 - 1024;  // each block takes 1 KB besides
  constexpr int64_t kBusy = 256;                // blocks: about two for each of 132 multiprocessors
  constexpr int kFewSlots = 512;
  for (int cluster = 1; cluster <= most; cluster *= 2) {
    const PlaneCut cut = cut_evenly(images, channels, length, cluster, width);
    const int slots = cut.planes * static_cast<int>(cut.slots_of_run.divisor);
    const size_t bytes = kScratchBytes + size_t{16} * maps * slots;
    if (bytes > shared_limit) continue;
    if (plan.cluster > 0) {
      const bool busy = channels * plan.cluster >= kBusy || slots < kFewSlots;
      if (plan.shared_bytes <= half && busy) return;
      if (bytes >= plan.shared_bytes) return;
    }
    plan.cluster = cluster;
    plan.team_slots = slots;
    plan.shared_bytes = bytes;
    plan.cut = cut;
  }
}

// `maps` of a channel are kept. Without clusters, a channel has one block.
inline SlabPlan plan_slab(int64_t images, int64_t channels, int64_t length, int width, int maps,
                          size_t shared_limit, bool has_clusters) {
  // Beyond, no cluster has room, and arithmetic in 32 bits is not enough.
  constexpr int64_t kMostNumbers = int64_t{1} << 24;
  constexpr int kWarpSlots = 4 * 32;
  constexpr int kTeams = 4;
  SlabPlan plan;
  if (images * length > kMostNumbers || shared_limit <= 2048) return plan;
  choose_cluster(plan, images, channels, length, width, maps, shared_limit,
                 has_clusters ? kMostCluster : 1);
  if (plan.cluster == 0) return plan;
  const int slots = plan.team_slots;
  plan.teams = 1;
  plan.team_threads = slots > 4 * kMostTeamThreads ? kMostTeamThreads : slots > 512 ? 256 : 128;
  if (plan.cluster == 1 && slots <= kWarpSlots) {
    plan.team_threads = 32;
    const size_t bytes = kScratchBytes + size_t{16} * kTeams * maps * slots;
    if (bytes <= shared_limit) {
      plan.teams = kTeams;
      plan.shared_bytes = bytes;
    }
  }
  plan.blocks = plan.cluster * ceil_div(channels, plan.teams);
  return plan;
}

// --- rows: (R, C) ---

// A super-row is as many rows as make whole vectors, `repeats`: its numbers belong to channels
// 0 .. C - 1, that many times over. Blocks have a tile of its vectors, for a part of the
// super-rows. A thread has one vector of each `lanes`-th super-row. Only the last vector of a map
// may be cut.
struct RowCut {
  // As for planes; but a thread merges all of a channel.
  static constexpr int64_t kOwnRecords = 32;

  int64_t rows = 0;
  int64_t numbers = 0;
  int64_t super_rows = 0;
  int64_t part_rows = 0;   // super-rows of a part
  int64_t whole_rows = 0;  // super-rows that have all vectors whole
  int whole_vectors = 0;   // whole vectors of the one after them
  int channels = 0;
  int repeats = 0;
  int vectors = 0;  // of a super-row
  int columns = 0;  // vectors of a tile
  int tiles = 0;
  int lanes = 0;
  int parts = 0;

  // Records of statistics: one for each repeat of each part.
  OCNET_HOST_DEVICE int64_t records() const { return int64_t{parts} * repeats; }
  int64_t blocks() const { return int64_t{parts} * tiles; }
  OCNET_HOST_DEVICE int64_t record(int part, int repeat) const {
    return int64_t{part} * repeats + repeat;
  }
  // Whose the numbers of super-rows are, by their place there.
  struct Channel {
    int channel, repeat;
  };
  OCNET_HOST_DEVICE Channel channel_at(int place) const {
    const int repeat = place / channels;
    return {place - repeat * channels, repeat};
  }
  OCNET_HOST_DEVICE int64_t first_row(int part) const { return part * part_rows; }
  OCNET_HOST_DEVICE int64_t end_row(int part) const {
    const int64_t end = (part + 1) * part_rows;
    return end < super_rows ? end : super_rows;
  }
  // The end of the super-rows whose vector of this column is whole.
  OCNET_HOST_DEVICE int64_t end_of_whole(int part, int column) const {
    const int64_t end = end_row(part);
    const int64_t whole = whole_rows + (column < whole_vectors ? 1 : 0);
    return end < whole ? end : whole;
  }
  // Rows of a part that are `repeat` modulo `repeats`.
  OCNET_HOST_DEVICE int64_t count(int part, int repeat) const {
    const bool lacks = part == parts - 1 && (super_rows - 1) * repeats + repeat >= rows;
    return end_row(part) - first_row(part) - (lacks ? 1 : 0);
  }
  template <int kNumbers>
  OCNET_HOST_DEVICE Slot slot(int64_t row, int column) const {
    const int64_t at = (row * vectors + column) * kNumbers;
    const int64_t left = numbers - at;
    return Slot::between(at, 0, left < kNumbers ? static_cast<int>(left) : kNumbers);
  }
};

inline RowCut cut_rows(int64_t rows, int64_t channels, int width) {
  constexpr int64_t kTile = 16;  // vectors, 256 bytes: what is read of a row at a time
  constexpr int64_t kShortest = 2 * kInFlight;  // vectors of a thread
  RowCut cut;
  cut.rows = rows;
  cut.channels = static_cast<int>(channels);
  cut.numbers = rows * channels;
  cut.repeats = width;
  while (cut.repeats > 1 && channels * (cut.repeats / 2) % width == 0) cut.repeats /= 2;
  cut.vectors = static_cast<int>(channels * cut.repeats / width);
  cut.super_rows = ceil_div(rows, cut.repeats);
  cut.whole_rows = cut.numbers / width / cut.vectors;
  cut.whole_vectors = static_cast<int>(cut.numbers / width % cut.vectors);
  cut.columns = static_cast<int>(ceil_div(cut.vectors, ceil_div(cut.vectors, kTile)));
  cut.tiles = static_cast<int>(ceil_div(cut.vectors, cut.columns));
  cut.lanes = kStreamThreads / cut.columns;
  const int64_t wanted = ceil_div(kStreamBlocks / 2, cut.tiles);
  const int64_t most = ceil_div(cut.super_rows, cut.lanes * kShortest);
  cut.part_rows = ceil_div(cut.super_rows, wanted < most ? wanted : most);
  cut.parts = static_cast<int>(ceil_div(cut.super_rows, cut.part_rows));
  return cut;
}

}  // namespace ocnet::abn
