// SPDX-License-Identifier: MIT
// What threads tell one another, and everything in which they wait for one another: gathers of
// warps and warpgroups, barriers of blocks and clusters, registers that others must give up.
#include <cstring>

#include "emulator.h"

namespace ocnet::emulator {

Snapshot Machine::release() {
  Snapshot now = thread().now;
  ++thread().now.clock;
  return now;
}

void Machine::acquire(Thread& thread, const Knowledge& knowledge) {
  auto known = thread.now.known ? std::make_shared<Knowledge>(*thread.now.known)
                                : std::make_shared<Knowledge>();
  join(*known, knowledge);
  thread.now.known = std::move(known);
}

void Machine::acquire(Thread& thread, int agent, uint32_t clock) {
  Knowledge one;
  raise(one.seen, agent, clock);
  acquire(thread, one);
}

int Machine::new_agent() {
  agent_clocks_.push_back(run_start());
  return first_agent_ + static_cast<int>(agent_clocks_.size()) - 1;
}

void wait_for_earlier_launches() {
  machine->acquire(machine->thread(), machine->earlier_launches(), machine->run_start());
}

namespace {

std::vector<Snapshot> snapshots_of(const std::vector<Thread*>& threads) {
  std::vector<Snapshot> snapshots;
  for (const Thread* thread : threads) snapshots.push_back(thread->now);
  return snapshots;
}

// From here on, each of them knows what any of them does.
void meet(const std::vector<Thread*>& threads) {
  const auto all = std::make_shared<const Knowledge>(joined(snapshots_of(threads)));
  for (Thread* thread : threads) {
    thread->now.known = all;
    ++thread->now.clock;
  }
}

}  // namespace

// --- collectives ---

const void* Machine::gather(const char* primitive, int lanes, const void* value, size_t bytes,
                            Place place,
                            const std::function<void(const unsigned char*)>& complete) {
  Thread& self = thread();
  const bool warp = lanes == kWarp;
  const auto index = static_cast<size_t>(self.index / lanes);
  auto& gathers = warp ? block().warps : block().warpgroup_gathers;
  if (index >= gathers.size()) fail(primitive, place, "needs a whole warpgroup of 4 warps");
  Gather& group = gathers[index];
  if (group.arrived == 0) {
    group.primitive = primitive;
    group.bytes = bytes;
  } else if (std::strcmp(group.primitive, primitive) != 0 || group.bytes != bytes) {
    const Thread& other = *group.waiting.front();
    fail(primitive, place,
         std::string("is executed while ") + name_of(other) + " waits in " + group.primitive +
             " at " + source_line(other.wait.place) + ": the " + (warp ? "warp" : "warpgroup") +
             " diverges in a collective");
  }
  auto& values = group.values[self.gathers[warp ? 0 : 1]++ % 2];
  values.resize(static_cast<size_t>(lanes) * bytes);
  std::memcpy(values.data() + static_cast<size_t>(self.index % lanes) * bytes, value, bytes);
  if (++group.arrived < lanes) {
    group.waiting.push_back(&self);
    suspend(primitive, place);
  } else {
    group.arrived = 0;
    if (complete) complete(values.data());
    wake(group.waiting);
  }
  return values.data();
}

void block_barrier() {
  Block& block = machine->block();
  block.at_barrier.push_back(&machine->thread());
  if (block.at_barrier.size() < block.threads.size()) {
    machine->suspend("bar.sync", OCNET_CALLER, "the block's barrier");
    return;
  }
  machine->trace("bar.sync: the whole block has arrived");
  meet(block.at_barrier);
  block.at_barrier.pop_back();
  machine->wake(block.at_barrier);
}

void named_barrier(int id, int threads, bool wait) {
  const Place place = OCNET_CALLER;
  const char* const primitive = wait ? "bar.sync" : "bar.arrive";
  Block& block = machine->block();
  if (id < 1 || id > 15 || threads < kWarp || threads % kWarp != 0 ||
      threads > static_cast<int>(block.threads.size())) {
    machine->fail(primitive, place,
                  "needs a name from 1 to 15 and whole warps of the block, got name " +
                      std::to_string(id) + " and " + std::to_string(threads) + " threads");
  }
  NamedBarrier& barrier = block.named[id];
  if (barrier.arrived.empty()) barrier.threads = threads;
  if (barrier.threads != threads) {
    machine->fail(primitive, place,
                  "uses barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                      " threads while others use it for " + std::to_string(barrier.threads));
  }
  Thread& self = machine->thread();
  barrier.arrived.push_back(machine->release());
  barrier.last = &self;
  barrier.place = place;
  const bool last = static_cast<int>(barrier.arrived.size()) == threads;
  if (wait) barrier.waiting.push_back(&self);
  if (last) {
    const Knowledge all = joined(barrier.arrived);
    barrier.arrived.clear();
    for (Thread* thread : barrier.waiting) machine->acquire(*thread, all);
    machine->trace("barrier " + std::to_string(id) + ": " + std::to_string(threads) +
                   " threads have arrived");
    if (wait) barrier.waiting.pop_back();
    machine->wake(barrier.waiting);
  } else if (wait) {
    machine->suspend(
        primitive, place,
        "barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads");
  }
}

void cluster_arrive() {
  constexpr const char* kName = "barrier.cluster.arrive";
  const Place place = OCNET_CALLER;
  machine->gather(kName, kWarp, "", 1, place);
  Thread& self = machine->thread();
  if (self.in_cluster_barrier) machine->fail(kName, place, "arrives twice without waiting");
  self.in_cluster_barrier = true;
  machine->cluster_arrived().push_back(machine->release());
  const Launch& launch = machine->launch();
  if (static_cast<int>(machine->cluster_arrived().size()) ==
      launch.threads * launch.cluster_blocks) {
    machine->cluster_complete();
  }
}

void Machine::cluster_complete() {
  cluster_known_ = joined(cluster_arrived_);
  cluster_arrived_.clear();
  for (Block& block : blocks_) {
    for (Thread& thread : block.threads) thread.in_cluster_barrier = false;
  }
  trace("barrier.cluster: every block has arrived");
  wake(cluster_waiting_);
}

void cluster_wait() {
  constexpr const char* kName = "barrier.cluster.wait";
  const Place place = OCNET_CALLER;
  machine->gather(kName, kWarp, "", 1, place);
  Thread& self = machine->thread();
  if (self.in_cluster_barrier) {
    machine->cluster_waiting().push_back(&self);
    machine->suspend(kName, place);
  }
  machine->acquire(self, machine->cluster_known());
}

const void* gather(const char* primitive, int lanes, const void* value, size_t bytes) {
  return machine->gather(primitive, lanes, value, bytes, OCNET_CALLER);
}

void sync_warp() {
  Block& block = machine->block();
  const int first = machine->thread().index / kWarp * kWarp;
  machine->gather("bar.warp.sync", kWarp, "", 1, OCNET_CALLER, [&](const unsigned char*) {
    std::vector<Thread*> lanes;
    for (int lane = 0; lane < kWarp; ++lane) {
      lanes.push_back(&block.threads[static_cast<size_t>(first + lane)]);
    }
    meet(lanes);
  });
}

void set_max_registers(int registers, bool increase) {
  const Place place = OCNET_CALLER;
  const char* const primitive = increase ? "setmaxnreg.inc" : "setmaxnreg.dec";
  if (registers < 24 || registers > 256 || registers % 8 != 0) {
    machine->fail(primitive, place,
                  "needs 24 to 256 registers in steps of 8, got " + std::to_string(registers));
  }
  Thread& self = machine->thread();
  Block& block = machine->block();
  machine->gather(primitive, kWarpgroup, &registers, sizeof(registers), place);
  Warpgroup& group = block.warpgroups[static_cast<size_t>(self.index / kWarpgroup)];
  const bool first = self.index % kWarpgroup == 0;
  if (first && (registers - group.registers) * (increase ? 1 : -1) < 0) {
    machine->fail(primitive, place,
                  "to " + std::to_string(registers) + " from " + std::to_string(group.registers) +
                      " goes the other way");
  }
  const auto wanted = [&] { return (registers - group.registers) * kWarpgroup; };
  while (increase && first && wanted() > block.free_registers) {
    block.want_registers.push_back(&self);
    machine->suspend(primitive, place,
                     std::to_string(wanted()) + " registers wanted, " +
                         std::to_string(block.free_registers) + " free");
  }
  if (first) {
    block.free_registers -= wanted();
    group.registers = registers;
    machine->wake(block.want_registers);
  }
  machine->gather(primitive, kWarpgroup, &registers, sizeof(registers), place);
}

}  // namespace ocnet::emulator
