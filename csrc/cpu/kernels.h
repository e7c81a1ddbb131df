// SPDX-License-Identifier: MIT
// The loops that take the time, once for every instruction set, chosen when the process runs.
//
// One tile holds the scores of kStream streamed tokens (rows) against kResident resident tokens
// (columns). The resident tokens are queries, so a column is one softmax row and its statistics sit
// side by side in vectors. Read by columns or by rows, a tile is the left operand of the products
// that follow. All operands are packed (packed.h) and counted in units: a unit is one number of
// type T, or two bfloat16 numbers in its place, whose products go into one sum together.
#pragma once

#include <cstdint>

namespace ocnet::cpu {

// Multiples of every register block and panel below. Tiles, resident operands and streamed operands
// of 256 channels take about 1 MB in fp32 together: the size of a core's second-level cache.
constexpr int64_t kResident = 96;
constexpr int64_t kStream = 192;

// No panel is wider.
constexpr int64_t kMaxPanel = 32;

// One column panel of a backward tile. Resident tokens as queries have P = exp(s - lse[resident])
// and the score gradient P * (query_product - delta[resident]); as keys they have P' = exp(s -
// lse[streamed]) and P' * (key_product - delta[streamed]). Tokens that attend to themselves are
// both, and the gradient of their score is the sum.
template <typename T>
struct GradientTile {
  // In: scaled scores. Out: P', to be read by columns, where keys are resident.
  T* scores;
  // In: <value streamed, grad_out resident>. Out: the gradient, by rows.
  T* query_product;
  // In: <grad_out streamed, value resident>. Out: P, by rows.
  T* key_product;
  // Out: the gradient, by columns. query_product itself if a unit is one number.
  T* gradient;
  const T* resident_lse;
  const T* resident_delta;
  const T* streamed_lse;
  const T* streamed_delta;
  int64_t column;  // where the panel begins in its tile
  int64_t used;    // columns of the whole tile that are tokens
};

// Where the rows and the panels of a matrix in panels begin.
struct Panels {
  int64_t row, panel;
};

template <typename T>
struct Kernels {
  int rows;      // of a register block
  int columns;   // of a register block, and the width of every packed panel
  int per_unit;  // numbers in a unit

  // tile[streamed][column panel] = scale * left * right over `depth` units of channels; `groups`
  // register blocks of streamed tokens. The scaled score is rounded here, once: scores, maxima and
  // lse must not differ by a fused rounding.
  void (*product)(const T* left, int64_t left_panel, int64_t groups, const T* right, int64_t depth,
                  T scale, T* tile);

  // output[column][panel] = factor[column] * output + transpose(tile) * right over `depth` units of
  // streamed tokens, for `groups` register blocks of columns.
  void (*accumulate)(const T* tile, int64_t groups, const T* right, int64_t depth, const T* factor,
                     T* output, int64_t output_stride);

  // output[row][panel] = factor[row] * output + tile * right over units of columns.
  void (*accumulate_by_rows)(const T* tile, int64_t groups, const T* right, int64_t depth,
                             const T* factor, T* output);

  // The same without factors.
  void (*add_by_columns)(const T* tile, int64_t groups, const T* right, int64_t depth, T* output);
  void (*add_by_rows)(const T* tile, int64_t groups, const T* right, int64_t depth, T* output);

  // Few keys (few_keys.h): a tile has kResident queries as rows, kStream apart, and at most kStream
  // keys as columns.

  // tile[query][key panel] = scale * queries * keys over `depth` channels. Here and below, `rows`
  // is at least one register block.
  void (*few_product)(const T* queries, const Panels& at, int64_t rows, const T* keys,
                      int64_t depth, T scale, T* tile);

  // output[query][channel] = scale * tile * right over `depth` keys.
  void (*few_apply)(const T* tile, int64_t rows, const T* right, int64_t depth, int64_t channels,
                    T scale, T* output, const Panels& at);

  // output[key][panel] += transpose(tile) * queries over `depth` queries, in register blocks of
  // keys.
  void (*few_reduce)(const T* tile, int64_t groups, const T* queries, int64_t query_row,
                     int64_t depth, T* output);

  // Whole rows of scores become weights, with their maximum and the total that was divided by.
  void (*few_softmax)(T* tile, int64_t rows, int64_t keys, T* maximum, T* total);

  // product = weights * (product - sum over keys of weights * product).
  void (*few_gradient)(const T* weights, T* product, int64_t rows, int64_t keys);

  // The numbers that 16 bits each stand for.
  void (*widen_bfloat16)(const uint16_t* source, int64_t count, T* target);
  void (*widen_half)(const uint16_t* source, int64_t count, T* target);

  // Where units are pairs: one panel of tokens with pairs of channels becomes the two panels of
  // those channels with `rows` pairs of tokens. nullptr elsewhere.
  void (*pair_tokens)(const T* source, int64_t rows, T* first, T* second);

  // Transposes a block of one panel's width in both directions.
  void (*transpose)(const T* source, int64_t source_stride, T* target, int64_t target_stride);

  // result[column] = sum over `depth` numbers of left * right for one panel of each.
  void (*dot)(const T* left, const T* right, int64_t depth, T* result);

  // One step of the running softmax for one column panel: scores become weights relative to the new
  // maximum (by columns), `sum` follows, and `factor` is what earlier sums must be multiplied by.
  void (*softmax)(T* tile, int64_t streamed, T* maximum, T* sum, T* factor);

  // The same for the rows of a whole tile of `used` columns, into a second tile (by rows). Scores
  // in the panels behind `used` become -inf.
  void (*softmax_by_rows)(T* tile, int64_t streamed, int64_t used, T* weights, T* maximum, T* sum,
                          T* factor);

  // One column panel: weights alone (for the value gradient), or with the gradients of the scores.
  // What is named is resident.
  void (*weights_of_queries)(const GradientTile<T>& tile, int64_t streamed);
  void (*weights_of_keys)(const GradientTile<T>& tile, int64_t streamed);
  void (*weights_of_both)(const GradientTile<T>& tile, int64_t streamed);
  void (*gradient_of_queries)(const GradientTile<T>& tile, int64_t streamed);
  void (*gradient_of_keys)(const GradientTile<T>& tile, int64_t streamed);
  void (*gradient_of_both)(const GradientTile<T>& tile, int64_t streamed);
};

// The widest set this processor runs, one number in a unit. Defined for float and double.
template <typename T>
const Kernels<T>& kernels();

// Units of two bfloat16 numbers, or nullptr where the processor has no products of them.
const Kernels<float>* pair_kernels();

}  // namespace ocnet::cpu
