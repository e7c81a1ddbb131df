// SPDX-License-Identifier: MIT
// delta of the backward of pixel-wise attention: the softmax's mean of the gradients of its
// weights. No torch headers.
#pragma once

#include <type_traits>

#include "common/device.cuh"
#include "common/groups.h"
#include "common/launch.cuh"
#include "common/math.h"
#include "common/ptx/arithmetic.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "common/tokens.h"

namespace ocnet {

// What kernels that stream tokens want to know of one besides its channels: lse in powers of two,
// and delta.
struct alignas(8) RowNumbers {
  float lse, delta;
};

// Matrices of whole maps, any strides. Groups do not matter here.
template <typename scalar_t>
struct DeltaStage {
  TokenMatrix<const scalar_t> grad_out;  // (N, L, Ev)
  TokenMatrix<const scalar_t> out;       // (N, L, Ev)
  TokenMatrix<const scalar_t> residual;  // (N, L, Ev); data is null where there is none
  accumulator_t<scalar_t>* delta;        // (N, L), contiguous; null where numbers are wanted
  const accumulator_t<scalar_t>* lse;    // (N, L), contiguous, for the numbers
  RowNumbers* numbers;                   // (N, numbers_pitch), zero from L on
  int numbers_pitch;
};

template <typename scalar_t>
struct DeltaParams {
  DeltaStage<scalar_t> stages[kStageSlots];
  bool tf32;  // grad_out is rounded as the products of the other kernels round it
  WorkTable work;
};

// A rounded gradient has to be rounded here too: where the softmax is peaked, dP - delta is the
// small difference of two products with it.
template <typename scalar_t>
OCNET_DEVICE accumulator_t<scalar_t> delta_operand(scalar_t gradient, bool tf32) {
  const accumulator_t<scalar_t> wide = to_accumulator(gradient);
  if constexpr (std::is_same_v<scalar_t, float>) {
    if (tf32) return detail::bit_cast<float>(ptx::round_to_tf32(wide));
  }
  return wide;
}

template <typename scalar_t>
OCNET_DEVICE void store_delta(const DeltaStage<scalar_t>& stage, int64_t image, int tokens,
                              int token, accumulator_t<scalar_t> delta) {
  if (stage.delta != nullptr) {
    if (token < tokens) stage.delta[image * tokens + token] = delta;
  } else if (token < stage.numbers_pitch) {
    constexpr float kLog2E = 1.44269504f;
    RowNumbers numbers = {0, 0};
    if (token < tokens) {
      numbers = {static_cast<float>(stage.lse[image * tokens + token]) * kLog2E,
                 static_cast<float>(delta)};
    }
    stage.numbers[image * stage.numbers_pitch + token] = numbers;
  }
}

constexpr int kDeltaTokens = 32;

// delta[n][l] = <grad_out_l, out_l + residual_l>, but NaN when grad_out_l has an infinity: then dP
// has one at every key, and dP - sum(P * dP), for which delta stands, is NaN at every key.
//
// Grid: (stage, image, tile of kDeltaTokens tokens); 256 threads, 8 per token. Thread p of a token
// sums channels p, p + 8, ... in fp32 (fp64); the 8 sums are added in order. Lanes walk the
// contiguous axis. Shared memory: sizeof(acc) * 256 bytes.
template <typename scalar_t>
OCNET_KERNEL(256, 4)
oc_attention_bwd_delta_kernel(OCNET_GRID_CONSTANT DeltaParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kTokens = kDeltaTokens;
  constexpr int kParts = 8;
  ptx::allow_next_launch();
  acc_t* const partial = device::shared_memory<acc_t>();  // (kParts, kTokens)

  const WorkPlace place = locate_work(params.work, device::block_index());
  const DeltaStage<scalar_t>& stage = params.stages[params.work.families[place.family].stage];
  const auto grad_out = stage.grad_out.image(place.image);
  const auto out = stage.out.image(place.image);
  const auto residual = stage.residual.image(place.image);
  const int first_token = place.block * kTokens;
  const int thread = device::thread_index();
  const bool along_tokens = out.token_stride <= out.channel_stride;
  const int local = along_tokens ? thread % kTokens : thread / kParts;
  const int part = along_tokens ? thread / kTokens : thread % kParts;
  const int token = first_token + local;

  acc_t sum = 0;
  if (token < out.tokens) {
    for (int channel = part; channel < out.channels; channel += kParts) {
      const acc_t gradient = delta_operand(*grad_out.at(token, channel), params.tf32);
      acc_t context = to_accumulator(*out.at(token, channel));
      if (residual.data != nullptr) context += to_accumulator(*residual.at(token, channel));
      sum += gradient * context + zero_if_finite(gradient);
    }
  }
  partial[part * kTokens + local] = sum;
  device::barrier();

  const int owned = first_token + thread;
  if (thread < kTokens) {
    acc_t total = 0;
    OCNET_UNROLL
    for (int i = 0; i < kParts; ++i) total += partial[i * kTokens + thread];
    store_delta(stage, place.image, out.tokens, owned, total);
  }
}

// `params` has all but the cut of the work.
template <typename scalar_t, typename Launch>
void launch_oc_attention_bwd_delta(DeltaParams<scalar_t> params, const Launch& launch) {
  const int64_t blocks = deal_work(params.work, [](Family& family) {
    return cut_family(family, kDeltaTokens, family.owned, 1);
  });
  launch(oc_attention_bwd_delta_kernel<scalar_t>,
         Grid{blocks, 256, 256 * sizeof(accumulator_t<scalar_t>)}, params);
}

}  // namespace ocnet
