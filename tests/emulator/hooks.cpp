// SPDX-License-Identifier: MIT
// The functions that an instrumented kernel calls before each load and store, and instead of atomic
// operations: those of the compiler's thread sanitizer, whose own library is not linked.
#include "emulator.h"

namespace {

using ocnet::emulator::machine;

inline void hook(const void* address, size_t bytes, size_t alignment, bool write,
                 const void* place) {
  if (machine == nullptr || !machine->running()) return;  // host code
  const auto at = reinterpret_cast<uintptr_t>(address);
  const ocnet::emulator::Thread& self = machine->thread();
  const bool local = at - self.stack < ocnet::emulator::kStackBytes;
  // Locals are registers to a kernel, and matter only where products hold some of them.
  if (local) {
    if (!self.register_touches.empty()) machine->touch_registers(at, bytes, place);
    return;
  }
  if (at % alignment != 0) {
    machine->fail(nullptr, place,
                  std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
                      " bytes misaligned: the address must be a multiple of " +
                      std::to_string(alignment));
  }
  machine->access(at, bytes, write, place);
}

}  // namespace

extern "C" {

#define OCNET_HOOKS(bytes)                                           \
  void __tsan_read##bytes(void* address) {                           \
    hook(address, bytes, bytes, false, __builtin_return_address(0)); \
  }                                                                  \
  void __tsan_write##bytes(void* address) {                          \
    hook(address, bytes, bytes, true, __builtin_return_address(0));  \
  }                                                                  \
  void __tsan_unaligned_read##bytes(void* address) {                 \
    hook(address, bytes, 1, false, __builtin_return_address(0));     \
  }                                                                  \
  void __tsan_unaligned_write##bytes(void* address) {                \
    hook(address, bytes, 1, true, __builtin_return_address(0));      \
  }
OCNET_HOOKS(1)
OCNET_HOOKS(2)
OCNET_HOOKS(4)
OCNET_HOOKS(8)
OCNET_HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
  hook(address, bytes, 1, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  hook(address, bytes, 1, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Host code of an instrumented source: reference counts and guards of static variables.
unsigned char __tsan_atomic8_load(const volatile unsigned char* from, int) {
  return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}
unsigned __tsan_atomic32_load(const volatile unsigned* from, int) {
  return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_compare_exchange_weak(volatile unsigned* to, unsigned* expected, unsigned value,
                                          int, int) {
  return __atomic_compare_exchange_n(to, expected, value, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
unsigned __tsan_atomic32_fetch_add(volatile unsigned* to, unsigned value, int) {
  return __atomic_fetch_add(to, value, __ATOMIC_SEQ_CST);
}

}  // extern "C"
