// SPDX-License-Identifier: MIT
// Backward pass: one block of tokens stays and gathers its gradients, all others stream past;
// nothing is added across blocks, so there are no atomics and no order but the one written here.
//
// Tokens that attend to themselves (X = query = key) need one pass of five products, because the
// tile of scores of block I against block J serves both roles:
//   S = X_I X_J^T         T1 = dO_I V_J^T          T2 = V_I dO_J^T
//   P = exp(scale * S - lse_I)                     P' = exp(scale * S - lse_J)
//   G = P (T1 - delta_I) + P' (T2 - delta_J)       delta = rowsum(dO * (O + residual))
//   dX_I = scale * sum_J G X_J                     dV_I = sum_J P' dO_J
// Otherwise one pass has the queries resident (the terms with P) and another the keys (P').
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "kernels.h"
#include "matrix.h"
#include "runtime.h"

namespace ocnet::cpu {

// Statistics of the query rows of all batch items, (N, L).
template <typename T>
struct RowStatistics {
  const T* lse;    // NaN where the forward row has no finite sum: every weight of such a row is NaN
  const T* delta;  // sum over channels of grad_out * out
};

// One pass over tiles. The resident tokens are queries, keys, or both.
template <typename T, typename Element>
struct BackwardPass {
  const Kernels<T>& run;
  bool as_queries, as_keys;
  // The two sides of the scores, and what belongs to the keys and to the queries among them.
  Matrices<const Element> resident, streamed, value, grad_out;
  std::optional<Matrices<Element>> grad_resident, grad_value;
  T scale;
  RowStatistics<T> rows;
  int64_t query_tokens;

  bool with_query_product() const { return as_queries && grad_resident.has_value(); }
  bool with_key_product() const { return as_keys && grad_resident.has_value(); }
  bool with_weights() const { return grad_value.has_value(); }

  int64_t channels() const { return resident.channels; }
  int64_t value_channels() const { return value.channels; }
  int64_t width() const { return grad_resident ? round_up(channels(), run.columns) : 0; }
  int64_t value_width() const {
    return with_weights() ? round_up(value_channels(), run.columns) : 0;
  }

  // Where the parts of a packed tile of streamed tokens begin, and its size, per token. A part that
  // is not needed takes nothing.
  struct Layout {
    int64_t scores, query_product, key_product, gradient, weights, total;
  };
  Layout layout() const {
    Layout at{};
    at.query_product = channels();
    at.key_product = at.query_product + (with_query_product() ? value_channels() : 0);
    at.gradient = at.key_product + (with_key_product() ? value_channels() : 0);
    at.weights = at.gradient + width();
    at.total = at.weights + value_width();
    return at;
  }

  // The memory of one worker: three tiles, the resident operands, the sums.
  struct Scratch {
    T *scores, *query_product, *key_product, *result;
    T *own, *own_grad_out, *own_value;
    T *sums, *value_sums, *one;
  };
  int64_t scratch_size() const {
    return kResident *
           (3 * kStream + channels() + 2 * value_channels() + width() + value_width() + 1);
  }
  Scratch divide(T* memory) const {
    Scratch at{};
    at.scores = memory;
    at.query_product = at.scores + kStream * kResident;
    at.key_product = at.query_product + kStream * kResident;
    at.result = as_queries ? at.query_product : at.key_product;
    at.own = at.key_product + kStream * kResident;
    at.own_grad_out = at.own + kResident * channels();
    at.own_value = at.own_grad_out + kResident * value_channels();
    at.sums = at.own_value + kResident * value_channels();
    at.value_sums = at.sums + kResident * width();
    at.one = at.value_sums + kResident * value_width();
    return at;
  }

  // Packs one tile of streamed tokens, part after part.
  void pack_tile(int64_t batch, int64_t token, T* tile) const {
    const int64_t count = std::min(kStream, streamed.tokens - token);
    const Layout at = layout();
    pack_by_token(streamed, batch, token, count, run.rows, tile);
    if (with_query_product()) {
      pack_by_token(value, batch, token, count, run.rows, tile + kStream * at.query_product);
    }
    if (with_key_product()) {
      pack_by_token(grad_out, batch, token, count, run.rows, tile + kStream * at.key_product);
    }
    if (grad_resident) {
      pack_by_channel(streamed, batch, token, count, run.columns, tile + kStream * at.gradient);
    }
    if (with_weights()) {
      pack_by_channel(grad_out, batch, token, count, run.columns, tile + kStream * at.weights);
    }
  }

  // Recomputes the scores of one tile and turns them into weights and gradients of the scores.
  void differentiate(const T* tile, int64_t batch, int64_t start, int64_t token,
                     const Scratch& at) const {
    const int64_t used = std::min(kResident, resident.tokens - start);
    const int64_t count = std::min(kStream, streamed.tokens - token);
    const int64_t groups = ceil_div(count, run.rows), depth = value_channels();
    const int64_t mine = batch * query_tokens + start, theirs = batch * query_tokens + token;
    const Layout part = layout();
    const auto kernel = !grad_resident ? run.weights
                        : !as_keys     ? run.gradient_of_queries
                        : as_queries   ? run.gradient_of_both
                                       : run.gradient_of_keys;
    for (int64_t column = 0; column < used; column += run.columns) {
      run.product(tile, groups, at.own + column * channels(), channels(), scale,
                  at.scores + column);
      if (with_query_product()) {
        run.product(tile + kStream * part.query_product, groups, at.own_grad_out + column * depth,
                    depth, T(1), at.query_product + column);
      }
      if (with_key_product()) {
        run.product(tile + kStream * part.key_product, groups, at.own_value + column * depth, depth,
                    T(1), at.key_product + column);
      }
      const GradientTile<T> step{at.scores + column,       at.query_product + column,
                                 at.key_product + column,  at.result + column,
                                 rows.lse + mine + column, rows.delta + mine + column,
                                 rows.lse + theirs,        rows.delta + theirs};
      kernel(step, count);
    }
  }

  // Gathers the gradients of one block of resident tokens from all streamed tokens.
  void block(const T* packed, int64_t batch, int64_t start, T* memory) const {
    const int64_t used = std::min(kResident, resident.tokens - start);
    const int64_t groups = ceil_div(used, run.rows);
    const Layout part = layout();
    const Scratch at = divide(memory);
    pack_by_token(resident, batch, start, used, run.columns, at.own);
    if (with_query_product()) {
      pack_by_token(grad_out, batch, start, used, run.columns, at.own_grad_out);
    }
    if (with_key_product()) {
      pack_by_token(value, batch, start, used, run.columns, at.own_value);
    }
    std::fill(at.sums, at.one, T(0));
    std::fill(at.one, at.one + kResident, T(1));
    for (int64_t token = 0; token < streamed.tokens; token += kStream) {
      const int64_t count = std::min(kStream, streamed.tokens - token);
      const T* const tile = packed + token * part.total;
      differentiate(tile, batch, start, token, at);
      for (int64_t channel = 0; channel < value_width(); channel += run.columns) {
        run.accumulate(at.scores, groups, tile + kStream * part.weights + channel * count, count,
                       at.one, at.value_sums + channel, value_width());
      }
      for (int64_t channel = 0; channel < width(); channel += run.columns) {
        run.accumulate(at.result, groups, tile + kStream * part.gradient + channel * count, count,
                       at.one, at.sums + channel, width());
      }
    }
    if (grad_resident) {
      unpack(at.sums, width(), *grad_resident, batch, start, used,
             [this](int64_t, T sum) { return sum * scale; });
    }
    if (grad_value) {
      unpack(at.value_sums, value_width(), *grad_value, batch, start, used,
             [](int64_t, T sum) { return sum; });
    }
  }

  void execute(const torch::stable::Tensor& like, int64_t batches) const {
    if (!grad_resident && !grad_value) {
      return;
    }
    const int64_t tiles = ceil_div(streamed.tokens, kStream);
    const int64_t blocks = ceil_div(resident.tokens, kResident);
    const int64_t at_once = batches_at_once(batches, tiles);
    const int64_t tile_size = kStream * layout().total;
    const int64_t workers = worker_count(at_once * std::max(tiles, blocks));
    const Buffer<T> packed(like, at_once * tiles * tile_size);
    const Buffer<T> scratch(like, workers * scratch_size());
    std::fill(scratch.data(), scratch.data() + workers * scratch_size(), T(0));
    for (int64_t first = 0; first < batches; first += at_once) {
      const int64_t here = std::min(at_once, batches - first);
      run_tasks(here * tiles, workers, [&](int64_t, int64_t index) {
        pack_tile(first + index / tiles, index % tiles * kStream,
                  packed.data() + index * tile_size);
      });
      run_tasks(here * blocks, workers, [&](int64_t worker, int64_t index) {
        const int64_t item = index / blocks;
        block(packed.data() + item * tiles * tile_size, first + item, index % blocks * kResident,
              scratch.data() + worker * scratch_size());
      });
    }
  }
};

// Row statistics of every query; `lse` and `delta` have room for (N, L) and one more block, which
// is set to 0.
template <typename T, typename Element>
void row_statistics(const Matrices<const Element>& out,
                    const std::optional<Matrices<const Element>>& residual,
                    const Matrices<const Element>& grad_out,
                    const torch::stable::Tensor& forward_lse, T* lse, T* delta) {
  const Kernels<T>& run = kernels<T>();
  const int64_t batches = forward_lse.size(0), tokens = out.tokens, rows = batches * tokens;
  const int64_t panels = ceil_div(tokens, run.columns), size = run.columns * out.channels;
  const int64_t workers = worker_count(batches * panels);
  const T* const given = static_cast<const T*>(forward_lse.data_ptr());
  const Buffer<T> scratch(forward_lse, workers * (3 * size + run.columns));
  std::transform(given, given + rows, lse, [](T value) {
    return std::isfinite(value) ? value : std::numeric_limits<T>::quiet_NaN();
  });
  std::fill(lse + rows, lse + rows + kResident, T(0));
  std::fill(delta + rows, delta + rows + kResident, T(0));
  run_tasks(batches * panels, workers, [&](int64_t worker, int64_t index) {
    const int64_t batch = index / panels, start = index % panels * run.columns;
    const int64_t used = std::min<int64_t>(run.columns, tokens - start);
    T* const left = scratch.data() + worker * (3 * size + run.columns);
    T* const right = left + size;
    T* const rest = right + size;
    T* const sums = rest + size;
    pack_by_token(grad_out, batch, start, used, run.columns, left);
    pack_by_token(out, batch, start, used, run.columns, right);
    if (residual) {
      pack_by_token(*residual, batch, start, used, run.columns, rest);
      std::transform(right, right + size, rest, right, std::plus<T>());
    }
    run.dot(left, right, out.channels, sums);
    std::copy(sums, sums + used, delta + batch * tokens + start);
  });
}

template <typename T, typename Element>
void backward(const torch::stable::Tensor& grad_out, const torch::stable::Tensor& query,
              const std::optional<torch::stable::Tensor>& key, const torch::stable::Tensor& value,
              const torch::stable::Tensor& out, const torch::stable::Tensor& lse,
              const std::optional<torch::stable::Tensor>& residual, double scale,
              const std::optional<torch::stable::Tensor>& grad_query,
              const std::optional<torch::stable::Tensor>& grad_key,
              const std::optional<torch::stable::Tensor>& grad_value) {
  const auto q = matrices<const Element>(query), g = matrices<const Element>(grad_out);
  const auto v = matrices<const Element>(value);
  const int64_t batches = query.size(0), rows = batches * q.tokens + kResident;
  const Buffer<T> row_lse(query, rows), delta(query, rows);
  row_statistics(matrices<const Element>(out), maybe_matrices<const Element>(residual), g, lse,
                 row_lse.data(), delta.data());
  const RowStatistics<T> statistics{row_lse.data(), delta.data()};
  const auto pass = [&](bool as_queries, bool as_keys, const Matrices<const Element>& resident,
                        const Matrices<const Element>& streamed, const auto& grad_resident,
                        const auto& grad_weights) {
    const BackwardPass<T, Element> work{kernels<T>(),
                                        as_queries,
                                        as_keys,
                                        resident,
                                        streamed,
                                        v,
                                        g,
                                        grad_resident,
                                        grad_weights,
                                        static_cast<T>(scale),
                                        statistics,
                                        q.tokens};
    work.execute(query, batches);
  };
  const std::optional<Matrices<Element>> none;
  if (!key) {
    pass(grad_query.has_value(), true, q, q, maybe_matrices<Element>(grad_query),
         maybe_matrices<Element>(grad_value));
    return;
  }
  const auto k = matrices<const Element>(*key);
  pass(true, false, q, k, maybe_matrices<Element>(grad_query), none);
  pass(false, true, k, q, maybe_matrices<Element>(grad_key), maybe_matrices<Element>(grad_value));
}

}  // namespace ocnet::cpu
