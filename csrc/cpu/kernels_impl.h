// SPDX-License-Identifier: MIT
// No include guard: kernels.cpp includes this file once for every instruction set, inside a
// namespace of its own that defines kBytes (of a vector) and kRows (of a register block) and inside
// a region that selects the instruction set. Whatever holds a vector is defined here, because a
// vector that is wider than the selected set is split when a function is read, not when it is
// inlined. This file includes nothing, for the same reason.

template <typename T>
constexpr int kLanes =
    kBytes / static_cast<int>(sizeof(T)) > 1 ? kBytes / static_cast<int>(sizeof(T)) : 1;

#if OCNET_VECTORS
template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes<T> * sizeof(T))));
};
#else
template <typename T>
struct VectorOf {
  using type = T;
};
#endif
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename V, typename T>
OCNET_INLINE V load(const T* source) {
  V value;
  std::memcpy(&value, source, sizeof(V));
  return value;
}

template <typename V, typename T>
OCNET_INLINE void store(T* target, V value) {
  std::memcpy(target, &value, sizeof(V));
}

template <typename V, typename T>
OCNET_INLINE V fill(T value) {
  // A plain broadcast: x - 0 is x even for -0, so the compiler drops the subtraction.
  return value - V{};
}

template <typename To, typename From>
OCNET_INLINE To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

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

// sum over depth of left[k * step + row] * right[k * panel + column], one fused chain in order of k
// for each element. Stores scale * sum, or factor[row] * c + sum. Meanwhile it fetches what comes
// next into the second-level cache: `ahead`, by `ahead_step` for each k.
template <typename T, bool Accumulate>
OCNET_INLINE void register_block(const T* left, int64_t step, const T* right, int64_t depth,
                                 T scale, const T* factor, T* c, int64_t c_stride, const T* ahead,
                                 int64_t ahead_step) {
  using V = Vector<T>;
  V sums[kRows][kWide] = {};
  for (int64_t k = 0; k < depth; ++k) {
    OCNET_PREFETCH(ahead);
    ahead += ahead_step;
    const V first = load<V>(right), second = load<V>(right + kLanes<T>);
    OCNET_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const V element = fill<V>(left[row]);
      sums[row][0] = element * first + sums[row][0];
      sums[row][1] = element * second + sums[row][1];
    }
    left += step;
    right += kPanel<T>;
  }
  OCNET_UNROLL
  for (int row = 0; row < kRows; ++row) {
    for (int part = 0; part < kWide; ++part) {
      T* target = c + row * c_stride + part * kLanes<T>;
      const V sum = sums[row][part];
      store<V>(target, Accumulate ? load<V>(target) * factor[row] + sum : sum * scale);
    }
  }
}

template <typename T>
void product(const T* left, int64_t groups, const T* right, int64_t depth, T scale, T* tile) {
  for (int64_t group = 0; group < groups; ++group) {
    register_block<T, false>(left, kRows, right, depth, scale, nullptr, tile, kResident,
                             left + kRows * depth, kRows);
    left += kRows * depth;
    tile += kRows * kResident;
  }
}

template <typename T>
void accumulate(const T* tile, int64_t groups, const T* right, int64_t depth, const T* factor,
                T* output, int64_t output_stride) {
  const int64_t step = (kPanel<T> + groups - 1) / groups;
  for (int64_t group = 0; group < groups; ++group) {
    register_block<T, true>(tile, kResident, right, depth, T(1), factor, output, output_stride,
                            right + depth * kPanel<T> + group * depth * step, step);
    tile += kRows;
    factor += kRows;
    output += kRows * output_stride;
  }
}

// result[column] = sum over depth of left * right, element by element: the chain of register_block,
// so that where an output row equals one value row, its delta equals that product to the last bit
// and their difference is 0.
template <typename T>
void dot(const T* left, const T* right, int64_t depth, T* result) {
  using V = Vector<T>;
  V sums[kWide] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int part = 0; part < kWide; ++part) {
      const int64_t at = k * kPanel<T> + part * kLanes<T>;
      sums[part] = load<V>(left + at) * load<V>(right + at) + sums[part];
    }
  }
  for (int part = 0; part < kWide; ++part) {
    store<V>(result + part * kLanes<T>, sums[part]);
  }
}

// Columns whose maximum is +inf: all their weights are NaN, and only a NaN score makes the log of
// the sum NaN too.
template <typename T>
T infinite_sum(const T* column, int64_t streamed, T sum) {
  bool is_nan = std::isnan(sum);
  for (int64_t s = 0; s < streamed; ++s) {
    is_nan = is_nan || std::isnan(column[s * kResident]);
  }
  return is_nan ? std::numeric_limits<T>::quiet_NaN() : std::numeric_limits<T>::infinity();
}

template <typename T>
void softmax(T* tile, int64_t streamed, T* maximum, T* sum, T* factor) {
  using V = Vector<T>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  V highest[kWide];
  for (int part = 0; part < kWide; ++part) {
    highest[part] = load<V>(maximum + part * kLanes<T>);
  }
  for (int64_t s = 0; s < streamed; ++s) {
    for (int part = 0; part < kWide; ++part) {
      const V score = load<V>(tile + s * kResident + part * kLanes<T>);
      // A NaN is passed over; its weight is NaN anyway.
      highest[part] = score > highest[part] ? score : highest[part];
    }
  }
  T infinite[kPanel<T>];
  bool any_infinite = false;
  for (int part = 0; part < kWide; ++part) {
    store<V>(infinite + part * kLanes<T>, highest[part]);
  }
  for (int column = 0; column < kPanel<T>; ++column) {
    const bool is_infinite = infinite[column] == kInfinity;
    infinite[column] = is_infinite ? infinite_sum(tile + column, streamed, sum[column]) : T(0);
    any_infinite = any_infinite || is_infinite;
  }
  V shift[kWide], total[kWide] = {};
  for (int part = 0; part < kWide; ++part) {
    // A column of -inf so far is shifted by 0: its weights are exp(-inf) = 0, not NaN.
    shift[part] = highest[part] == fill<V>(-kInfinity) ? V{} : highest[part];
  }
  // Short partial sums lose less than one long one.
  for (int64_t start = 0; start < streamed; start += 16) {
    const int64_t end = start + 16 < streamed ? start + 16 : streamed;
    V partial[kWide] = {};
    for (int64_t s = start; s < end; ++s) {
      OCNET_UNROLL
      for (int part = 0; part < kWide; ++part) {
        T* target = tile + s * kResident + part * kLanes<T>;
        const V weight = exp_nonpositive<T>(load<V>(target) - shift[part]);
        partial[part] += weight;
        store<V>(target, weight);
      }
    }
    for (int part = 0; part < kWide; ++part) {
      total[part] += partial[part];
    }
  }
  for (int part = 0; part < kWide; ++part) {
    const int at = part * kLanes<T>;
    const V rescale = exp_nonpositive<T>(load<V>(maximum + at) - shift[part]);
    store<V>(factor + at, rescale);
    store<V>(sum + at, load<V>(sum + at) * rescale + total[part]);
    store<V>(maximum + at, highest[part]);
  }
  if (any_infinite) {
    for (int column = 0; column < kPanel<T>; ++column) {
      sum[column] = infinite[column] == T(0) ? sum[column] : infinite[column];
    }
  }
}

template <typename T, bool Queries, bool Keys, bool Gradient>
void gradient(const GradientTile<T>& tile, int64_t streamed) {
  using V = Vector<T>;
  V lse[kWide] = {}, delta[kWide] = {};
  if (Queries) {
    for (int part = 0; part < kWide; ++part) {
      lse[part] = load<V>(tile.resident_lse + part * kLanes<T>);
      delta[part] = load<V>(tile.resident_delta + part * kLanes<T>);
    }
  }
  for (int64_t s = 0; s < streamed; ++s) {
    OCNET_UNROLL
    for (int part = 0; part < kWide; ++part) {
      const int64_t at = s * kResident + part * kLanes<T>;
      const V score = load<V>(tile.scores + at);
      V result = {};
      if (Queries) {
        const V weight = exp_nonpositive<T>(score - lse[part]);
        result = weight * (load<V>(tile.query_product + at) - delta[part]);
      }
      if (Keys) {
        const V weight = exp_nonpositive<T>(score - tile.streamed_lse[s]);
        store<V>(tile.scores + at, weight);
        if (Gradient) {
          result = weight * (load<V>(tile.key_product + at) - tile.streamed_delta[s]) + result;
        }
      }
      if (Gradient) {
        store<V>(tile.result + at, result);
      }
    }
  }
}

static_assert(kResident % kRows == 0 && kStream % kRows == 0, "register blocks divide a tile");

template <typename T>
const Kernels<T>& table() {
  static_assert(kResident % kPanel<T> == 0, "panels divide a tile");
  static const Kernels<T> all = {kRows,
                                 kPanel<T>,
                                 product<T>,
                                 accumulate<T>,
                                 dot<T>,
                                 softmax<T>,
                                 gradient<T, false, true, false>,
                                 gradient<T, true, false, true>,
                                 gradient<T, false, true, true>,
                                 gradient<T, true, true, true>};
  return all;
}
