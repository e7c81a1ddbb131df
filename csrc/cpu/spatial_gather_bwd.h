// SPDX-License-Identifier: MIT
// Backward pass of spatial gathering: blocks of positions stay, regions stream past. Each block
// writes its own gradients, so nothing is added up across blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"
#include "spatial_gather_fwd.h"

namespace ocnet::cpu {

// delta[region] = <grad_out, out + residual>, by the chain of sums of Kernels::product: where a
// region is one position, its delta equals that product to the last bit. NaN where grad_out has an
// infinity, as the plain formula is.
template <typename T, typename Element>
void region_deltas(const Matrices<const Element>& grad_out, const Matrices<const Element>& out,
                   const std::optional<Matrices<const Element>>& residual, int64_t batches,
                   T* delta) {
  const Kernels<T>& run = kernels<T>();
  const int64_t regions = out.tokens, channels = out.channels;
  const int64_t panels = ceil_div(regions, run.columns), size = run.columns * channels;
  run_tasks(batches * panels, worker_count(batches * panels), [&](int64_t, int64_t index) {
    const int64_t batch = index / panels, first = index % panels * run.columns;
    const int64_t used = std::min<int64_t>(run.columns, regions - first);
    std::vector<T> gradient(size), context(size), rest(residual ? size : 0), sums(run.columns);
    pack_by_token(run, grad_out, batch, first, used, gradient.data());
    pack_by_token(run, out, batch, first, used, context.data());
    if (residual) {
      pack_by_token(run, *residual, batch, first, used, rest.data());
      std::transform(context.begin(), context.end(), rest.begin(), context.begin(), std::plus<T>());
    }
    run.dot(gradient.data(), context.data(), channels, sums.data());
    for (int64_t region = 0; region < used; ++region) {
      T nothing = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const T value = gradient[c * run.columns + region];
        nothing += value - value;
      }
      delta[batch * regions + first + region] = sums[region] + nothing;
    }
  });
}

// What one task of the backward pass needs besides its own index.
template <typename T, typename Element>
struct GatherBackward {
  const Kernels<T>& run;
  Matrices<const Element> grad_out, features, logits;
  std::optional<Matrices<Element>> grad_features, grad_logits;
  T scale;
  const T* lse;
  const T* delta;

  int64_t regions() const { return logits.channels; }
  int64_t width() const { return round_up(features.channels, run.columns); }
  // grad_out of one batch item: left operand of the product over channels and right operand of the
  // sum over regions.
  int64_t packed_size() const { return round_up(regions(), kStream) * width(); }
  int64_t scratch_size() const {
    return 2 * kStream * kResident + kResident * (features.channels + width() + 1);
  }

  void pack_gradient(int64_t batch, T* packed) const {
    for (int64_t region = 0; region < regions(); region += kStream) {
      const int64_t count = std::min(kStream, regions() - region);
      pack_by_channel(run, grad_out, batch, region, count, kStream, packed + region * width());
    }
  }

  // scores[region][position] become weights; the gradients of the scores go to `products`.
  void gradients(int64_t batch, int64_t region, int64_t count, int64_t used, const T* packed,
                 const T* resident, T* scores, T* products) const {
    const int64_t row = batch * regions() + region, channels = features.channels;
    for (int64_t column = 0; column < used; column += run.columns) {
      const GradientTile<T> tile{scores + column,
                                 nullptr,
                                 products + column,
                                 products + column,
                                 nullptr,
                                 nullptr,
                                 lse + row,
                                 delta + row,
                                 0,
                                 0};
      if (grad_logits) {
        run.product(packed + region * width(), kStream * run.columns, ceil_div(count, run.rows),
                    resident + column * channels, channels, T(1), products + column);
        run.gradient_of_keys(tile, count);
      } else {
        run.weights_of_keys(tile, count);
      }
    }
  }

  // The gradients of one block of positions.
  void block(int64_t batch, int64_t start, T* packed, T* scratch) const {
    const int64_t used = std::min(kResident, features.tokens - start);
    T* const scores = scratch;
    T* const products = scores + kStream * kResident;
    T* const resident = products + kStream * kResident;
    T* const sums = resident + kResident * features.channels;
    T* const one = sums + kResident * width();
    if (grad_logits) pack_by_token(run, features, batch, start, used, resident);
    std::fill(sums, one, T(0));
    std::fill(one, one + kResident, T(1));
    for (int64_t region = 0; region < regions(); region += kStream) {
      const int64_t count = std::min(kStream, regions() - region);
      scaled_logits(logits, batch, start, used, region, count, scale, int64_t{1}, kResident,
                    scores);
      gradients(batch, region, count, used, packed, resident, scores, products);
      if (grad_logits) write_logits(batch, start, used, region, count, products);
      if (!grad_features) continue;
      for (int64_t channel = 0; channel < width(); channel += run.columns) {
        run.accumulate(scores, ceil_div(used, run.rows),
                       packed + region * width() + channel * kStream, count, one, sums + channel,
                       width());
      }
    }
    if (grad_features) {
      unpack(run, sums, Panels{width(), run.columns}, *grad_features, batch, start, used,
             [](int64_t, T sum) { return sum; });
    }
  }

  void write_logits(int64_t batch, int64_t start, int64_t used, int64_t region, int64_t count,
                    const T* products) const {
    // The regions are the rows of the tile here: a matrix with its axes exchanged.
    Matrices<Element> target = *grad_logits;
    target.data = target.at(batch, start) + region * target.channel_stride;
    std::swap(target.token_stride, target.channel_stride);
    target.channels = used;
    unpack(run, products, Panels{kResident, run.columns}, target, 0, 0, count,
           [&](int64_t, T gradient) { return scale * gradient; });
  }
};

template <typename T, typename Element>
void gather_backward(const torch::stable::Tensor& grad_out, const torch::stable::Tensor& features,
                     const torch::stable::Tensor& logits, const torch::stable::Tensor& out,
                     const torch::stable::Tensor& lse,
                     const std::optional<torch::stable::Tensor>& residual, double scale,
                     const std::optional<torch::stable::Tensor>& grad_features,
                     const std::optional<torch::stable::Tensor>& grad_logits) {
  const int64_t batches = features.size(0), regions = logits.size(2);
  const Buffer<T> delta(features, batches * regions);
  const auto gradient = matrices<const Element>(grad_out);
  region_deltas(gradient, matrices<const Element>(out), maybe_matrices<const Element>(residual),
                batches, delta.data());
  const GatherBackward<T, Element> pass{kernels<T>(),
                                        gradient,
                                        matrices<const Element>(features),
                                        matrices<const Element>(logits),
                                        maybe_matrices<Element>(grad_features),
                                        maybe_matrices<Element>(grad_logits),
                                        static_cast<T>(scale),
                                        static_cast<const T*>(lse.data_ptr()),
                                        delta.data()};
  const int64_t blocks = ceil_div(pass.features.tokens, kResident);
  const int64_t at_once = batches_at_once(batches, blocks);
  const int64_t workers = worker_count(at_once * blocks);
  const Buffer<T> packed(features, at_once * pass.packed_size());
  const Buffer<T> scratch(features, workers * pass.scratch_size());
  std::fill(scratch.data(), scratch.data() + workers * pass.scratch_size(), T(0));
  for (int64_t first = 0; first < batches; first += at_once) {
    const int64_t here = std::min(at_once, batches - first);
    run_tasks(here, workers, [&](int64_t, int64_t item) {
      pass.pack_gradient(first + item, packed.data() + item * pass.packed_size());
    });
    run_tasks(here * blocks, workers, [&](int64_t worker, int64_t index) {
      const int64_t item = index / blocks;
      pass.block(first + item, index % blocks * kResident,
                 packed.data() + item * pass.packed_size(),
                 scratch.data() + worker * pass.scratch_size());
    });
  }
}

}  // namespace ocnet::cpu
