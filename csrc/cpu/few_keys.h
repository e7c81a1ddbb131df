// SPDX-License-Identifier: MIT
// Both passes where all keys fit into one tile: the regions of OCR. Queries are read and results
// are written where the caller has them, if rows of numbers of type T lie there; keys and values
// are packed once. A whole softmax row is at hand, so backward makes it anew and takes delta = sum
// over keys of P * (dO V^T) from it, exactly as the plain formula does: it needs neither the output
// nor lse.
//
//   S = Q K^T, P = softmax(scale * S)        T1 = dO V^T
//   O = P V                                  dS = P (T1 - delta)
//   dQ = scale * dS K    dK = scale * sum over queries of dS^T Q    dV = sum of P^T dO
//
// The sums over queries have a fixed number of copies, each of a run of blocks, added in order.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>

#include "calls.h"
#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"
#include "sums.h"

namespace ocnet::cpu {

// Keys or values of a few batch items.
template <typename T, typename Element>
class FewTokens {
 public:
  FewTokens(Workspace<T>& workspace, const Kernels<T>& run, const Matrices<const Element>& from,
            int64_t items, bool as_right, bool as_terms)
      : run_(run),
        from_(from),
        right_size_(as_right ? from.channels * round_up(from.tokens, run.columns) : 0),
        terms_size_(as_terms ? from.tokens * round_up(from.channels, run.columns) : 0),
        memory_(workspace, items * (right_size_ + terms_size_)) {}

  int64_t tokens() const { return from_.tokens; }
  int64_t channels() const { return from_.channels; }

  void pack(int64_t batch, int64_t item) const {
    if (right_size_ > 0) {
      pack_by_token(run_, from_, batch, 0, tokens(), at(item));
    }
    if (terms_size_ > 0) {
      pack_by_channel(run_, from_, batch, 0, tokens(), tokens(), at(item) + right_size_);
    }
  }

  // The panel of the tokens from one on.
  const T* right(int64_t item, int64_t token) const { return at(item) + token * channels(); }
  const T* terms(int64_t item) const { return at(item) + right_size_; }

 private:
  T* at(int64_t item) const { return memory_.data() + item * (right_size_ + terms_size_); }

  const Kernels<T>& run_;
  Matrices<const Element> from_;
  int64_t right_size_, terms_size_;
  Share<T> memory_;
};

// One block of at most kResident queries.
struct QueryBlock {
  int64_t batch, item, start, count;
};

// Rows of one block, in place or in memory of its worker.
template <typename T>
struct Rows {
  T* data;
  Panels at;
};

// What both passes do with blocks of queries.
template <typename T, typename Element>
struct FewKeys {
  const Kernels<T>& run;
  int64_t keys;

  int64_t blocks(int64_t tokens) const { return ceil_div(tokens, kResident); }
  // Rows of a tile that kernels fill: at least one register block.
  int64_t filled(const QueryBlock& block) const { return std::max<int64_t>(block.count, run.rows); }
  int64_t tile_size() const { return kResident * kStream; }
  int64_t rows_size(int64_t channels) const { return kResident * round_up(channels, run.columns); }

  // Whether register blocks and whole panels may be read from, or written to, a matrix itself.
  template <typename Any>
  bool in_place(const Matrices<Any>& matrix, const QueryBlock& block) const {
    return std::is_same_v<Element, T> && matrix.groups == nullptr && matrix.channel_stride == 1 &&
           matrix.channels % run.columns == 0 && block.count >= run.rows;
  }
  Rows<T> in_memory(T* memory) const { return {memory, {run.columns, kResident * run.columns}}; }

  Rows<const T> read(const Matrices<const Element>& from, const QueryBlock& block,
                     T* memory) const {
    if constexpr (std::is_same_v<Element, T>) {
      if (in_place(from, block)) {
        return {from.at(block.batch, block.start), {from.token_stride, run.columns}};
      }
    }
    pack_by_channel(run, from, block.batch, block.start, block.count, kResident, memory);
    const Rows<T> rows = in_memory(memory);
    return {rows.data, rows.at};
  }

  // tile[query][key] = factor * rows * tokens
  void multiply(const QueryBlock& block, const Rows<const T>& rows,
                const FewTokens<T, Element>& tokens, T factor, T* tile) const {
    for (int64_t key = 0; key < keys; key += run.columns) {
      run.few_product(rows.data, rows.at, filled(block), tokens.right(block.item, key),
                      tokens.channels(), factor, tile + key);
    }
  }

  // rows = factor * tile * tokens
  void apply(const QueryBlock& block, const T* tile, const FewTokens<T, Element>& tokens, T factor,
             const Rows<T>& rows) const {
    run.few_apply(tile, filled(block), tokens.terms(block.item), keys, tokens.channels(), factor,
                  rows.data, rows.at);
  }

  // sums[key] += transposed tile * rows
  void reduce(const QueryBlock& block, const T* tile, const Rows<const T>& rows, int64_t copy,
              const Sums<T>& sums) const {
    T* target = sums.at(block.item, copy, 0);
    const T* source = rows.data;
    for (int64_t channel = 0; channel < sums.width(); channel += run.columns) {
      run.few_reduce(tile, ceil_div(keys, run.rows), source, rows.at.row, block.count, target);
      target += round_up(keys, run.rows) * run.columns;
      source += rows.at.panel;
    }
  }

  // to = factor * tile * tokens, with what rounding takes from it in `residual`.
  void write(const QueryBlock& block, const T* tile, const FewTokens<T, Element>& tokens, T factor,
             const Matrices<Element>& to, const std::optional<Matrices<Element>>& residual,
             T* memory) const {
    if constexpr (std::is_same_v<Element, T>) {
      if (in_place(to, block) && !residual) {
        apply(block, tile, tokens, factor,
              {to.at(block.batch, block.start), {to.token_stride, run.columns}});
        return;
      }
    }
    const Rows<T> rows = in_memory(memory);
    apply(block, tile, tokens, factor, rows);
    unpack(run, rows.data, rows.at, to, block.batch, block.start, block.count,
           [](int64_t, T sum) { return sum; });
    if (residual) {
      unpack(run, rows.data, rows.at, *residual, block.batch, block.start, block.count,
             [](int64_t, T sum) { return sum - T(widen(static_cast<Element>(sum))); });
    }
  }
};

// How the work is divided: an item is cut into `parts` of queries. Items of one part are packed,
// computed and finished by one task, in memory of its worker; of others, a few live together.
struct FewTasks {
  int64_t batches, parts;

  int64_t at_once() const { return batches_at_once(batches, parts); }
  int64_t workers() const { return worker_count(parts == 1 ? batches : at_once() * parts); }
  // Items that have memory at a time, and are told apart by its number.
  int64_t items() const { return parts == 1 ? workers() : at_once(); }

  // Calls prepare(batch, item), then work(worker, batch, item, part) for every part, and then
  // finish(batch, item, share) for every share.
  template <typename Prepare, typename Work, typename Finish>
  void run(int64_t shares, const Prepare& prepare, const Work& work, const Finish& finish) const {
    if (parts == 1) {
      run_tasks(batches, workers(), [&](int64_t worker, int64_t batch) {
        prepare(batch, worker);
        work(worker, batch, worker, 0);
        for (int64_t share = 0; share < shares; ++share) {
          finish(batch, worker, share);
        }
      });
      return;
    }
    for (int64_t first = 0; first < batches; first += at_once()) {
      const int64_t here = std::min(at_once(), batches - first);
      run_tasks(here, worker_count(here),
                [&](int64_t, int64_t item) { prepare(first + item, item); });
      run_tasks(here * parts, workers(), [&](int64_t worker, int64_t index) {
        work(worker, first + index / parts, index / parts, index % parts);
      });
      run_tasks(here * shares, worker_count(here * shares), [&](int64_t, int64_t index) {
        finish(first + index / shares, index / shares, index % shares);
      });
    }
  }
};

template <typename T, typename Element>
void few_forward(const ForwardCall<T, Element>& call) {
  const Kernels<T>& run = kernels<T>();
  const auto &q = call.query, &to = call.out;
  const FewKeys<T, Element> few{run, call.key->tokens};
  const FewTasks tasks{call.batches, few.blocks(q.tokens)};
  Workspace<T> workspace(call.like);
  const FewTokens<T, Element> keys(workspace, run, *call.key, tasks.items(), true, false);
  const FewTokens<T, Element> values(workspace, run, call.value, tasks.items(), false, true);
  workspace.allocate();
  const int64_t rows_size = std::max(few.rows_size(q.channels), few.rows_size(to.channels));
  const int64_t scratch_size = few.tile_size() + rows_size + 2 * kResident;
  const Buffer<T> scratch(call.like, tasks.workers() * scratch_size);
  const auto attend = [&](const QueryBlock& block, T* tile) {
    T* const rows = tile + few.tile_size();
    T* const maximum = rows + rows_size;
    T* const total = maximum + kResident;
    few.multiply(block, few.read(q, block, rows), keys, call.scale, tile);
    run.few_softmax(tile, block.count, few.keys, maximum, total);
    few.write(block, tile, values, T(1), to, call.residual, rows);
    for (int64_t row = 0; row < block.count; ++row) {
      *call.lse.at(block.batch, block.start + row) = maximum[row] + std::log(total[row]);
    }
  };
  tasks.run(
      0,
      [&](int64_t batch, int64_t item) {
        keys.pack(batch, item);
        values.pack(batch, item);
      },
      [&](int64_t worker, int64_t batch, int64_t item, int64_t part) {
        const int64_t start = part * kResident;
        attend({batch, item, start, std::min(kResident, q.tokens - start)},
               scratch.data() + worker * scratch_size);
      },
      [](int64_t, int64_t, int64_t) {});
}

template <typename T, typename Element>
struct FewBackward {
  FewKeys<T, Element> few;
  const BackwardCall<T, Element>& call;
  const FewTokens<T, Element>&keys, &values;
  const std::optional<Sums<T>>&key_sums, &value_sums;

  int64_t rows_size() const {
    return std::max(few.rows_size(call.query.channels), few.rows_size(call.grad_out.channels));
  }
  int64_t scratch_size() const { return 2 * few.tile_size() + 3 * rows_size() + 2 * kResident; }

  int64_t sums_rows() const { return round_up(few.keys, few.run.rows); }

  // Adds what the queries of one block give to copy `copy` of the sums, and writes their gradient.
  void block(const QueryBlock& at, int64_t copy, T* weights) const {
    T* const gradient = weights + few.tile_size();
    T* const rows = gradient + few.tile_size();
    T* const statistics = rows + 3 * rows_size();
    const auto queries = few.read(call.query, at, rows);
    const auto grads = few.read(call.grad_out, at, rows + rows_size());
    few.multiply(at, queries, keys, call.scale, weights);
    few.run.few_softmax(weights, at.count, few.keys, statistics, statistics + kResident);
    if (value_sums) {
      few.reduce(at, weights, grads, copy, *value_sums);
    }
    if (!call.with_gradient()) {
      return;
    }
    few.multiply(at, grads, values, T(1), gradient);
    few.run.few_gradient(weights, gradient, at.count, few.keys);
    if (key_sums) {
      few.reduce(at, gradient, queries, copy, *key_sums);
    }
    if (call.grad_query) {
      few.write(at, gradient, keys, call.scale, *call.grad_query, std::nullopt,
                rows + 2 * rows_size());
    }
  }

  void clear(int64_t item) const {
    for (const auto* sums : {&key_sums, &value_sums}) {
      if (*sums) {
        (*sums)->clear(item, 0, sums_rows());
      }
    }
  }

  int64_t panels() const {
    return (key_sums ? key_sums->panels() : 0) + (value_sums ? value_sums->panels() : 0);
  }

  // Adds the copies of one panel and writes it; those of the keys come first.
  void finish(int64_t batch, int64_t item, int64_t panel) const {
    const int64_t of_keys = key_sums ? key_sums->panels() : 0;
    if (panel < of_keys) {
      finish(batch, item, panel, *key_sums, *call.grad_key, call.scale);
    } else {
      finish(batch, item, panel - of_keys, *value_sums, *call.grad_value, T(1));
    }
  }

  void finish(int64_t batch, int64_t item, int64_t panel, const Sums<T>& sums, Matrices<Element> to,
              T factor) const {
    const int64_t columns = few.run.columns, size = sums_rows() * columns;
    sums.add_copies(item, 0, panel, sums_rows());
    to.data += panel * columns * to.channel_stride;
    to.channels = std::min(columns, to.channels - panel * columns);
    unpack(few.run, sums.at(item, 0, 0) + panel * size, {columns, size}, to, batch, 0, few.keys,
           [factor](int64_t, T sum) { return sum * factor; });
  }
};

template <typename T, typename Element>
void few_backward(const BackwardCall<T, Element>& call) {
  const Kernels<T>& run = kernels<T>();
  const FewKeys<T, Element> few{run, call.key->tokens};
  const int64_t tokens = call.query.tokens, blocks = few.blocks(tokens);
  // Enough copies for many cores, of enough queries each that the copies are a small part of it
  // all.
  const int64_t chunk = std::max(ceil_div(4 * few.keys, kResident), ceil_div(blocks, 16));
  const FewTasks tasks{call.batches, ceil_div(blocks, chunk)};
  Workspace<T> workspace(call.like);
  const FewTokens<T, Element> keys(workspace, run, *call.key, tasks.items(), true,
                                   call.grad_query.has_value());
  const FewTokens<T, Element> values(workspace, run, call.value, tasks.items(),
                                     call.with_gradient(), false);
  std::optional<Sums<T>> key_sums, value_sums;
  const int64_t rows = round_up(few.keys, run.rows);
  if (call.grad_key) {
    key_sums.emplace(workspace, run, rows, 1, keys.channels(), tasks.items(), tasks.parts);
  }
  if (call.grad_value) {
    value_sums.emplace(workspace, run, rows, 1, values.channels(), tasks.items(), tasks.parts);
  }
  workspace.allocate();
  const FewBackward<T, Element> pass{few, call, keys, values, key_sums, value_sums};
  const Buffer<T> scratch(call.like, tasks.workers() * pass.scratch_size());
  tasks.run(
      pass.panels(),
      [&](int64_t batch, int64_t item) {
        keys.pack(batch, item);
        values.pack(batch, item);
        pass.clear(item);
      },
      [&](int64_t worker, int64_t batch, int64_t item, int64_t part) {
        const int64_t end = std::min(tokens, (part + 1) * chunk * kResident);
        for (int64_t start = part * chunk * kResident; start < end; start += kResident) {
          pass.block({batch, item, start, std::min(kResident, end - start)}, part,
                     scratch.data() + worker * pass.scratch_size());
        }
      },
      [&](int64_t batch, int64_t item, int64_t panel) { pass.finish(batch, item, panel); });
}

}  // namespace ocnet::cpu
