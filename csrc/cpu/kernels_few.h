// SPDX-License-Identifier: MIT
// The third part of kernels_impl.h, which alone includes it: few keys. A tile has a row for every
// query of a block and all keys as its columns; its rows are kStream apart. There are at least
// kRows rows, and the last register block of them may overlap the one before, with the same
// results.

// How far the next register block is, where `rows` from this one on are left; 0 if there is none.
OCNET_INLINE int64_t next_step(int64_t* rows) {
  const int64_t behind = *rows - kRows, step = behind < kRows ? behind : kRows;
  *rows -= step;
  return step;
}

// Queries may be where the caller has them: `at` tells their rows and panels apart.
template <typename T>
void few_product(const T* queries, const Panels& at, int64_t rows, const T* keys, int64_t depth,
                 T scale, T* tile) {
  // In place, the rows of the next register block follow in one piece; packed, panel by panel.
  const int64_t next_panel = at.row == kPanel<T> ? at.panel : kRows * kPanel<T>;
  for (int64_t step = kRows; step > 0;) {
    RegisterBlock<Single<T>> block;
    const T* panel = queries;
    const T* ahead = queries + kRows * at.row;
    for (int64_t k = 0; k < depth; k += kPanel<T>) {
      const int64_t here = depth - k < kPanel<T> ? depth - k : kPanel<T>;
      block.add(panel, 1, at.row, keys + k * kPanel<T>, kPanel<T>, here, ahead, kRows);
      panel += at.panel;
      ahead += next_panel;
    }
    block.template finish<Then::kScale>(tile, kStream, scale, nullptr);
    step = next_step(&rows);
    queries += step * at.row;
    tile += step * kStream;
  }
}

// Rows of results are written whole, one register block of queries after the other.
template <typename T>
void few_apply(const T* tile, int64_t rows, const T* right, int64_t depth, int64_t channels,
               T scale, T* output, const Panels& at) {
  for (int64_t step = kRows; step > 0;) {
    const T* terms = right;
    T* target = output;
    for (int64_t channel = 0; channel < channels; channel += kPanel<T>) {
      RegisterBlock<Single<T>> block;
      block.add(tile, 1, kStream, terms, kPanel<T>, depth, terms + depth * kPanel<T>, kPanel<T>);
      block.template finish<Then::kScale>(target, at.row, scale, nullptr);
      terms += depth * kPanel<T>;
      target += at.panel;
    }
    step = next_step(&rows);
    tile += step * kStream;
    output += step * at.row;
  }
}

template <typename T>
void few_reduce(const T* tile, int64_t groups, const T* queries, int64_t query_row, int64_t depth,
                T* output) {
  add_products<Single<T>, Then::kAdd, kStream, 1, T>(tile, groups, queries, query_row, depth, T(1),
                                                     nullptr, output, kPanel<T>);
}

template <typename T>
OCNET_INLINE T sum_of_lanes(Vector<T> value) {
  T lanes[kLanes<T>];
  store<Vector<T>>(lanes, value);
  OCNET_UNROLL
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    OCNET_UNROLL
    for (int i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

// As in `softmax`: NaN where a score is +inf, a NaN is passed over by the maximum, and a row of
// -inf is shifted by 0. Its total is 0, and its weights are NaN.
template <typename T>
void few_softmax(T* tile, int64_t rows, int64_t keys, T* maximum, T* total) {
  using V = Vector<T>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  for (int64_t row = 0; row < rows; ++row, tile += kStream) {
    int64_t width = keys;
    for (; width % kPanel<T> != 0; ++width) {
      tile[width] = -kInfinity;
    }
    V high = fill<V>(-kInfinity);
    for (int64_t column = 0; column < width; column += kLanes<T>) {
      const V score = load<V>(tile + column);
      high = score > high ? score : high;
    }
    T lanes[kLanes<T>];
    store<V>(lanes, high);
    OCNET_UNROLL
    for (int half = kLanes<T> / 2; half > 0; half /= 2) {
      OCNET_UNROLL
      for (int i = 0; i < half; ++i) {
        lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
      }
    }
    const T highest = lanes[0];
    const T shift = highest == -kInfinity ? T(0) : highest;
    V sums = {};
    for (int64_t column = 0; column < width; column += kLanes<T>) {
      const V weight = exp_nonpositive<T>(load<V>(tile + column) - shift);
      store<V>(tile + column, weight);
      sums += weight;
    }
    maximum[row] = highest;
    total[row] = sum_of_lanes<T>(sums);
    const T inverse = T(1) / total[row];
    for (int64_t column = 0; column < width; column += kLanes<T>) {
      store<V>(tile + column, load<V>(tile + column) * inverse);
    }
  }
}

template <typename T>
void few_gradient(const T* weights, T* product, int64_t rows, int64_t keys) {
  using V = Vector<T>;
  for (int64_t row = 0; row < rows; ++row, weights += kStream, product += kStream) {
    V sums = {};
    for (int64_t column = 0; column < keys; column += kLanes<T>) {
      sums = load<V>(weights + column) * load<V>(product + column) + sums;
    }
    const T delta = sum_of_lanes<T>(sums);
    for (int64_t column = 0; column < keys; column += kLanes<T>) {
      store<V>(product + column, load<V>(weights + column) * (load<V>(product + column) - delta));
    }
  }
}
