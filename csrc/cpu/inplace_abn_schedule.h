// SPDX-License-Identifier: MIT
// The order of the work of a pass. A pass has some of these steps for a unit of channels:
//
//   prepare(unit)                        what its channels need before anything else
//   reduce(unit, chunk, partial, scratch) writes sums of one chunk
//   combine(chunk, width, partial, total) adds them to those of the chunks before
//   finish(unit, total)                  what follows from the sums of all chunks
//   apply(unit, chunk)                   writes numbers of the map
#pragma once

#include <algorithm>
#include <cstdint>

#include "inplace_abn_layout.h"
#include "runtime.h"

namespace ocnet::cpu {

// Sums of all kinds for the channels of a unit.
struct AbnSums {
  double* data;
  int64_t stride;  // between kinds
  AbnSums from(int64_t channel) const { return {data + channel, stride}; }
};

template <typename T, typename Pass>
class AbnSchedule {
 public:
  AbnSchedule(const torch::stable::Tensor& like, const AbnLayout& layout, const Pass& pass)
      : layout_(layout), pass_(pass), like_(like) {
    // Threads are worth their start from some size on.
    workers_ = std::min(worker_count(layout.channels() * layout.chunks()),
                        ceil_div(layout.numbers(), int64_t{1} << 15));
  }

  void run() {
    const bool reduces = pass_.reduces();
    if (reduces && keeps_channels()) {
      channel_by_channel();
      return;
    }
    each_group([&](const AbnUnit& group) { pass_.prepare(group); });
    if (reduces) {
      reduce_all();
    }
    if (pass_.applies()) {
      each_chunk(reduces,
                 [&](int64_t, int64_t chunk, const AbnUnit& unit) { pass_.apply(unit, chunk); });
    }
  }

 private:
  static constexpr int kKinds = Pass::kKinds;
  static constexpr int64_t kScratch = 1 + kAbnSums;
  static constexpr int64_t kNarrowest = 64;

  // Whether a worker does all of a channel before the next, which is in its cache meanwhile.
  bool keeps_channels() const { return !layout_.rows() && layout_.channels() >= 4 * workers_; }

  void channel_by_channel() {
    const int64_t width = width_of_tasks(), size = abn_padded(width);
    const ScratchBuffer<double> memory(like_, workers_ * 2 * kKinds * size);
    const ScratchBuffer<T> scratch(like_, workers_ * kScratch * abn_padded(1));
    run_tasks(groups(width), workers_, [&](int64_t worker, int64_t index) {
      const AbnSums partial{memory.data() + worker * 2 * kKinds * size, size};
      neighbours(group_at(index, width), partial, {partial.data + kKinds * size, size},
                 scratch.data() + worker * kScratch * abn_padded(1));
    });
  }

  // Step by step for all of them: what follows from the sums of one would wait for them.
  void neighbours(const AbnUnit& group, const AbnSums& partial, const AbnSums& total, T* scratch) {
    clear(group, total);
    pass_.prepare(group);
    for (int64_t chunk = 0; chunk < layout_.chunks(); ++chunk) {
      each_unit(group, [&](const AbnUnit& unit) {
        pass_.reduce(unit, chunk, partial.from(unit.channel - group.channel), scratch);
      });
      pass_.combine(chunk, group.width, partial, total);
    }
    pass_.finish(group, total);
    // The chunks that were read last are the likeliest to be in the cache.
    for (int64_t chunk = layout_.chunks(); pass_.applies() && chunk-- > 0;) {
      each_unit(group, [&](const AbnUnit& unit) { pass_.apply(unit, chunk); });
    }
  }

  static void clear(const AbnUnit& group, const AbnSums& sums) {
    for (int kind = 0; kind < kKinds; ++kind) {
      std::fill_n(sums.data + kind * sums.stride, group.width, 0.0);
    }
  }

  void reduce_all() {
    const int64_t size = abn_padded(layout_.channels()), chunks = layout_.chunks();
    const ScratchBuffer<double> memory(like_, (chunks + 1) * kKinds * size);
    const ScratchBuffer<T> scratch(like_, workers_ * kScratch * size);
    const auto sums = [&](int64_t chunk, const AbnUnit& unit) {
      return AbnSums{memory.data() + chunk * kKinds * size + unit.channel, size};
    };
    each_chunk(false, [&](int64_t worker, int64_t chunk, const AbnUnit& unit) {
      pass_.reduce(unit, chunk, sums(chunk, unit), scratch.data() + worker * kScratch * size);
    });
    each_group([&](const AbnUnit& group) {
      const AbnSums total = sums(chunks, group);
      clear(group, total);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        pass_.combine(chunk, group.width, sums(chunk, group), total);
      }
      pass_.finish(group, total);
    });
  }

  // Calls task(worker, chunk, unit) for all of the map. `back`: from the last chunk on, whose
  // numbers are the likeliest to be in the cache.
  template <typename Task>
  void each_chunk(bool back, const Task& task) {
    const int64_t width = width_of_tasks(), across = groups(width), chunks = layout_.chunks();
    const int64_t all = chunks * across, together = std::max<int64_t>(1, all / (16 * workers_));
    run_tasks(ceil_div(all, together), workers_, [&](int64_t worker, int64_t turn) {
      const int64_t end = std::min(all, (turn + 1) * together);
      for (int64_t index = turn * together; index < end; ++index) {
        const int64_t place = back ? all - 1 - index : index, chunk = place / across;
        each_unit(group_at(place - chunk * across, width),
                  [&](const AbnUnit& unit) { task(worker, chunk, unit); });
      }
    });
  }

  // Calls task(group) for all channels.
  template <typename Task>
  void each_group(const Task& task) {
    constexpr int64_t kWidth = 256;
    const int64_t across = groups(kWidth);
    run_tasks(across, std::min(workers_, across),
              [&](int64_t, int64_t index) { task(group_at(index, kWidth)); });
  }

  // Channels of a task: where planes are small, neighbours that lie in a page or so; as for rows,
  // all, unless that makes too few tasks.
  int64_t width_of_tasks() const {
    if (layout_.rows()) {
      const int64_t wanted = ceil_div(4 * workers_, layout_.chunks());
      return round_up(ceil_div(layout_.channels(), wanted), kNarrowest);
    }
    const int64_t neighbours = ceil_div(1024, layout_.length());
    return std::max<int64_t>(1, std::min(neighbours, layout_.channels() / (4 * workers_)));
  }

  // Groups of at least `width` channels. Of rows none is narrow, as workers should not share cache
  // lines, and kernels sum up numbers of a few channels in another way.
  int64_t groups(int64_t width) const {
    const int64_t least = layout_.rows() ? kNarrowest : 1;
    return std::max<int64_t>(1, (layout_.channels() + width - least) / width);
  }
  AbnUnit group_at(int64_t index, int64_t width) const {
    const int64_t channel = index * width, rest = layout_.channels() - channel;
    return {channel, index + 1 == groups(width) ? rest : width};
  }

  template <typename Task>
  void each_unit(const AbnUnit& group, const Task& task) const {
    if (layout_.rows()) {
      task(group);
      return;
    }
    for (int64_t channel = group.channel; channel < group.channel + group.width; ++channel) {
      task(AbnUnit{channel, 1});
    }
  }

  const AbnLayout& layout_;
  const Pass& pass_;
  const torch::stable::Tensor& like_;
  int64_t workers_;
};

}  // namespace ocnet::cpu
