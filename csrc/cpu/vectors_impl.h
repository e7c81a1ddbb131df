// SPDX-License-Identifier: MIT
// No include guard: a part of the files that are compiled once for every instruction set
// (each_instruction_set.h). Whatever holds a vector is defined in such files, because a vector that
// is wider than the selected set is split when a function is read, not when it is inlined.

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

#if OCNET_VECTORS
// The lanes of a, then b, that Index::at<0>, Index::at<1> and so on are.
template <typename V, typename Index, int... I>
OCNET_INLINE V shuffle(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index::template at<I>...);
#else
  using Mask = decltype(a < b);
  return __builtin_shuffle(a, b, Mask{Index::template at<I>...});
#endif
}
#endif
