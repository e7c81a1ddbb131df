// SPDX-License-Identifier: MIT
// A part of inplace_abn_impl.h: vectors from and to memory, and the functions of ELU.

template <typename T>
using SignedBits = Vector<std::make_signed_t<typename Float<T>::Bits>>;

// The sign bit, which the number 0 has as well.
template <typename T>
OCNET_INLINE auto negative(Vector<T> value) {
  return bit_copy<SignedBits<T>>(value) < SignedBits<T>{};
}

// Stores a vector, past the caches if they are to keep what is in them: memory is then not read
// before it is written. The address must be a multiple of the vector's size for that.
template <typename V, typename T>
OCNET_INLINE void store(T* target, V value, bool past_caches) {
#if OCNET_X86
  if (past_caches) {
#if OCNET_BYTES == 64
    if constexpr (sizeof(V) == 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), bit_copy<__m512i>(value));
      return;
    }
#endif
#if OCNET_BYTES >= 32
    if constexpr (sizeof(V) == 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target), bit_copy<__m256i>(value));
      return;
    }
#endif
    if constexpr (sizeof(V) == 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(target), bit_copy<__m128i>(value));
      return;
    }
  }
#endif
  store(target, value);
}

// How numbers are in memory: `read` makes kParts vectors of kStep neighbours, of which number i is
// in vector i % kParts. Narrowing rounds to nearest even, and keeps subnormal numbers and the sign
// bit of everything.
template <typename Element>
struct Stored {
  using V = Vector<Element>;
  static constexpr int kParts = 1;
  static OCNET_INLINE void read(const Element* source, V (&parts)[1]) {
    parts[0] = load<V>(source);
  }
  static OCNET_INLINE void write(Element* target, const V (&parts)[1], bool past_caches) {
    store(target, parts[0], past_caches);
  }
};

// 16-bit numbers are read two at a time, as one of 32 bits: no lane has to move.
constexpr int kPair = 2;
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of a pair is the lower half");

template <>
struct Stored<c10::BFloat16> {
  using V = Vector<float>;
  using B = Vector<uint32_t>;
  static constexpr int kParts = kPair;
  static OCNET_INLINE void read(const c10::BFloat16* source, V (&parts)[kPair]) {
    const B pairs = load<B>(source);
    parts[0] = bit_copy<V>(pairs << 16);
    parts[1] = bit_copy<V>(pairs & 0xffff0000u);
  }
  static OCNET_INLINE void write(c10::BFloat16* target, const V (&parts)[kPair], bool past_caches) {
    store(target, (rounded(parts[0]) >> 16) | (rounded(parts[1]) & 0xffff0000u), past_caches);
  }
  // A carry could make a number of a NaN with all of its upper half set, but none comes here: what
  // numbers are made of are 16-bit numbers and values of channels (AbnChannelMemory).
  static OCNET_INLINE B rounded(V value) {
    const B bits = bit_copy<B>(value);
    return bits + (0x7fffu + ((bits >> 16) & 1u));
  }
};

#if OCNET_X86 && OCNET_BYTES > 16
template <>
struct Stored<c10::Half> {
  using V = Vector<float>;
  static constexpr int kParts = 1;
#if OCNET_BYTES == 64
  // The forms without a mask make some compilers warn of what they leave undefined.
  static constexpr __mmask16 kAllLanes = 0xffff;
  static OCNET_INLINE void read(const c10::Half* source, V (&parts)[1]) {
    parts[0] = bit_copy<V>(_mm512_maskz_cvtph_ps(kAllLanes, load<__m256i>(source)));
  }
  static OCNET_INLINE void write(c10::Half* target, const V (&parts)[1], bool past_caches) {
    store(target,
          _mm512_maskz_cvtps_ph(kAllLanes, bit_copy<__m512>(parts[0]), _MM_FROUND_TO_NEAREST_INT),
          past_caches);
  }
#else
  static OCNET_INLINE void read(const c10::Half* source, V (&parts)[1]) {
    parts[0] = bit_copy<V>(_mm256_cvtph_ps(load<__m128i>(source)));
  }
  static OCNET_INLINE void write(c10::Half* target, const V (&parts)[1], bool past_caches) {
    store(target, _mm256_cvtps_ph(bit_copy<__m256>(parts[0]), _MM_FROUND_TO_NEAREST_INT),
          past_caches);
  }
#endif
};
#else
template <>
struct Stored<c10::Half> {
  using V = Vector<float>;
  using B = Vector<uint32_t>;
  static constexpr int kParts = kPair;
  static OCNET_INLINE void read(const c10::Half* source, V (&parts)[kPair]) {
    const B pairs = load<B>(source);
    parts[0] = widen(pairs & 0xffffu);
    parts[1] = widen(pairs >> 16);
  }
  static OCNET_INLINE void write(c10::Half* target, const V (&parts)[kPair], bool past_caches) {
    store(target, narrow(parts[0]) | (narrow(parts[1]) << 16), past_caches);
  }
  // As widen_half in numbers.h.
  static OCNET_INLINE V widen(B bits) {
    const B magnitude = bits & 0x7fffu;
    const V scaled = bit_copy<V>(magnitude << 13) * from_bits((127u + 112u) << 23);
    const B special = magnitude >= 0x7c00u ? fill<B>(0x7f800000u) : B{};
    return bit_copy<V>(bit_copy<B>(scaled) | special | (bits & 0x8000u) << 16);
  }
  static OCNET_INLINE B narrow(V value) {
    const B bits = bit_copy<B>(value), magnitude = bits & 0x7fffffffu;
    const B rebiased = magnitude - (112u << 23);
    const B normal = (rebiased + (0xfffu + ((rebiased >> 13) & 1u))) >> 13;
    // Adding 0.5 leaves a subnormal in the low bits, rounded.
    const B small = bit_copy<B>(bit_copy<V>(magnitude) + 0.5f) - 0x3f000000u;
    const B large = magnitude > 0x7f800000u ? fill<B>(0x7e00u) : fill<B>(0x7c00u);
    const B finite = magnitude < 0x38800000u ? small : normal;
    return (magnitude >= 0x477ff000u ? large : finite) | ((bits >> 16) & 0x8000u);
  }
};
#endif

// exp(x) - 1 for x <= 0, within 2 ulp; a positive x counts as 0, NaN stays NaN.
template <typename T>
OCNET_INLINE Vector<T> expm1_nonpositive(Vector<T> x) {
  using V = Vector<T>;
  using B = Vector<typename Float<T>::Bits>;
  using F = Float<T>;
  V c = x > V{} ? V{} : x;
  c = c < fill<V>(F::kSmallest) ? fill<V>(F::kSmallest) : c;
  const V shifted = c * F::kLog2e + F::kRound;
  const V n = shifted - F::kRound;
  V f = c - n * F::kLn2Hi;
  f = f - n * F::kLn2Lo;
  // One term more than exp has: the result can be as small as f.
  V p = fill<V>(inverse_factorial<T>(F::kDegree + 1));
  OCNET_UNROLL
  for (int k = F::kDegree; k >= 2; --k) {
    p = p * f + inverse_factorial<T>(k);
  }
  p = p * (f * f) + f;
  const V power = bit_copy<V>((bit_copy<B>(shifted) << F::kMantissaBits) + F::kOne);
  return p * power + (power - T(1));
}

// log(1 + x) for -1 < x <= 0, within 2 ulp; a positive x counts as 0, NaN stays NaN.
template <typename T>
OCNET_INLINE Vector<T> log1p_nonpositive(Vector<T> x) {
  using V = Vector<T>;
  using B = Vector<typename Float<T>::Bits>;
  using F = Float<T>;
  const V c = x > V{} ? V{} : x;
  const V u = c + T(1);
  // u = 2^k * m with m between sqrt(1/2) and sqrt(2).
  const SignedBits<T> above = bit_copy<SignedBits<T>>(bit_copy<B>(u) - F::kRootOfHalf);
  const B exponent = bit_copy<B>(above >> F::kMantissaBits);
  const V m = bit_copy<V>(bit_copy<B>(u) - (exponent << F::kMantissaBits));
  const V k = bit_copy<V>(exponent + bit_copy<B>(fill<V>(F::kRound))) - F::kRound;
  // What rounding took from u, scaled like m.
  const V rest = (c - (u - T(1))) * bit_copy<V>(F::kOne - (exponent << F::kMantissaBits));
  const V f = (m - T(1)) + rest;
  const V half_square = f * f * T(0.5), s = f / (f + T(2)), z = s * s;
  V p = fill<V>(T(2) / (2 * F::kLogTerms + 1));
  OCNET_UNROLL
  for (int i = F::kLogTerms - 1; i >= 1; --i) {
    p = p * z + T(2) / (2 * i + 1);
  }
  const V small = half_square - (s * (half_square + p * z) + k * F::kLn2Lo);
  return k * F::kLn2Hi + (f - small);
}
