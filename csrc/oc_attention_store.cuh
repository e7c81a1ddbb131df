// SPDX-License-Identifier: MIT
// What a warp writes of its 16 rows of sums over values: results, or a part of them.
#pragma once

#include "common/mma_store.cuh"
#include "oc_attention_combine.cuh"
#include "oc_attention_softmax.cuh"

namespace ocnet {

// The rows g and g + 8 of this lane, if it is the one that writes what there is one of for a row.
template <typename Body>
OCNET_DEVICE void for_own_rows(int first_row, int rows, const Body& body) {
  if (device::lane_index() % 4 != 0) return;
  OCNET_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + device::lane_index() / 4 + 8 * r;
    if (row < rows) body(r, row);
  }
}

// Writes out, the residual where its data is not null, and lse where it is asked for.
template <typename scalar_t, template <typename> class Matrix, int kColumns>
OCNET_DEVICE void store_results(const Matrix<scalar_t>& out, const Matrix<scalar_t>& residual,
                                const Matrix<float>& lse, const SoftmaxRows& softmax,
                                float (&sums)[kColumns][4], int first_row, int first_channel,
                                bool with_lse) {
  if (with_lse) {
    for_own_rows(first_row, lse.tokens, [&](int r, int row) {
      *lse.at(row, 0) = log_sum_exp(kLn2 * softmax.maximum[r], softmax.total[r]);
    });
  }
  OCNET_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) sums[n][i] *= 1.0f / softmax.divisor(i / 2);
  }
  store_rows(sums, out, first_row, first_channel);
  if constexpr (sizeof(scalar_t) == 2) {
    if (residual.data == nullptr) return;
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] = rounding_loss<scalar_t>(sums[n][i]);
    }
    store_rows(sums, residual, first_row, first_channel);
  }
}

// Writes what the combination of parts needs.
template <int kColumns>
OCNET_DEVICE void store_partial(const TokenMatrix<float>& partial, const SoftmaxRows& softmax,
                                const float (&sums)[kColumns][4], int first_row, int first_channel,
                                bool with_row) {
  store_rows(sums, partial, first_row, first_channel);
  if (!with_row) return;
  for_own_rows(first_row, partial.tokens, [&](int r, int row) {
    *partial_row(partial, row) = {softmax.maximum[r], softmax.total[r], softmax.divisor(r), 0.0f};
  });
}

}  // namespace ocnet
