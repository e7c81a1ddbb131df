// SPDX-License-Identifier: MIT
// The second half of kernels_impl.h, which alone includes it: what happens to the numbers of a tile
// between two products.

// A column with a score of +inf gets NaN weights and a NaN sum: inf - inf.
template <typename U, typename T = typename U::Number>
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
  V shift[kWide], total[kWide] = {};
  for (int part = 0; part < kWide; ++part) {
    // A column of -inf so far is shifted by 0: its weights are exp(-inf) = 0, not NaN.
    shift[part] = highest[part] == fill<V>(-kInfinity) ? V{} : highest[part];
  }
  // Short partial sums lose less than one long one.
  for (int64_t start = 0; start < streamed; start += 16) {
    const int64_t end = start + 16 < streamed ? start + 16 : streamed;
    V partial[kWide] = {};
    for (int64_t s = start; s < end; s += U::kPerUnit) {
      V weights[U::kPerUnit][kWide] = {};
      OCNET_UNROLL
      for (int row = 0; row < U::kPerUnit; ++row) {
        if (U::kPerUnit > 1 && s + row >= end) {
          break;
        }
        OCNET_UNROLL
        for (int part = 0; part < kWide; ++part) {
          const V score = load<V>(tile + (s + row) * kResident + part * kLanes<T>);
          weights[row][part] = exp_nonpositive<T>(score - shift[part]);
          partial[part] += weights[row][part];
        }
      }
      U::store_by_columns(tile, s, weights);
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
}

template <typename U, typename T = typename U::Number>
void softmax_by_rows(T* tile, int64_t streamed, int64_t used, T* weights, T* maximum, T* sum,
                     T* factor) {
  using V = Vector<T>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  T highest[kStream], shift[kStream] = {}, total[kStream] = {};
  for (int64_t s = 0; s < streamed; ++s) {
    T* const row = tile + s * kResident;
    for (int64_t column = used; column % kPanel<T> != 0; ++column) {
      row[column] = -kInfinity;
    }
    V high = fill<V>(maximum[s]);
    for (int64_t column = 0; column < used; column += kLanes<T>) {
      const V score = load<V>(row + column);
      high = score > high ? score : high;
    }
    T lanes[kLanes<T>];
    store<V>(lanes, high);
    highest[s] = lanes[0];
    for (const T lane : lanes) {
      highest[s] = lane > highest[s] ? lane : highest[s];
    }
    shift[s] = highest[s] == -kInfinity ? T(0) : highest[s];
  }
  for (int64_t s = 0; s < streamed; s += U::kPerUnit) {
    V totals[U::kPerUnit] = {};
    for (int64_t column = 0; column < used; column += kPanel<T>) {
      V values[U::kPerUnit][kWide] = {};
      OCNET_UNROLL
      for (int row = 0; row < U::kPerUnit; ++row) {
        if (U::kPerUnit > 1 && s + row >= streamed) {
          break;
        }
        OCNET_UNROLL
        for (int part = 0; part < kWide; ++part) {
          const T* const source = tile + (s + row) * kResident + column + part * kLanes<T>;
          values[row][part] = exp_nonpositive<T>(load<V>(source) - shift[s + row]);
          totals[row] += values[row][part];
        }
      }
      U::store_by_rows(weights + column, s, column, values);
    }
    for (int row = 0; row < U::kPerUnit && s + row < streamed; ++row) {
      T lanes[kLanes<T>];
      store<V>(lanes, totals[row]);
      for (const T lane : lanes) {
        total[s + row] += lane;
      }
    }
  }
  for (int64_t s = 0; s < streamed; ++s) {
    factor[s] = maximum[s];
    maximum[s] = highest[s];
  }
  for (int64_t s = 0; s < streamed; s += kLanes<T>) {
    const V rescale = exp_nonpositive<T>(load<V>(factor + s) - load<V>(shift + s));
    store<V>(factor + s, rescale);
    store<V>(sum + s, load<V>(sum + s) * rescale + load<V>(total + s));
  }
}

template <typename U, bool Queries, bool Keys, bool Gradient, typename T = typename U::Number>
void gradient(const GradientTile<T>& tile, int64_t streamed) {
  using V = Vector<T>;
  const int64_t used = tile.used - tile.column;
  V lse[kWide] = {}, delta[kWide] = {};
  if (Queries) {
    for (int part = 0; part < kWide; ++part) {
      lse[part] = load<V>(tile.resident_lse + part * kLanes<T>);
      delta[part] = load<V>(tile.resident_delta + part * kLanes<T>);
    }
  }
  for (int64_t s = 0; s < streamed; s += U::kPerUnit) {
    V of_queries[U::kPerUnit][kWide] = {}, of_keys[U::kPerUnit][kWide] = {};
    V results[U::kPerUnit][kWide] = {};
    OCNET_UNROLL
    for (int row = 0; row < U::kPerUnit; ++row) {
      if (U::kPerUnit > 1 && s + row >= streamed) {
        break;
      }
      OCNET_UNROLL
      for (int part = 0; part < kWide; ++part) {
        const int64_t at = (s + row) * kResident + part * kLanes<T>;
        const V score = load<V>(tile.scores + at);
        V result = {};
        if (Queries) {
          const V weight = exp_nonpositive<T>(score - lse[part]);
          of_queries[row][part] = U::inside(weight, used, part);
          if (Gradient) {
            result = weight * (load<V>(tile.query_product + at) - delta[part]);
          }
        }
        if (Keys) {
          const V weight = exp_nonpositive<T>(score - tile.streamed_lse[s + row]);
          of_keys[row][part] = weight;
          if (Gradient) {
            const V product = load<V>(tile.key_product + at);
            result = weight * (product - tile.streamed_delta[s + row]) + result;
          }
        }
        results[row][part] = U::inside(result, used, part);
      }
    }
    if (Queries) {
      U::store_by_rows(tile.key_product, s, tile.column, of_queries);
    }
    if (Keys) {
      U::store_by_columns(tile.scores, s, of_keys);
    }
    if (Gradient) {
      U::store_by_columns(tile.gradient, s, results);
    }
    if (Gradient && Queries && U::kPerUnit > 1) {
      U::store_by_rows(tile.query_product, s, tile.column, results);
    }
  }
}
