// SPDX-License-Identifier: MIT
// Atomic read-modify-writes of global or shared words (ISA: atom), relaxed, and the fence
// that orders them. Only for counters: sums whose order shows are not made with atomics.
#pragma once

#include "device.cuh"

namespace ocnet::device {

#if defined(__CUDACC__)

// CUDA declares its 64-bit atomics for unsigned long long, which is another type than uint64_t.
template <typename T>
struct AtomicWord {
  using type = T;
};
template <>
struct AtomicWord<uint64_t> {
  using type = unsigned long long;
};
template <typename T>
using atomic_word_t = typename AtomicWord<T>::type;

// Each returns the value before.
template <typename T>
OCNET_DEVICE T atomic_add(T* address, T value) {
  return atomicAdd(reinterpret_cast<atomic_word_t<T>*>(address), atomic_word_t<T>(value));
}
template <typename T>
OCNET_DEVICE T atomic_max(T* address, T value) {
  return atomicMax(reinterpret_cast<atomic_word_t<T>*>(address), atomic_word_t<T>(value));
}
template <typename T>
OCNET_DEVICE T atomic_exchange(T* address, T value) {
  return atomicExch(reinterpret_cast<atomic_word_t<T>*>(address), atomic_word_t<T>(value));
}

// fence.acq_rel.gpu (ISA: membar, fence): before an atomic that publishes what this thread wrote,
// and after one that takes up what others did.
OCNET_DEVICE void thread_fence() { __threadfence(); }

#else

template <typename T>
OCNET_EMULATED T atomic_add(T* address, T value) {
  emulator::atomic_access("atom.add", address, sizeof(T));
  const T before = *address;
  *address = before + value;
  return before;
}
template <typename T>
OCNET_EMULATED T atomic_max(T* address, T value) {
  emulator::atomic_access("atom.max", address, sizeof(T));
  const T before = *address;
  if (value > before) *address = value;
  return before;
}
template <typename T>
OCNET_EMULATED T atomic_exchange(T* address, T value) {
  emulator::atomic_access("atom.exch", address, sizeof(T));
  const T before = *address;
  *address = value;
  return before;
}
OCNET_EMULATED void thread_fence() { emulator::thread_fence(); }

#endif

}  // namespace ocnet::device
