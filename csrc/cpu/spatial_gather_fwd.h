// SPDX-License-Identifier: MIT
// Forward pass of spatial gathering: a map is cut into parts of positions; each part sums with its
// own running softmax, and the parts of a region are combined in their order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"

namespace ocnet::cpu {

// tile[s][r] = scale * logit of token + s and region + r, or the transpose of that.
template <typename T, typename Element>
void scaled_logits(const Matrices<const Element>& logits, int64_t batch, int64_t token,
                   int64_t tokens, int64_t region, int64_t regions, T scale, int64_t token_step,
                   int64_t region_step, T* tile) {
  const Element* const source = logits.at(batch, token) + region * logits.channel_stride;
  const auto element = [&](int64_t s, int64_t r) {
    tile[s * token_step + r * region_step] =
        scale * T(widen(source[s * logits.token_stride + r * logits.channel_stride]));
  };
  if (logits.channel_stride <= logits.token_stride) {
    for (int64_t s = 0; s < tokens; ++s) {
      for (int64_t r = 0; r < regions; ++r) element(s, r);
    }
  } else {
    for (int64_t r = 0; r < regions; ++r) {
      for (int64_t s = 0; s < tokens; ++s) element(s, r);
    }
  }
}

// What one task of the forward pass needs besides its own index. Partial results of a part lie one
// after the other: sums (regions x width), then maxima and totals of the regions.
template <typename T, typename Element>
struct GatherForward {
  // Long enough that partial sums are few next to the features that are read, short enough that
  // one image keeps many cores busy.
  static constexpr int64_t kPart = 4 * kStream;

  const Kernels<T>& run;
  Matrices<const Element> features, logits;
  Matrices<Element> out;
  std::optional<Matrices<Element>> residual;
  T scale;
  T* lse;

  int64_t parts() const { return ceil_div(features.tokens, kPart); }
  int64_t width() const { return round_up(features.channels, run.columns); }
  // Register blocks of sums and panels of statistics both end within it: both divide kResident.
  int64_t regions() const {
    return std::max(round_up(logits.channels, run.rows), round_up(logits.channels, run.columns));
  }
  int64_t part_size() const { return regions() * (width() + 2); }
  int64_t scratch_size() const { return kStream * (kResident + width()) + kResident; }

  // Sums one part of the positions of a batch item.
  void part(int64_t batch, int64_t index, T* partial, T* scratch) const {
    T* const maximum = partial + regions() * width();
    T* const total = maximum + regions();
    T* const tile = scratch;
    T* const packed = tile + kStream * kResident;
    T* const factor = packed + kStream * width();
    std::fill(partial, maximum, T(0));
    std::fill(maximum, total, -std::numeric_limits<T>::infinity());
    std::fill(total, total + regions(), T(0));
    const int64_t end = std::min(features.tokens, (index + 1) * kPart);
    for (int64_t token = index * kPart; token < end; token += kStream) {
      const int64_t count = std::min(kStream, end - token);
      pack_by_channel(run, features, batch, token, count, kStream, packed);
      for (int64_t region = 0; region < logits.channels; region += kResident) {
        const int64_t used = std::min(kResident, logits.channels - region);
        scaled_logits(logits, batch, token, count, region, used, scale, kResident, 1, tile);
        for (int64_t column = 0; column < used; column += run.columns) {
          run.softmax(tile + column, count, maximum + region + column, total + region + column,
                      factor + column);
        }
        for (int64_t channel = 0; channel < width(); channel += run.columns) {
          run.accumulate(tile, ceil_div(used, run.rows), packed + channel * kStream, count, factor,
                         partial + region * width() + channel, width());
        }
      }
    }
  }

  // Adds up the parts of one region, into the sums of the first.
  void combine(int64_t batch, int64_t region, T* partials) const {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    const int64_t statistics = regions() * width() + region;
    T highest = -kInfinity;
    for (int64_t index = 0; index < parts(); ++index) {
      const T maximum = partials[index * part_size() + statistics];
      highest = maximum > highest ? maximum : highest;
    }
    // A region of nothing but -inf is shifted by 0, as in Kernels::softmax.
    const T shift = highest == -kInfinity ? T(0) : highest;
    T* const sums = partials + region * width();
    T total = 0;
    for (int64_t index = 0; index < parts(); ++index) {
      const T* const from = partials + index * part_size();
      const T factor = std::exp(from[statistics] - shift);
      const T* const row = from + region * width();
      for (int64_t c = 0; c < width(); ++c) {
        sums[c] = index == 0 ? factor * row[c] : factor * row[c] + sums[c];
      }
      total += factor * from[statistics + regions()];
    }
    const Panels panels{width(), run.columns};
    unpack(run, sums, panels, out, batch, region, 1, [&](int64_t, T sum) { return sum / total; });
    if (residual) {
      unpack(run, sums, panels, *residual, batch, region, 1, [&](int64_t, T sum) {
        const T exact = sum / total;
        const T rounded = T(widen(static_cast<Element>(exact)));
        // Of an infinity nothing is left: the difference would be NaN.
        return std::isfinite(rounded) ? exact - rounded : T(0);
      });
    }
    lse[batch * logits.channels + region] =
        highest == kInfinity ? std::numeric_limits<T>::quiet_NaN() : highest + std::log(total);
  }
};

template <typename T, typename Element>
void gather_forward(const torch::stable::Tensor& features, const torch::stable::Tensor& logits,
                    double scale, const torch::stable::Tensor& out,
                    const torch::stable::Tensor& lse,
                    const std::optional<torch::stable::Tensor>& residual) {
  const GatherForward<T, Element> pass{kernels<T>(),
                                       matrices<const Element>(features),
                                       matrices<const Element>(logits),
                                       matrices<Element>(out),
                                       maybe_matrices<Element>(residual),
                                       static_cast<T>(scale),
                                       static_cast<T*>(lse.data_ptr())};
  const int64_t batches = features.size(0), parts = pass.parts(), size = pass.part_size();
  const int64_t at_once = batches_at_once(batches, parts), regions = pass.logits.channels;
  const int64_t workers = worker_count(at_once * std::max(parts, regions));
  const Buffer<T> partials(features, at_once * parts * size);
  const Buffer<T> scratch(features, workers * pass.scratch_size());
  // Padding must hold numbers: they are multiplied, though nobody reads what comes of them.
  std::fill(scratch.data(), scratch.data() + workers * pass.scratch_size(), T(0));
  for (int64_t first = 0; first < batches; first += at_once) {
    const int64_t here = std::min(at_once, batches - first);
    run_tasks(here * parts, workers, [&](int64_t worker, int64_t index) {
      pass.part(first + index / parts, index % parts, partials.data() + index * size,
                scratch.data() + worker * pass.scratch_size());
    });
    run_tasks(here * regions, workers, [&](int64_t, int64_t index) {
      const int64_t item = index / regions;
      pass.combine(first + item, index % regions, partials.data() + item * parts * size);
    });
  }
}

}  // namespace ocnet::cpu
