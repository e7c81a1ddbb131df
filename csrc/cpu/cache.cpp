// SPDX-License-Identifier: MIT
#include "cache.h"

#include <algorithm>
#include <atomic>

#include "instruction_sets.h"

#if OCNET_X86
#include <cpuid.h>
#endif

namespace ocnet::cpu {
namespace {

// The system's own answer (sysconf) adds up the caches of all parts of some processors.
int64_t detect() {
  int64_t largest = 0;
#if OCNET_X86
  for (const unsigned int leaf : {4u, 0x8000001du}) {  // of Intel, of AMD: the same bits
    unsigned int a, b, c, d;
    // A cache of kind 0 ends the list, and so does this, whatever a virtual machine may answer.
    for (unsigned int cache = 0; cache < 8; ++cache) {
      if (!__get_cpuid_count(leaf, cache, &a, &b, &c, &d) || (a & 31) == 0) break;
      const int64_t line = (b & 0xfff) + 1, parts = ((b >> 12) & 0x3ff) + 1, ways = (b >> 22) + 1;
      largest = std::max(largest, line * parts * ways * (int64_t{c} + 1));
    }
  }
#endif
  constexpr int64_t kUsual = int64_t{32} << 20;
  return largest > 0 ? largest : kUsual;
}

constexpr int64_t kUnset = -1;
std::atomic<int64_t> wanted{kUnset};

}  // namespace

int64_t largest_cache() {
  static const int64_t detected = detect();
  const int64_t bytes = wanted.load(std::memory_order_relaxed);
  return bytes == kUnset ? detected : bytes;
}

}  // namespace ocnet::cpu

#if OCNET_VECTORS
// For the tests, which find it by its name in the loaded library: the cache is taken to be of this
// many bytes; -1: of as many as it has.
extern "C" __attribute__((visibility("default"))) void ocnet_cpu_assume_cache(int64_t bytes) {
  ocnet::cpu::wanted = bytes;
}
#endif
