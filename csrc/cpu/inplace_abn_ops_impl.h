// SPDX-License-Identifier: MIT
// A part of inplace_abn_impl.h: what happens to one vector of numbers. An operation holds what is
// the same for a channel. It adds to `sums`, of which it has kKinds; `keep` leaves 0 of a summand
// where a lane does not count.

template <typename T>
struct Inputs {
  Vector<T> map, residual, grad_out;
};

template <typename T>
struct Outputs {
  Vector<T> target, grad_residual;
};

// Where values of channels are: one for all lanes, or one for each of the numbers of Parts vectors,
// which are those of vector Part.
template <bool Rows, int Parts, int Part>
struct Place {
  int64_t column;

  struct Own {
    template <int I>
    static constexpr int at = Parts * I + Part;
  };

  template <typename T>
  OCNET_INLINE Vector<T> of(const T* values) const {
    using V = Vector<T>;
    if constexpr (!Rows) {
      return fill<V>(*values);
    } else if constexpr (Parts == 1) {
      return load<V>(values + column);
    } else {
#if OCNET_VECTORS
      return shuffle<V, Own>(load<V>(values + column), load<V>(values + column + kLanes<T>),
                             std::make_integer_sequence<int, kLanes<T>>());
#else
      return values[column + Part];
#endif
    }
  }
};

template <typename Number>
struct Total {
  using T = Number;
  static constexpr int kUnroll = 4, kKinds = 1;
  static constexpr bool kReadsResidual = false, kReadsGradient = false, kWrites = false;

  template <typename Block, typename Place>
  static OCNET_INLINE Total at(const Block&, Place) {
    return {};
  }
  template <typename Keep>
  OCNET_INLINE Outputs<T> operator()(const Inputs<T>& in, Vector<T>* sums, const Keep& keep) const {
    sums[0] += keep(in.map);
    return {Vector<T>{}, Vector<T>{}};
  }
};

// Sums of deviations from a number near the mean, and of their squares.
template <typename Number>
struct Deviations {
  using T = Number;
  static constexpr int kUnroll = 4, kKinds = 2;
  static constexpr bool kReadsResidual = false, kReadsGradient = false, kWrites = false;
  Vector<T> shift;

  template <typename Block, typename Place>
  static OCNET_INLINE Deviations at(const Block& block, Place place) {
    return {place.of(block.scratch)};
  }
  template <typename Keep>
  OCNET_INLINE Outputs<T> operator()(const Inputs<T>& in, Vector<T>* sums, const Keep& keep) const {
    const Vector<T> deviation = keep(in.map - shift);
    sums[0] += deviation;
    sums[1] += deviation * deviation;
    return {Vector<T>{}, Vector<T>{}};
  }
};

template <typename Number, int Activation>
struct Normalise {
  using T = Number;
  using V = Vector<T>;
  static constexpr int kUnroll = 2, kKinds = 0;
  static constexpr bool kReadsResidual = true, kReadsGradient = false, kWrites = true;
  V mean, factor, bias, slope, alpha;

  template <typename Block, typename Place>
  static OCNET_INLINE Normalise at(const Block& block, Place place) {
    const auto& channels = block.channels;
    Normalise op;
    op.mean = place.of(channels.mean);
    op.factor = place.of(channels.factor);
    op.bias = place.of(channels.bias);
    if constexpr (Activation == kLeakyRelu) op.slope = place.of(channels.slope);
    if constexpr (Activation == kElu) op.alpha = fill<V>(block.alpha);
    return op;
  }
  template <typename Keep>
  OCNET_INLINE Outputs<T> operator()(const Inputs<T>& in, V*, const Keep&) const {
    const V y = (in.map - mean) * factor + bias + in.residual;
    if constexpr (Activation == kLeakyRelu) {
      return {negative<T>(y) ? y * slope : y, V{}};
    } else if constexpr (Activation == kElu) {
      // The sign bit must stay, even of what is rounded to 0.
      using Bits = SignedBits<T>;
      const Bits sign =
          fill<Bits>(std::numeric_limits<std::make_signed_t<typename Float<T>::Bits>>::min());
      const V below = bit_copy<V>(bit_copy<Bits>(alpha * expm1_nonpositive<T>(y)) | sign);
      return {negative<T>(y) ? below : y, V{}};
    } else {
      return {y < V{} ? V{} : y, V{}};
    }
  }
};

template <typename Number, int Activation, int Does>
struct Gradient {
  using T = Number;
  using V = Vector<T>;
  static constexpr bool kOfSlope = Activation == kSlopeGradient;
  static constexpr bool kLeaky = Activation == kLeakyRelu || kOfSlope;
  static constexpr bool kNeedsNormalised = Does != kScaled;
  static constexpr int kUnroll = 2, kKinds = Does != kSums ? 0 : kOfSlope ? 3 : 2;
  static constexpr bool kReadsResidual = kNeedsNormalised, kReadsGradient = true, kWrites = true;
  V slope, inverse_slope, bias, bound, of_dy, of_centred, offset, alpha, alpha_floor;

  template <typename Block, typename Place>
  static OCNET_INLINE Gradient at(const Block& block, Place place) {
    const auto& channels = block.channels;
    Gradient op;
    op.of_dy = place.of(channels.of_dy);
    if constexpr (kLeaky) {
      op.slope = place.of(channels.slope);
      op.inverse_slope = place.of(channels.inverse_slope);
    }
    if constexpr (kNeedsNormalised) {
      op.bias = place.of(channels.bias);
      op.bound = place.of(channels.bound);
    }
    if constexpr (Does == kCentred) {
      op.of_centred = place.of(channels.of_centred);
      op.offset = place.of(channels.offset);
    }
    op.alpha = fill<V>(block.alpha);
    op.alpha_floor = fill<V>(block.alpha_floor);
    return op;
  }

  template <typename Keep>
  OCNET_INLINE Outputs<T> operator()(const Inputs<T>& in, V* sums, const Keep& keep) const {
    const V dy = through_activation(in.map, in.grad_out);
    if constexpr (Does == kScaled) {
      return {of_dy * dy, dy};
    } else {
      const V y = inverse(in.map);
      const V yc = within_bound(y - in.residual - bias);
      if constexpr (Does == kCentred) {
        return {of_dy * dy + (of_centred * yc + offset), dy};
      } else {
        sums[0] += keep(dy);
        sums[1] += keep(yc * dy);
        if constexpr (kOfSlope) {
          sums[2] += keep(negative<T>(in.map) ? y * in.grad_out : V{});
        }
        return {of_dy * dy, dy};
      }
    }
  }

  OCNET_INLINE V through_activation(V z, V dz) const {
    if constexpr (kLeaky) {
      return negative<T>(z) ? dz * slope : dz;
    } else if constexpr (Activation == kElu) {
      return negative<T>(z) ? dz * (z + alpha) : dz;
    } else {
      return z > V{} ? dz : z * T(0);
    }
  }

  OCNET_INLINE V inverse(V z) const {
    if constexpr (kLeaky) {
      return negative<T>(z) ? z * inverse_slope : z;
    } else if constexpr (Activation == kElu) {
      const V ratio = z / alpha;
      const V within = ratio < alpha_floor ? alpha_floor : ratio;
      return negative<T>(z) ? log1p_nonpositive<T>(within) : z;
    } else {
      return z;
    }
  }

  OCNET_INLINE V within_bound(V yc) const {
    const V above = yc < -bound ? -bound : yc;
    return above > bound ? bound : above;
  }
};
