// SPDX-License-Identifier: MIT
// Forward pass. Queries and keys apart: query blocks stay, keys and values stream past, the softmax
// runs along. Tokens that attend to themselves: every pair of blocks is met once, because its tile
// of scores read by columns and by rows serves both; run_rounds gives each block its pairs one
// after another in a fixed order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "calls.h"
#include "few_keys.h"
#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"
#include "schedule.h"
#include "staging.h"
#include "sums.h"

namespace ocnet::cpu {

// Where the results of a forward pass go.
template <typename T, typename Element>
struct ForwardResults {
  Matrices<Element> out;
  std::optional<Matrices<Element>> residual;
  Matrices<T> lse;

  // Writes `count` rows from their sums, maxima and totals.
  void write(const Kernels<T>& run, int64_t batch, int64_t start, int64_t count, const T* sums,
             int64_t capacity, const T* maximum, const T* total) const {
    const Panels panels{run.columns, capacity * run.columns};
    unpack(run, sums, panels, out, batch, start, count,
           [&](int64_t row, T sum) { return sum / total[row]; });
    if (residual) {
      unpack(run, sums, panels, *residual, batch, start, count, [&](int64_t row, T sum) {
        const T exact = sum / total[row];
        return exact - T(widen(static_cast<Element>(exact)));
      });
    }
    for (int64_t row = 0; row < count; ++row) {
      *lse.at(batch, start + row) = maximum[row] + std::log(total[row]);
    }
  }
};

// What one task of the forward pass needs besides its own index.
template <typename T, typename Element>
struct Forward {
  const Kernels<T>& run;
  Matrices<const Element> query;
  const Packed<T, Element>&keys, &values;
  ForwardResults<T, Element> results;
  T scale;

  int64_t scratch_size() const {
    return kStream * kResident + kResident * (keys.width() + values.sum_width() + 3) +
           std::max(keys.opened_size(), values.opened_size());
  }

  // Attends from one block of resident queries to all tokens of a batch item.
  void block(int64_t batch, int64_t item, int64_t start, T* scratch) const {
    const int64_t used = std::min(kResident, query.tokens - start), columns = run.columns;
    T* const tile = scratch;
    T* const resident = tile + kStream * kResident;
    T* const sums = resident + kResident * keys.width();
    T* const maximum = sums + kResident * values.sum_width();
    T* const total = maximum + kResident;
    T* const factor = total + kResident;
    Opened<T> opened{factor + kResident};
    pack_right(batch, start, used, resident);
    std::fill(sums, maximum, T(0));
    std::fill(maximum, total, -std::numeric_limits<T>::infinity());
    std::fill(total, factor + kResident, T(0));
    for (int64_t block = 0; block < keys.blocks(); ++block) {
      const int64_t count = keys.count(block);
      const T* const left = keys.left(item, block, opened);
      for (int64_t column = 0; column < used; column += columns) {
        run.product(left, keys.left_panel(), ceil_div(count, run.rows),
                    resident + column * keys.width(), keys.depth(), scale, tile + column);
        run.softmax(tile + column, count, maximum + column, total + column, factor + column);
      }
      const T* terms = values.terms(item, block, {0, count}, opened);
      for (int64_t channel = 0; channel < values.sum_width(); channel += columns) {
        run.accumulate(tile, ceil_div(used, run.rows), terms, ceil_div(count, run.per_unit), factor,
                       sums + channel * kResident, columns);
        terms += values.terms_panel();
      }
    }
    results.write(run, batch, start, used, sums, kResident, maximum, total);
  }

  // The queries themselves as a right operand: panels of tokens.
  void pack_right(int64_t batch, int64_t start, int64_t used, T* target) const {
    const int64_t per_unit = run.per_unit, channels = query.channels;
    const TokenRange<const Element> tokens(query, batch, start);
    const Units units{keys.depth(),
                      used,
                      {per_unit * query.channel_stride},
                      tokens.steps,
                      query.channel_stride,
                      channels % per_unit ? channels / per_unit : -1,
                      -1};
    pack_units(run, tokens.source, units, keys.width(), target);
  }
};

// Tokens that attend to themselves.
template <typename T, typename Element>
struct SharedForward {
  const Kernels<T>& run;
  const Packed<T, Element>&features, &values;
  const Sums<T>& sums;
  ForwardResults<T, Element> results;
  T scale;
  T* statistics;  // maximum and total of every token of every block

  int64_t capacity() const { return features.capacity(); }
  T* maximum(int64_t item, int64_t block) const {
    return statistics + (item * features.blocks() + block) * 2 * capacity();
  }
  T* total(int64_t item, int64_t block) const { return maximum(item, block) + capacity(); }
  int64_t scratch_size() const {
    return 2 * kStream * kResident + kStream + kResident * features.width() +
           features.opened_size() + values.opened_size();
  }

  void prepare(int64_t batch, int64_t item, int64_t block) const {
    features.pack(batch, item, block);
    values.pack(batch, item, block);
    sums.clear(item, block, round_up(features.count(block), run.rows));
    T* const highest = maximum(item, block);
    std::fill(highest, highest + capacity(), -std::numeric_limits<T>::infinity());
    std::fill(highest + capacity(), highest + 2 * capacity(), T(0));
  }

  void write(int64_t batch, int64_t item, int64_t block) const {
    results.write(run, batch, block * capacity(), features.count(block), sums.at(item, 0, block),
                  capacity(), maximum(item, block), total(item, block));
  }

  // What the tokens of two blocks take from each other. The columns of a tile are from the first.
  void pair(int64_t item, const BlockPair& blocks, T* scratch) const {
    const int64_t tokens = features.count(blocks.first), count = features.count(blocks.second);
    T* const tile = scratch;
    T* const weights = tile + kStream * kResident;
    T* const factor = weights + kStream * kResident;
    T* const resident = factor + kStream;
    Opened<T> left_opened{resident + kResident * features.width()};  // the same for all columns
    Opened<T> terms_opened{left_opened.memory + features.opened_size()};
    for (int64_t start = 0; start < tokens; start += kResident) {
      const int64_t used = std::min(kResident, tokens - start);
      features.as_right(item, blocks.first, start, resident);
      const T* const left = features.left(item, blocks.second, left_opened);
      for (int64_t column = 0; column < used; column += run.columns) {
        run.product(left, features.left_panel(), ceil_div(count, run.rows),
                    resident + column * features.width(), features.depth(), scale, tile + column);
      }
      if (blocks.first != blocks.second) {
        run.softmax_by_rows(tile, count, used, weights, maximum(item, blocks.second),
                            total(item, blocks.second), factor);
        const T* const terms = values.terms(item, blocks.first, {start, used}, terms_opened);
        add_to_rows(item, blocks, start, used, weights, factor, terms);
      }
      for (int64_t column = 0; column < used; column += run.columns) {
        const int64_t at = start + column;
        run.softmax(tile + column, count, maximum(item, blocks.first) + at,
                    total(item, blocks.first) + at, factor + column);
      }
      const T* const terms = values.terms(item, blocks.second, {0, count}, terms_opened);
      add_to_columns(item, blocks, start, used, tile, factor, terms);
    }
  }

  void add_to_rows(int64_t item, const BlockPair& blocks, int64_t start, int64_t used,
                   const T* weights, const T* factor, const T* terms) const {
    const int64_t groups = ceil_div(features.count(blocks.second), run.rows);
    terms += start / run.per_unit * int64_t{run.columns};
    T* output = sums.at(item, 0, blocks.second);
    for (int64_t channel = 0; channel < sums.width(); channel += run.columns) {
      run.accumulate_by_rows(weights, groups, terms, ceil_div(used, run.per_unit), factor, output);
      terms += values.terms_panel();
      output += capacity() * run.columns;
    }
  }

  void add_to_columns(int64_t item, const BlockPair& blocks, int64_t start, int64_t used,
                      const T* tile, const T* factor, const T* terms) const {
    const int64_t depth = ceil_div(features.count(blocks.second), run.per_unit);
    T* output = sums.at(item, 0, blocks.first) + start * run.columns;
    for (int64_t channel = 0; channel < sums.width(); channel += run.columns) {
      run.accumulate(tile, ceil_div(used, run.rows), terms, depth, factor, output, run.columns);
      terms += values.terms_panel();
      output += capacity() * run.columns;
    }
  }
};

template <typename T, typename Element>
void shared_forward(const ForwardCall<T, Element>& call,
                    const ForwardResults<T, Element>& results) {
  const Kernels<T>& run = kernels_for<T, Element>();
  const auto &tokens = call.query, &v = call.value;
  const int64_t batches = call.batches, capacity = block_capacity(tokens.tokens);
  const int64_t blocks = ceil_div(tokens.tokens, capacity);
  const Schedule schedule(true, blocks, blocks);
  const int64_t at_once = batches_at_once(batches, schedule.most_tasks());
  Workspace<T> workspace(call.like);
  const Packed<T, Element> features(workspace, run, tokens, capacity, at_once);
  const Packed<T, Element> values(workspace, run, v, capacity, at_once);
  const Sums<T> sums(workspace, run, capacity, blocks, v.channels, at_once, 1);
  workspace.allocate();
  const Buffer<T> statistics(call.like, at_once * blocks * 2 * capacity);
  const SharedForward<T, Element> pass{run,     features,   values,           sums,
                                       results, call.scale, statistics.data()};
  const int64_t workers = worker_count(at_once * schedule.most_tasks());
  const Buffer<T> scratch(call.like, workers * pass.scratch_size());
  for (int64_t first = 0; first < batches; first += at_once) {
    const int64_t here = std::min(at_once, batches - first), tasks = here * blocks;
    run_tasks(tasks, worker_count(tasks), [&](int64_t, int64_t index) {
      pass.prepare(first + index / blocks, index / blocks, index % blocks);
    });
    schedule.run(here, workers, [&](int64_t worker, int64_t item, const BlockPair& pair) {
      pass.pair(item, pair, scratch.data() + worker * pass.scratch_size());
    });
    run_tasks(tasks, worker_count(tasks), [&](int64_t, int64_t index) {
      pass.write(first + index / blocks, index / blocks, index % blocks);
    });
  }
}

template <typename T, typename Element>
void forward(const ForwardCall<T, Element>& call) {
  if constexpr (std::is_same_v<T, Element>) {
    const int64_t together = groups_together<T>(call.query, call.batches);
    if (together > 1) {
      forward_in_stages(call, together, [](const auto& inner) { forward(inner); });
      return;
    }
  }
  const ForwardResults<T, Element> results{call.out, call.residual, call.lse};
  if (!call.key) {
    shared_forward(call, results);
    return;
  }
  if (call.key->tokens <= kStream) {
    few_forward(call);
    return;
  }
  const Kernels<T>& run = kernels_for<T, Element>();
  const int64_t batches = call.batches, blocks = ceil_div(call.query.tokens, kResident);
  const int64_t at_once = batches_at_once(batches, blocks);
  Workspace<T> workspace(call.like);
  const Packed<T, Element> keys(workspace, run, *call.key, kStream, at_once);
  const Packed<T, Element> values(workspace, run, call.value, kStream, at_once);
  workspace.allocate();
  const Forward<T, Element> pass{run, call.query, keys, values, results, call.scale};
  const int64_t workers = worker_count(at_once * std::max(keys.blocks(), blocks));
  const Buffer<T> scratch(call.like, workers * pass.scratch_size());
  for (int64_t first = 0; first < batches; first += at_once) {
    const int64_t here = std::min(at_once, batches - first);
    run_tasks(here * keys.blocks(), workers, [&](int64_t, int64_t index) {
      const int64_t item = index / keys.blocks(), block = index % keys.blocks();
      keys.pack(first + item, item, block);
      values.pack(first + item, item, block);
    });
    run_tasks(here * blocks, workers, [&](int64_t worker, int64_t index) {
      const int64_t item = index / blocks;
      pass.block(first + item, item, index % blocks * kResident,
                 scratch.data() + worker * pass.scratch_size());
    });
  }
}

}  // namespace ocnet::cpu
