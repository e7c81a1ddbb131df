// SPDX-License-Identifier: MIT
// mbarriers: phases, arrivals, bytes, and what waiting for them tells.
#include "emulator.h"

namespace ocnet::emulator {

std::string Machine::state_of(uint32_t offset, const Mbarrier& barrier) {
  return "mbarrier at +" + hex(offset) + ", phase " + std::to_string(barrier.phase) + " (parity " +
         std::to_string(barrier.phase % 2) + "): " + std::to_string(barrier.pending) + " of " +
         std::to_string(barrier.expected) + " arrivals and " +
         std::to_string(barrier.transaction_bytes) + " bytes missing";
}

// `by_engine`: counted by the copy engine or by another block, which need more than a block
// barrier.
Mbarrier& Machine::mbarrier(const char* primitive, Place place, uint32_t address, bool by_engine) {
  const SharedPlace at = locate(primitive, place, address, 8, 8);
  const auto found = at.block->mbarriers.find(at.offset);
  if (found == at.block->mbarriers.end()) {
    fail(primitive, place, "takes +" + hex(at.offset) + ", where no mbarrier was initialised");
  }
  Mbarrier& barrier = found->second;
  if (thread().now.seen_of(barrier.initialised.agent) < barrier.initialised.clock) {
    fail(primitive, place,
         "uses the mbarrier at +" + hex(at.offset) +
             " before a barrier has told of its initialisation at " +
             source_line(barrier.initialised.place));
  }
  if ((by_engine || at.block != &block()) && !barrier.fenced) {
    fail(primitive, place,
         "uses the mbarrier at +" + hex(at.offset) +
             " without a fence.mbarrier_init after its initialisation at " +
             source_line(barrier.initialised.place));
  }
  return barrier;
}

void Machine::complete(Block& block, uint32_t offset, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.transaction_bytes != 0) return;
  trace("mbarrier at +" + hex(offset) + " of block " + std::to_string(block.index) + ": phase " +
        std::to_string(barrier.phase) + " is complete");
  ++barrier.phase;
  barrier.pending = barrier.expected;
  join(barrier.completed, barrier.arriving);
  barrier.arriving = {};
  for (Thread* thread : barrier.waiting) thread->spinning = false;
  wake(barrier.waiting);
}

void Machine::count(Block& block, uint32_t offset, Mbarrier& barrier, int arrivals, int64_t bytes) {
  barrier.transaction_bytes += bytes;
  barrier.pending -= arrivals;
  complete(block, offset, barrier);
}

void mbarrier_init(uint32_t address, int arrivals) {
  constexpr const char* kName = "mbarrier.init";
  const Place place = OCNET_CALLER;
  const Machine::SharedPlace at = machine->locate(kName, place, address, 8, 8);
  Thread& self = machine->thread();
  if (at.block != self.block || arrivals < 1 || arrivals >= 1 << 20) {
    machine->fail(
        kName, place,
        "needs its own block and 1 to 2^20 - 1 arrivals, got " + std::to_string(arrivals));
  }
  if (at.block->mbarriers.count(at.offset) != 0) {
    machine->fail(
        kName, place,
        "finds an mbarrier at +" + hex(at.offset) + " already: mbarrier.inval is missing");
  }
  const Access access{&self.now, self.now.agent, self.now.clock, Proxy::kGeneric,
                      true,      kName,          place};
  machine->note(machine->memory_of(*at.block), at.offset, 8, access);
  Mbarrier& barrier = at.block->mbarriers[at.offset];
  barrier.expected = barrier.pending = arrivals;
  barrier.agent = machine->new_agent();
  barrier.initialised = {self.now.clock, static_cast<uint16_t>(self.now.agent), 0xf,
                         Proxy::kGeneric, place};
  self.unfenced_mbarriers.push_back(at.offset);
}

void mbarrier_invalidate(uint32_t address) {
  const Place place = OCNET_CALLER;
  Mbarrier& barrier = machine->mbarrier("mbarrier.inval", place, address, false);
  if (!barrier.waiting.empty()) {
    machine->fail("mbarrier.inval", place, "finds threads that wait for the mbarrier");
  }
  machine->block().mbarriers.erase(address - kSharedStart);
}

namespace {

void tell_of_mbarriers() {
  Thread& self = machine->thread();
  for (const uint32_t offset : self.unfenced_mbarriers) {
    const auto found = self.block->mbarriers.find(offset);
    if (found != self.block->mbarriers.end()) found->second.fenced = true;
  }
  self.unfenced_mbarriers.clear();
}

}  // namespace

void fence_mbarrier_init() { tell_of_mbarriers(); }

void fence_proxy_async() {
  machine->thread().now.fenced = machine->release().clock;
  tell_of_mbarriers();
}

void mbarrier_arrive(uint32_t address, int arrivals, int transaction_bytes) {
  const Place place = OCNET_CALLER;
  const char* const name = transaction_bytes > 0 ? "mbarrier.expect_tx" : "mbarrier.arrive";
  const Machine::SharedPlace at = machine->locate(name, place, address, 8, 8);
  Mbarrier& barrier = machine->mbarrier(name, place, address, false);
  if (transaction_bytes < 0 || barrier.transaction_bytes + transaction_bytes >= 1 << 20) {
    machine->fail(name, place,
                  "expects bytes from 0 to 2^20 - 1 in a phase, got " +
                      std::to_string(barrier.transaction_bytes + transaction_bytes));
  }
  if (arrivals > barrier.pending) {
    machine->fail(name, place,
                  "arrives once more than the " + std::to_string(barrier.expected) +
                      " times of the " + Machine::state_of(at.offset, barrier));
  }
  if (arrivals > 0) {
    const Snapshot now = machine->release();
    join(barrier.arriving, joined({now}));
    if (at.block != &machine->block()) {
      barrier.remote.push_back(
          {now.clock, static_cast<uint16_t>(now.agent), 0xf, Proxy::kGeneric, place});
    }
  }
  machine->count(*at.block, at.offset, barrier, arrivals, transaction_bytes);
}

namespace {

// The mbarrier if its phase of this parity has completed; then the thread knows what its arrivals
// knew. Null otherwise, with `barrier` for waiting.
bool has_completed(const char* name, Place place, uint32_t address, uint32_t parity,
                   Mbarrier** barrier) {
  if (parity > 1) {
    machine->fail(name, place, "needs parity 0 or 1, got " + std::to_string(parity));
  }
  if (machine->locate(name, place, address, 8, 8).block != &machine->block()) {
    machine->fail(name, place, "can wait only for an mbarrier of its own block");
  }
  *barrier = &machine->mbarrier(name, place, address, false);
  if ((*barrier)->phase % 2 == parity) return false;
  machine->acquire(machine->thread(), (*barrier)->completed);
  return true;
}

}  // namespace

void mbarrier_wait(uint32_t address, uint32_t parity) {
  constexpr const char* kName = "mbarrier.try_wait";
  const Place place = OCNET_CALLER;
  Mbarrier* barrier = nullptr;
  while (!has_completed(kName, place, address, parity, &barrier)) {
    barrier->waiting.push_back(&machine->thread());
    machine->suspend(
        kName, place,
        "parity " + std::to_string(parity) + " of the mbarrier at +" + hex(address - kSharedStart));
  }
}

bool mbarrier_test(uint32_t address, uint32_t parity) {
  constexpr const char* kName = "mbarrier.try_wait";
  const Place place = OCNET_CALLER;
  Mbarrier* barrier = nullptr;
  if (has_completed(kName, place, address, parity, &barrier)) return true;
  machine->thread().spinning = true;
  barrier->waiting.push_back(&machine->thread());
  machine->suspend(kName, place,
                   "asking for parity " + std::to_string(parity) + " of the mbarrier at +" +
                       hex(address - kSharedStart));
  return has_completed(kName, place, address, parity, &barrier);
}

// "mbarrier at +0x40, phase 3 (parity 1): 1 of 2 arrivals missing" of all that threads wait for.
std::string Machine::awaited_mbarriers() const {
  std::string text;
  for (const Block& block : blocks_) {
    for (const auto& [offset, barrier] : block.mbarriers) {
      if (barrier.waiting.empty()) continue;
      text += "\n  block " + std::to_string(block.index) + ", " + state_of(offset, barrier);
    }
  }
  return text;
}

}  // namespace ocnet::emulator
