// SPDX-License-Identifier: MIT
// No include guard: kernels.cpp includes this file once for every instruction set
// (each_instruction_set.h). This file includes nothing but its other parts.

#include "vectors_impl.h"

constexpr int kRows = kBytes == 64 ? 12 : 6;  // of a register block

// exp(x) for x <= 0; a positive x counts as 0, NaN stays NaN. About 1 ulp down to the smallest
// normal number. Results that would be subnormal are the smallest normal number instead: still not
// 0 (0 * inf would be NaN where the exact weight gives inf) and never a slow operand.
template <typename T>
OCNET_INLINE Vector<T> exp_nonpositive(Vector<T> x) {
  using V = Vector<T>;
  using B = Vector<typename Float<T>::Bits>;
  using F = Float<T>;
  const V smallest = fill<V>(F::kSmallest), zero = V{};
  V c = x > zero ? zero : x;
  c = c < smallest ? smallest : c;
  const V shifted = c * F::kLog2e + F::kRound;
  const V n = shifted - F::kRound;
  V f = c - n * F::kLn2Hi;
  f = f - n * F::kLn2Lo;
  V p = fill<V>(inverse_factorial<T>(F::kDegree));
  OCNET_UNROLL
  for (int k = F::kDegree - 1; k >= 0; --k) {
    p = p * f + inverse_factorial<T>(k);
  }
  const V power = bit_copy<V>((bit_copy<B>(shifted) << F::kMantissaBits) + F::kOne);
  const V result = p * power;
  return x < fill<V>(F::kZero) ? zero : result;
}

// Two vectors wide: each broadcast of a left element is used twice.
constexpr int kWide = 2;
template <typename T>
constexpr int kPanel = kWide * kLanes<T>;

#if OCNET_VECTORS
// a[h], b[h], a[h + 1], b[h + 1] and so on, from the lower or the upper half.
template <int Lanes, int Half>
struct Interleaved {
  template <int I>
  static constexpr int at = Half * (Lanes / 2) + I / 2 + I % 2 * Lanes;
};

template <int Half, typename T>
OCNET_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b) {
  return shuffle<Vector<T>, Interleaved<kLanes<T>, Half>>(
      a, b, std::make_integer_sequence<int, kLanes<T>>());
}

// As often as the width has powers of two, vector i is interleaved with vector i + width / 2.
template <typename T>
OCNET_INLINE void transpose_square(const T* source, int64_t source_stride, T* target,
                                   int64_t target_stride) {
  using V = Vector<T>;
  constexpr int kSide = kLanes<T>;
  V rows[kSide], next[kSide];
  OCNET_UNROLL
  for (int i = 0; i < kSide; ++i) {
    rows[i] = load<V>(source + i * source_stride);
    OCNET_PREFETCH(source + (i + kPanel<T>)*source_stride);
  }
  OCNET_UNROLL
  for (int width = kSide; width > 1; width /= 2) {
    OCNET_UNROLL
    for (int i = 0; i < kSide / 2; ++i) {
      next[2 * i] = interleave<0, T>(rows[i], rows[i + kSide / 2]);
      next[2 * i + 1] = interleave<1, T>(rows[i], rows[i + kSide / 2]);
    }
    OCNET_UNROLL
    for (int i = 0; i < kSide; ++i) {
      rows[i] = next[i];
    }
  }
  OCNET_UNROLL
  for (int i = 0; i < kSide; ++i) {
    store<V>(target + i * target_stride, rows[i]);
  }
}
#else
template <typename T>
OCNET_INLINE void transpose_square(const T* source, int64_t, T* target, int64_t) {
  *target = *source;
}
#endif

template <typename T>
void transpose(const T* source, int64_t source_stride, T* target, int64_t target_stride) {
  for (int i = 0; i < kPanel<T>; i += kLanes<T>) {
    for (int j = 0; j < kPanel<T>; j += kLanes<T>) {
      transpose_square(source + i * source_stride + j, source_stride,
                       target + j * target_stride + i, target_stride);
    }
  }
}

template <typename T>
void widen_bfloat16(const uint16_t* source, int64_t count, T* target) {
  for (int64_t i = 0; i < count; ++i) {
    target[i] = from_bits(uint32_t{source[i]} << 16);
  }
}

template <typename T>
void widen_half(const uint16_t* source, int64_t count, T* target) {
  for (int64_t i = 0; i < count; ++i) {
    target[i] = ocnet::cpu::widen_half(source[i]);
  }
}

// How numbers share a unit, and what becomes of weights and gradients when they are left operands.
// `column` is where the panel begins in its tile; `target` points to it in the first row.
template <typename T>
struct Single {
  using Number = T;
  using V = Vector<T>;
  static constexpr int kPerUnit = 1;
  static constexpr std::nullptr_t pair_tokens = nullptr;

  static OCNET_INLINE V multiply_add(V a, V b, V sum) { return a * b + sum; }
  static OCNET_INLINE V inside(V value, int64_t, int) { return value; }
  static OCNET_INLINE void store_by_columns(T* target, int64_t row, const V (&values)[1][kWide]) {
    for (int part = 0; part < kWide; ++part) {
      store<V>(target + row * kResident + part * kLanes<T>, values[0][part]);
    }
  }
  static OCNET_INLINE void store_by_rows(T* target, int64_t row, int64_t,
                                         const V (&values)[1][kWide]) {
    store_by_columns(target, row, values);
  }
};

#if OCNET_BYTES == 64
// Two bfloat16 numbers, rounded to nearest, the first in the lower half.
struct Pair {
  using Number = float;
  using V = Vector<float>;
  using B = Vector<uint32_t>;
  static constexpr int kPerUnit = 2;

  static OCNET_INLINE V multiply_add(V a, V b, V sum) {
#if defined(OCNET_PAIR_PRODUCT)
    return OCNET_PAIR_PRODUCT(sum, a, b);
#else
    // What the instruction does, in steps: the products are exact, both sums are rounded.
    const B mask = fill<B>(uint32_t{0xffff0000u});
    const B left = bit_copy<B>(a), right = bit_copy<B>(b);
    sum = bit_copy<V>(left & mask) * bit_copy<V>(right & mask) + sum;
    return bit_copy<V>(left << 16) * bit_copy<V>(right << 16) + sum;
#endif
  }
  static OCNET_INLINE B rounded(V value) {
    const B bits = bit_copy<B>(value);
    return value != value ? bits | 0x400000u : bits + (0x7fffu + ((bits >> 16) & 1u));
  }
  // 0 from column `used` on: the number that shares its unit with the last token must be one that
  // adds nothing.
  static OCNET_INLINE V inside(V value, int64_t used, int part) {
    B lane{};
    for (int i = 0; i < kLanes<float>; ++i) {
      lane[i] = static_cast<uint32_t>(part * kLanes<float> + i);
    }
    return lane < fill<B>(static_cast<uint32_t>(used)) ? value : V{};
  }
  static OCNET_INLINE void store_by_columns(float* target, int64_t row,
                                            const V (&values)[2][kWide]) {
    for (int part = 0; part < kWide; ++part) {
      const B unit = (rounded(values[0][part]) >> 16) | (rounded(values[1][part]) & 0xffff0000u);
      store<B>(target + row / 2 * kResident + part * kLanes<float>, unit);
    }
  }
  static void pair_tokens(const float* source, int64_t rows, float* first, float* second) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int part = 0; part < kWide; ++part) {
        const float* const at = source + 2 * row * kPanel<float> + part * kLanes<float>;
        const B one = load<B>(at), other = load<B>(at + kPanel<float>);
        const V even = bit_copy<V>((one & 0xffffu) | (other << 16));
        const V odd = bit_copy<V>((one >> 16) | (other & 0xffff0000u));
        float* const target = (part == 0 ? first : second) + row * kPanel<float>;
        store<V>(target, interleave<0, float>(even, odd));
        store<V>(target + kLanes<float>, interleave<1, float>(even, odd));
      }
    }
  }
  struct UpperHalves {
    template <int I>
    static constexpr short at = 2 * I + 1;
  };
  static OCNET_INLINE void store_by_rows(float* target, int64_t row, int64_t column,
                                         const V (&values)[2][kWide]) {
    using Halves = Vector<short>;
    static_assert(kWide == 2, "two vectors of numbers make one of units");
    for (int i = 0; i < 2; ++i) {
      const Halves first = bit_copy<Halves>(rounded(values[i][0]));
      const Halves second = bit_copy<Halves>(rounded(values[i][1]));
      store<Halves>(target + (row + i) * kResident - column / 2,
                    shuffle<Halves, UpperHalves>(first, second,
                                                 std::make_integer_sequence<int, kLanes<short>>()));
    }
  }
};
#endif

enum class Then { kScale, kScaleAndAdd, kRescaleAndAdd, kAdd };

// Units of depth that are added to one another in registers; a product of more has several such
// chains, added in order. The rounding of one long chain would be the largest error of a score
// gradient: where a row attends to many tokens alike, that of delta is the same for all of them.
constexpr int64_t kChain = 64;

// Sums of products over depth for one register block, each element one chain in order of depth,
// which may come in pieces.
template <typename U>
struct RegisterBlock {
  using T = typename U::Number;
  using V = Vector<T>;
  V sums[kRows][kWide] = {};

  // sum += left[k * step + row * row_step] * right[k * right_step + column]. Meanwhile it fetches
  // what comes next into the second-level cache: `ahead`, by `ahead_step` for each k.
  OCNET_INLINE void add(const T* left, int64_t step, int64_t row_step, const T* right,
                        int64_t right_step, int64_t depth, const T* ahead, int64_t ahead_step) {
    for (int64_t k = 0; k < depth; ++k) {
      OCNET_PREFETCH(ahead);
      ahead += ahead_step;
      const V first = load<V>(right), second = load<V>(right + kLanes<T>);
      OCNET_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const V element = fill<V>(left[row * row_step]);
        sums[row][0] = U::multiply_add(element, first, sums[row][0]);
        sums[row][1] = U::multiply_add(element, second, sums[row][1]);
      }
      left += step;
      right += right_step;
    }
  }

  template <Then What>
  OCNET_INLINE void finish(T* c, int64_t c_stride, T scale, const T* factor) const {
    OCNET_UNROLL
    for (int row = 0; row < kRows; ++row) {
      for (int part = 0; part < kWide; ++part) {
        T* target = c + row * c_stride + part * kLanes<T>;
        const V sum = sums[row][part];
        if (What == Then::kScale) {
          store<V>(target, sum * scale);
        } else if (What == Then::kScaleAndAdd) {
          store<V>(target, load<V>(target) + sum * scale);
        } else if (What == Then::kAdd) {
          store<V>(target, load<V>(target) + sum);
        } else {
          store<V>(target, load<V>(target) * factor[row] + sum);
        }
      }
    }
  }
};

template <typename U, typename T = typename U::Number>
void product(const T* left, int64_t left_panel, int64_t groups, const T* right, int64_t depth,
             T scale, T* tile) {
  constexpr int64_t kBlock = kRows * kPanel<T>;
  for (int64_t group = 0; group < groups; ++group) {
    const T* panel = left;
    for (int64_t k = 0; k < depth;) {
      RegisterBlock<U> block;
      const bool first = k == 0;
      for (const int64_t end = k + kChain; k < end && k < depth; k += kPanel<T>) {
        const int64_t here = depth - k < kPanel<T> ? depth - k : kPanel<T>;
        block.add(panel, 1, kPanel<T>, right + k * kPanel<T>, kPanel<T>, here, panel + kBlock,
                  kRows);
        panel += left_panel;
      }
      if (first) {
        block.template finish<Then::kScale>(tile, kResident, scale, nullptr);
      } else {
        block.template finish<Then::kScaleAndAdd>(tile, kResident, scale, nullptr);
      }
    }
    left += kBlock;
    tile += kRows * kResident;
  }
}

template <typename U, Then What, int64_t Step, int64_t RowStep, typename T>
OCNET_INLINE void add_products(const T* tile, int64_t groups, const T* right, int64_t right_step,
                               int64_t depth, T scale, const T* factor, T* output,
                               int64_t output_stride) {
  // The next panel of a packed operand is fetched in as many pieces as there are groups; that of
  // rows in place is beside them.
  const bool packed = right_step == kPanel<T>;
  const int64_t step = packed ? (kPanel<T> + groups - 1) / groups : right_step;
  for (int64_t group = 0; group < groups; ++group) {
    RegisterBlock<U> block;
    const T* const ahead = packed ? right + depth * kPanel<T> + group * depth * step
                                  : right + kPanel<T> + group % kWide * kLanes<T>;
    block.add(tile, Step, RowStep, right, right_step, depth, ahead, step);
    block.template finish<What>(output, output_stride, scale, factor);
    tile += kRows * RowStep;
    factor += What == Then::kRescaleAndAdd ? kRows : 0;
    output += kRows * output_stride;
  }
}

template <typename U, typename T = typename U::Number>
void accumulate(const T* tile, int64_t groups, const T* right, int64_t depth, const T* factor,
                T* output, int64_t output_stride) {
  add_products<U, Then::kRescaleAndAdd, kResident, 1>(tile, groups, right, kPanel<T>, depth, T(1),
                                                      factor, output, output_stride);
}

template <typename U, typename T = typename U::Number>
void accumulate_by_rows(const T* tile, int64_t groups, const T* right, int64_t depth,
                        const T* factor, T* output) {
  add_products<U, Then::kRescaleAndAdd, 1, kResident>(tile, groups, right, kPanel<T>, depth, T(1),
                                                      factor, output, kPanel<T>);
}

template <typename U, typename T = typename U::Number>
void add_by_columns(const T* tile, int64_t groups, const T* right, int64_t depth, T* output) {
  add_products<U, Then::kAdd, kResident, 1, T>(tile, groups, right, kPanel<T>, depth, T(1), nullptr,
                                               output, kPanel<T>);
}

template <typename U, typename T = typename U::Number>
void add_by_rows(const T* tile, int64_t groups, const T* right, int64_t depth, T* output) {
  add_products<U, Then::kAdd, 1, kResident, T>(tile, groups, right, kPanel<T>, depth, T(1), nullptr,
                                               output, kPanel<T>);
}

// result[column] = sum over depth of left * right, element by element: the chains of a product of
// single numbers, so that where an output row equals one value row, its delta equals that product
// to the last bit and their difference is 0.
template <typename T>
void dot(const T* left, const T* right, int64_t depth, T* result) {
  using V = Vector<T>;
  for (int part = 0; part < kWide; ++part) {
    V total = {};
    for (int64_t k = 0; k < depth;) {
      V sum = {};
      const bool first = k == 0;
      for (const int64_t end = k + kChain; k < end && k < depth; ++k) {
        const int64_t at = k * kPanel<T> + part * kLanes<T>;
        sum = load<V>(left + at) * load<V>(right + at) + sum;
      }
      total = first ? sum : total + sum;
    }
    store<V>(result + part * kLanes<T>, total);
  }
}

#include "kernels_elementwise.h"
#include "kernels_few.h"

static_assert(kResident % kRows == 0 && kStream % kRows == 0, "register blocks divide a tile");
static_assert(kChain % kPanel<float> == 0 && kChain % kPanel<double> == 0, "chains are panels");

template <typename U>
const Kernels<typename U::Number>& table() {
  using T = typename U::Number;
  static_assert(kResident % kPanel<T> == 0 && kPanel<T> <= kMaxPanel, "panels divide a tile");
  static const Kernels<T> all = {kRows,
                                 kPanel<T>,
                                 U::kPerUnit,
                                 product<U>,
                                 accumulate<U>,
                                 accumulate_by_rows<U>,
                                 add_by_columns<U>,
                                 add_by_rows<U>,
                                 few_product<T>,
                                 few_apply<T>,
                                 few_reduce<T>,
                                 few_softmax<T>,
                                 few_gradient<T>,
                                 widen_bfloat16<T>,
                                 widen_half<T>,
                                 U::pair_tokens,
                                 transpose<T>,
                                 dot<T>,
                                 softmax<U>,
                                 softmax_by_rows<U>,
                                 gradient<U, true, false, false>,
                                 gradient<U, false, true, false>,
                                 gradient<U, true, true, false>,
                                 gradient<U, true, false, true>,
                                 gradient<U, false, true, true>,
                                 gradient<U, true, true, true>};
  return all;
}
