// SPDX-License-Identifier: MIT
// 32-bit addresses of shared memory, the accesses that primitives make, and atomics.
#include <cstring>

#include "emulator.h"

namespace ocnet::emulator {

uint32_t shared_address(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (Block& block : machine->blocks()) {
    const uintptr_t offset = address - reinterpret_cast<uintptr_t>(block.shared.start);
    // One past the end is an address, too.
    if (offset > block.shared.bytes) continue;
    const auto own = static_cast<uint32_t>(offset) + kSharedStart;
    return &block == &machine->block() ? own : cluster_address(own, block.rank);
  }
  machine->fail("cvta.to.shared", OCNET_CALLER, "needs a pointer into shared memory");
}

uint32_t cluster_address(uint32_t address, int rank) {
  return (address & 0xffffffu) | static_cast<uint32_t>(rank + 1) << 24;
}

void* cluster_pointer(void* pointer, int rank) {
  Machine& now = *machine;
  const uint32_t address = cluster_address(shared_address(pointer), rank);
  const Machine::SharedPlace at = now.locate("mapa", OCNET_CALLER, address, 0, 1);
  return at.block->shared.start + at.offset;
}

namespace {

void shared_access(const char* primitive, Place place, uint32_t address, size_t bytes, bool write,
                   unsigned char** where) {
  Thread& self = machine->thread();
  const Machine::SharedPlace at = machine->locate(primitive, place, address, bytes, bytes);
  const Access access{&self.now, self.now.agent, self.now.clock, Proxy::kGeneric,
                      write,     primitive,      place};
  machine->note(machine->memory_of(*at.block), at.offset, bytes, access);
  *where = at.block->shared.start + at.offset;
}

}  // namespace

void read_shared(const char* primitive, uint32_t address, void* to, size_t bytes) {
  unsigned char* from = nullptr;
  shared_access(primitive, OCNET_CALLER, address, bytes, false, &from);
  std::memcpy(to, from, bytes);
}

void write_shared(const char* primitive, uint32_t address, const void* from, size_t bytes) {
  unsigned char* to = nullptr;
  shared_access(primitive, OCNET_CALLER, address, bytes, true, &to);
  std::memcpy(to, from, bytes);
}

void atomic_access(const char* primitive, void* address, size_t bytes) {
  const Place place = OCNET_CALLER;
  Thread& self = machine->thread();
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    machine->fail(primitive, place,
                  "needs an address that is a multiple of " + std::to_string(bytes));
  }
  if (++self.atomics > kAtomicsInARow) {
    self.atomics = 0;
    self.spinning = true;
    machine->suspend(primitive, place, "asking again and again");
  }
  machine->atomic(primitive, address, bytes, place);
  AtomicSync& sync = machine->atomics()[address];
  if (self.device_fence.agent >= 0) {
    join(sync.known, joined({self.device_fence}));
    const auto& runs = machine->acquired_runs();
    sync.runs.insert(runs.begin(), runs.end());
  }
  if (self.unfenced_atomics.empty() || self.unfenced_atomics.back() != &sync) {
    self.unfenced_atomics.push_back(&sync);
  }
}

// Publishes through later atomics what this thread knows, and takes up what earlier ones told.
void thread_fence() {
  Thread& self = machine->thread();
  for (const AtomicSync* sync : self.unfenced_atomics) {
    machine->acquire(self, sync->known);
    machine->acquired_runs().insert(sync->runs.begin(), sync->runs.end());
  }
  self.unfenced_atomics.clear();
  self.device_fence = machine->release();
}

}  // namespace ocnet::emulator
