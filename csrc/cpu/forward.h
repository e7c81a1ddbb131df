// SPDX-License-Identifier: MIT
// Forward pass: query blocks stay, keys and values stream past, the softmax runs along.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "kernels.h"
#include "matrix.h"
#include "runtime.h"

namespace ocnet::cpu {

// What one task of the forward pass needs besides its own index.
template <typename T, typename Element>
struct Forward {
  const Kernels<T>& run;
  Matrices<const Element> query;
  Matrices<Element> out;
  std::optional<Matrices<Element>> residual;
  int64_t streamed;
  T scale;
  T* lse;

  int64_t value_width() const { return round_up(out.channels, run.columns); }
  int64_t scratch_size() const {
    return kStream * kResident + kResident * (query.channels + value_width() + 3);
  }

  // Attends from one block of resident queries to all tokens of a batch item.
  void block(const T* keys, const T* values, int64_t batch, int64_t start, T* scratch) const {
    const int64_t used = std::min(kResident, query.tokens - start), width = value_width();
    T* const tile = scratch;
    T* const resident = tile + kStream * kResident;
    T* const sums = resident + kResident * query.channels;
    T* const maximum = sums + kResident * width;
    T* const total = maximum + kResident;
    T* const factor = total + kResident;
    pack_by_token(query, batch, start, used, run.columns, resident);
    std::fill(sums, sums + kResident * width, T(0));
    std::fill(maximum, maximum + kResident, -std::numeric_limits<T>::infinity());
    std::fill(total, factor + kResident, T(0));
    for (int64_t token = 0; token < streamed; token += kStream) {
      const int64_t count = std::min(kStream, streamed - token);
      for (int64_t column = 0; column < used; column += run.columns) {
        run.product(keys + token * query.channels, ceil_div(count, run.rows),
                    resident + column * query.channels, query.channels, scale, tile + column);
        run.softmax(tile + column, count, maximum + column, total + column, factor + column);
      }
      for (int64_t channel = 0; channel < width; channel += run.columns) {
        run.accumulate(tile, ceil_div(used, run.rows), values + token * width + channel * count,
                       count, factor, sums + channel, width);
      }
    }
    unpack(sums, width, out, batch, start, used,
           [&](int64_t row, T sum) { return sum / total[row]; });
    if (residual) {
      unpack(sums, width, *residual, batch, start, used, [&](int64_t row, T sum) {
        const T exact = sum / total[row];
        return exact - T(widen(static_cast<Element>(exact)));
      });
    }
    for (int64_t row = 0; row < used; ++row) {
      lse[batch * query.tokens + start + row] = maximum[row] + std::log(total[row]);
    }
  }
};

template <typename T, typename Element>
void forward(const torch::stable::Tensor& query, const torch::stable::Tensor& key,
             const torch::stable::Tensor& value, double scale, const torch::stable::Tensor& out,
             const torch::stable::Tensor& lse,
             const std::optional<torch::stable::Tensor>& residual) {
  const auto keys = matrices<const Element>(key), values = matrices<const Element>(value);
  const Forward<T, Element> pass{kernels<T>(),
                                 matrices<const Element>(query),
                                 matrices<Element>(out),
                                 maybe_matrices<Element>(residual),
                                 keys.tokens,
                                 static_cast<T>(scale),
                                 static_cast<T*>(lse.data_ptr())};
  const int64_t tiles = ceil_div(keys.tokens, kStream);
  const int64_t blocks = ceil_div(pass.query.tokens, kResident);
  const int64_t batches = query.size(0), at_once = batches_at_once(batches, tiles);
  const int64_t key_size = tiles * kStream * keys.channels;
  const int64_t value_size = tiles * kStream * pass.value_width();
  const int64_t workers = worker_count(at_once * std::max(tiles, blocks));
  const Buffer<T> packed_keys(query, at_once * key_size);
  const Buffer<T> packed_values(query, at_once * value_size);
  const Buffer<T> scratch(query, workers * pass.scratch_size());
  std::fill(scratch.data(), scratch.data() + workers * pass.scratch_size(), T(0));
  for (int64_t first = 0; first < batches; first += at_once) {
    const int64_t here = std::min(at_once, batches - first);
    run_tasks(here * tiles, workers, [&](int64_t, int64_t index) {
      const int64_t item = index / tiles, token = index % tiles * kStream;
      const int64_t count = std::min(kStream, keys.tokens - token);
      pack_by_token(keys, first + item, token, count, pass.run.rows,
                    packed_keys.data() + item * key_size + token * keys.channels);
      pack_by_channel(values, first + item, token, count, pass.run.columns,
                      packed_values.data() + item * value_size + token * pass.value_width());
    });
    run_tasks(here * blocks, workers, [&](int64_t worker, int64_t index) {
      const int64_t item = index / blocks;
      pass.block(packed_keys.data() + item * key_size, packed_values.data() + item * value_size,
                 first + item, index % blocks * kResident,
                 scratch.data() + worker * pass.scratch_size());
    });
  }
}

}  // namespace ocnet::cpu
