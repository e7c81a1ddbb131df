// SPDX-License-Identifier: MIT
// Backward pass: every pair of blocks of tokens is met once, and what its tile of scores gives to
// the gradients of either block is added there. run_rounds gives each block its pairs one after
// another in a fixed order, so there are no atomics, and no order but the one written here.
//
// Queries I (resident, columns of a tile) against keys J (streamed, rows):
//   S = Q_I K_J^T            T1 = dO_I V_J^T
//   P = exp(scale * S - lse_I)
//   dS = P (T1 - delta_I)    delta = rowsum(dO * (O + residual))
//   dQ_I += scale * dS K_J   dK_J += scale * dS^T Q_I   dV_J += P^T dO_I
//
// Where tokens attend to themselves (X = query = key), S serves both orders of a pair of blocks:
//   T2 = V_I dO_J^T          P' = exp(scale * S - lse_J)
//   G = P (T1 - delta_I) + P' (T2 - delta_J)
//   dX_I += scale * G X_J    dX_J += scale * G^T X_I
//   dV_I += P' dO_J          dV_J += P^T dO_I
// A block against itself gives to the resident side alone: the other side is the same.
#pragma once

#include <algorithm>
#include <optional>

#include "calls.h"
#include "few_keys.h"
#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "row_statistics.h"
#include "runtime.h"
#include "schedule.h"
#include "staging.h"
#include "sums.h"

namespace ocnet::cpu {

// One side of the scores: its packed matrices and the sums of its gradients, where there are any.
template <typename T, typename Element>
struct Side {
  Packed<T, Element> features;
  std::optional<Packed<T, Element>> value, grad_out;
  std::optional<Sums<T>> feature_sums, value_sums;

  int64_t blocks() const { return features.blocks(); }
  void pack(int64_t batch, int64_t item, int64_t block, int64_t row_block) const {
    const int64_t rows = round_up(features.count(block), row_block);
    features.pack(batch, item, block);
    if (value) {
      value->pack(batch, item, block);
    }
    if (grad_out) {
      grad_out->pack(batch, item, block);
    }
    if (feature_sums) {
      feature_sums->clear(item, block, rows);
    }
    if (value_sums) {
      value_sums->clear(item, block, rows);
    }
  }
};

// All tasks of a few batch items.
template <typename T, typename Element>
struct Backward {
  const Kernels<T>& run;
  bool shared, with_gradient, with_values;
  const Side<T, Element>&queries, &keys;  // one object if shared
  const RowStatistics<T, Element>& rows;
  T scale;

  // Which batch item, and where its packed copies and sums are.
  struct Place {
    int64_t batch, item;
  };

  // The memory of one worker: tiles and the resident operands.
  struct Scratch {
    T *scores, *query_product, *key_product, *gradient;
    T *features, *grad_out, *value;
    Opened<T> key_features, others;  // the features of the keys stay open for a whole task
  };
  int64_t value_width() const { return queries.grad_out->width(); }
  int64_t tile() const { return keys.features.capacity() * kResident; }
  int64_t tiles() const { return (run.per_unit == 1 ? 3 : 4) * tile(); }
  int64_t scratch_size() const {
    const int64_t resident = kResident * (queries.features.width() + 2 * value_width());
    int64_t opened = 0;
    for (const Side<T, Element>* side : {&queries, &keys}) {
      opened = std::max(opened, side->features.opened_size());
      opened = std::max(opened, side->value ? side->value->opened_size() : 0);
      opened = std::max(opened, side->grad_out ? side->grad_out->opened_size() : 0);
    }
    return std::max(tiles() + resident + keys.features.opened_size() + opened, rows.scratch_size());
  }
  Scratch divide(T* memory) const {
    Scratch at{};
    at.scores = memory;
    at.query_product = at.scores + tile();
    at.key_product = at.query_product + tile();
    at.gradient = run.per_unit == 1 ? at.query_product : at.key_product + tile();
    at.features = memory + tiles();
    at.grad_out = at.features + kResident * queries.features.width();
    at.value = at.grad_out + kResident * value_width();
    at.key_features.memory = at.value + kResident * value_width();
    at.others.memory = at.key_features.memory + keys.features.opened_size();
    return at;
  }

  // Recomputes the scores of one tile and turns them into weights and gradients of the scores.
  void differentiate(const Place& place, const Schedule::Task& task, int64_t start, int64_t used,
                     Scratch& at) const {
    const int64_t block = task.key_block, count = keys.features.count(block);
    const int64_t groups = ceil_div(count, run.rows);
    const int64_t mine = task.query_block * queries.features.capacity() + start;
    const int64_t theirs = shared ? block * keys.features.capacity() : 0;
    const auto multiply = [&](const Packed<T, Element>& by, Opened<T>& opened, const T* right,
                              T factor, T* tile) {
      const T* const left = by.left(place.item, block, opened);
      for (int64_t column = 0; column < used; column += run.columns) {
        run.product(left, by.left_panel(), groups, right + column * by.width(), by.depth(), factor,
                    tile + column);
      }
    };
    multiply(keys.features, at.key_features, at.features, scale, at.scores);
    if (with_gradient) {
      multiply(*keys.value, at.others, at.grad_out, T(1), at.query_product);
    }
    if (with_gradient && shared) {
      multiply(*keys.grad_out, at.others, at.value, T(1), at.key_product);
    }
    const auto kernel = shared ? (with_gradient ? run.gradient_of_both : run.weights_of_both)
                               : (with_gradient ? run.gradient_of_queries : run.weights_of_queries);
    for (int64_t column = 0; column < used; column += run.columns) {
      const GradientTile<T> step{at.scores + column,
                                 at.query_product + column,
                                 at.key_product + column,
                                 at.gradient + column,
                                 rows.lse(place.batch, mine + column),
                                 rows.delta(place.batch, mine + column),
                                 rows.lse(place.batch, theirs),
                                 rows.delta(place.batch, theirs),
                                 column,
                                 used};
      kernel(step, count);
    }
  }

  // sums[query] += tile read by columns * terms of the keys.
  void add_to_queries(const T* tile, const Packed<T, Element>& of_keys, int64_t item,
                      int64_t key_block, int64_t start, int64_t used, const Sums<T>& sums,
                      T* target, Opened<T>& opened) const {
    const int64_t count = of_keys.count(key_block), depth = ceil_div(count, run.per_unit);
    const T* terms = of_keys.terms(item, key_block, {0, count}, opened);
    target += start * run.columns;
    for (int64_t channel = 0; channel < sums.width(); channel += run.columns) {
      run.add_by_columns(tile, ceil_div(used, run.rows), terms, depth,
                         target + channel * queries.features.capacity());
      terms += of_keys.terms_panel();
    }
  }

  // sums[key] += tile read by rows * terms of the queries.
  void add_to_keys(const T* tile, const Packed<T, Element>& of_queries, int64_t item,
                   int64_t query_block, int64_t start, int64_t used, int64_t count,
                   const Sums<T>& sums, T* target, Opened<T>& opened) const {
    const T* terms = of_queries.terms(item, query_block, {start, used}, opened) +
                     start / run.per_unit * int64_t{run.columns};
    for (int64_t channel = 0; channel < sums.width(); channel += run.columns) {
      run.add_by_rows(tile, ceil_div(count, run.rows), terms, ceil_div(used, run.per_unit),
                      target + channel * keys.features.capacity());
      terms += of_queries.terms_panel();
    }
  }

  // Adds to the gradients what one block of queries and one block of keys give them.
  void pair(const Place& place, const Schedule::Task& task, T* memory) const {
    Scratch at = divide(memory);
    const int64_t query = task.query_block, key = task.key_block;
    const int64_t tokens = queries.features.count(query), count = keys.features.count(key);
    const bool to_itself = shared && query == key;
    for (int64_t start = 0; start < tokens; start += kResident) {
      const int64_t used = std::min(kResident, tokens - start);
      queries.features.as_right(place.item, query, start, at.features);
      if (with_gradient) {
        queries.grad_out->as_right(place.item, query, start, at.grad_out);
      }
      if (with_gradient && shared) {
        queries.value->as_right(place.item, query, start, at.value);
      }
      differentiate(place, task, start, used, at);
      if (shared && with_values) {
        add_to_queries(at.scores, *keys.grad_out, place.item, key, start, used, *queries.value_sums,
                       queries.value_sums->at(place.item, 0, query), at.others);
      }
      if (queries.feature_sums) {
        add_to_queries(
            at.gradient, keys.features, place.item, key, start, used, *queries.feature_sums,
            queries.feature_sums->at(place.item, task.query_copy, query), at.key_features);
      }
      if (keys.value_sums && !to_itself) {
        add_to_keys(at.key_product, *queries.grad_out, place.item, query, start, used, count,
                    *keys.value_sums, keys.value_sums->at(place.item, task.key_copy, key),
                    at.others);
      }
      if (keys.feature_sums && !to_itself) {
        add_to_keys(at.query_product, queries.features, place.item, query, start, used, count,
                    *keys.feature_sums, keys.feature_sums->at(place.item, task.key_copy, key),
                    at.others);
      }
    }
  }
};

// Packs, runs all pairs and writes the gradients, a few batch items at a time.
template <typename T, typename Element>
struct Gradients {
  const Backward<T, Element>& work;
  std::optional<Matrices<Element>> grad_query, grad_key, grad_value;

  Schedule schedule;

  void execute(const torch::stable::Tensor& like, int64_t batches, int64_t at_once) const {
    const int64_t workers = worker_count(at_once * (work.queries.blocks() + work.keys.blocks()));
    const Buffer<T> memory(like, workers * work.scratch_size());
    const auto scratch = [&](int64_t worker) {
      return memory.data() + worker * work.scratch_size();
    };
    for (int64_t first = 0; first < batches; first += at_once) {
      const int64_t here = std::min(at_once, batches - first);
      each_block(here, workers, [&](int64_t worker, const auto& side, int64_t item, int64_t block) {
        prepare(side, first + item, item, block, scratch(worker));
      });
      schedule.run(here, workers, [&](int64_t worker, int64_t item, const BlockPair& pair) {
        work.pair({first + item, item}, schedule.task(pair), scratch(worker));
      });
      each_block(here, workers, [&](int64_t, const auto& side, int64_t item, int64_t block) {
        write(side, first + item, item, block);
      });
    }
  }

  // Calls task(worker, side, item, block) for all blocks of both sides, or of the one that is both.
  template <typename Task>
  void each_block(int64_t items, int64_t workers, const Task& task) const {
    const int64_t of_queries = work.queries.blocks();
    const int64_t of_keys = work.shared ? 0 : work.keys.blocks(), blocks = of_queries + of_keys;
    run_tasks(items * blocks, workers, [&](int64_t worker, int64_t index) {
      const int64_t item = index / blocks, block = index % blocks;
      if (block < of_queries) {
        task(worker, work.queries, item, block);
      } else {
        task(worker, work.keys, item, block - of_queries);
      }
    });
  }

  void prepare(const Side<T, Element>& side, int64_t batch, int64_t item, int64_t block,
               T* scratch) const {
    if (&side == &work.queries) {
      work.rows.compute(batch, block * side.features.capacity(), side.features.count(block),
                        scratch);
    }
    side.pack(batch, item, block, work.run.rows);
  }

  void write(const Side<T, Element>& side, int64_t batch, int64_t item, int64_t block) const {
    const auto& grad_features = &side == &work.queries ? grad_query : grad_key;
    const int64_t count = side.features.count(block), capacity = side.features.capacity();
    const int64_t rows = round_up(count, work.run.rows), start = block * capacity;
    const Panels panels{work.run.columns, capacity * work.run.columns};
    if (grad_features) {
      unpack(work.run, side.feature_sums->total(item, block, rows), panels, *grad_features, batch,
             start, count, [this](int64_t, T sum) { return sum * work.scale; });
    }
    if (side.value_sums) {
      unpack(work.run, side.value_sums->total(item, block, rows), panels, *grad_value, batch, start,
             count, [](int64_t, T sum) { return sum; });
    }
  }
};

template <typename T, typename Element>
void backward(const BackwardCall<T, Element>& call) {
  const bool with_gradient = call.with_gradient(), with_values = call.grad_value.has_value();
  if (!with_gradient && !with_values) {
    return;
  }
  const bool few = call.key && call.key->tokens <= kStream;
  if constexpr (std::is_same_v<T, Element>) {
    const int64_t together = groups_together<T>(call.query, call.batches);
    if (together > 1) {
      backward_in_stages(call, together, few, [](const auto& inner) { backward(inner); });
      return;
    }
  }
  if (few) {
    few_backward(call);
    return;
  }
  const Kernels<T>& run = kernels_for<T, Element>();
  const bool shared = !call.key;
  const auto &q = call.query, &k = shared ? call.query : *call.key;
  const int64_t batches = call.batches;
  const RowStatistics<T, Element> rows(call.out, call.residual, call.grad_out, call.lse, call.like,
                                       batches);
  const int64_t query_capacity = block_capacity(q.tokens);
  const int64_t key_capacity = block_capacity(k.tokens);
  const Schedule schedule(shared, ceil_div(q.tokens, query_capacity),
                          ceil_div(k.tokens, key_capacity));
  const int64_t at_once = batches_at_once(batches, schedule.most_tasks());
  Workspace<T> workspace(call.like);
  const auto packed = [&](const Matrices<const Element>& from, int64_t capacity) {
    return Packed<T, Element>(workspace, run, from, capacity, at_once);
  };
  const auto sums = [&](bool wanted, const Packed<T, Element>& like, int64_t channels,
                        int64_t copies) {
    return wanted ? std::optional<Sums<T>>(std::in_place, workspace, run, like.capacity(),
                                           like.blocks(), channels, at_once, copies)
                  : std::nullopt;
  };
  Side<T, Element> queries{packed(q, query_capacity), {}, {}, {}, {}};
  queries.grad_out.emplace(packed(call.grad_out, query_capacity));
  queries.feature_sums =
      sums(call.grad_query.has_value(), queries.features, q.channels, schedule.query_copies());
  std::optional<Side<T, Element>> others;
  if (!shared) {
    others.emplace(Side<T, Element>{packed(k, key_capacity), {}, {}, {}, {}});
    others->feature_sums =
        sums(call.grad_key.has_value(), others->features, k.channels, schedule.key_copies());
  }
  Side<T, Element>& keys = shared ? queries : *others;
  if (with_gradient) {
    keys.value.emplace(packed(call.value, key_capacity));
  }
  keys.value_sums = sums(with_values, keys.features, call.value.channels, schedule.key_copies());
  workspace.allocate();
  const Backward<T, Element> work{run,     shared, with_gradient, with_values,
                                  queries, keys,   rows,          call.scale};
  const Gradients<T, Element> gradients{work, call.grad_query, call.grad_key, call.grad_value,
                                        schedule};
  gradients.execute(call.like, batches, at_once);
}

}  // namespace ocnet::cpu
