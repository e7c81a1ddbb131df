// SPDX-License-Identifier: MIT
// Copies in the background. A copy is performed when somebody who waits for it can no longer go on
// without, and reads its source only then.
#include <algorithm>
#include <cstring>

#include "common/ptx/descriptor.h"
#include "emulator.h"

namespace ocnet::emulator {

namespace {

constexpr const char* kTensorCopy = "cp.async.bulk.tensor";

// What was in flight has been written.
void land(Record& record, int agent, size_t offset, size_t bytes, uint32_t clock) {
  for (size_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
    Stamp& write = record.words[word].write;
    if (write.agent == agent && write.clock == kInFlight) write.clock = clock;
  }
}

}  // namespace

// --- cp.async ---

void copy_async(uint32_t shared, const void* global, int bytes, int valid_bytes) {
  constexpr const char* kName = "cp.async";
  const Place place = OCNET_CALLER;
  Thread& self = machine->thread();
  const auto size = static_cast<size_t>(bytes);
  const Machine::SharedPlace at = machine->locate(kName, place, shared, size, size);
  if (at.block != self.block) machine->fail(kName, place, "writes only to its own block");
  if (valid_bytes < 0 || valid_bytes > bytes) {
    machine->fail(
        kName, place,
        "copies 0 to " + std::to_string(bytes) + " bytes, got " + std::to_string(valid_bytes));
  }
  if (reinterpret_cast<uintptr_t>(global) % size != 0) {
    machine->fail(kName, place,
                  "reads global memory misaligned: the address must be a multiple "
                  "of " +
                      std::to_string(bytes));
  }
  if (valid_bytes > 0) {
    machine->global(kName, place, global, static_cast<size_t>(valid_bytes), false);
  }
  const Access access{&self.now, self.now.agent, kInFlight, Proxy::kGeneric, true, kName, place};
  machine->note(machine->memory_of(*at.block), at.offset, size, access);
  self.copies.push_back(
      std::make_shared<Copy>(Copy{shared, global, bytes, valid_bytes, machine->release(), place}));
}

// `clock`: when the thread does it, as others will see it.
void Machine::perform(Copy& copy, uint32_t clock) {
  if (copy.done) return;
  copy.done = true;
  constexpr const char* kName = "cp.async";
  const uint32_t offset = copy.shared % (1u << 24) - kSharedStart;
  const int rank = copy.issued.agent / launch_.threads;
  Block& target = blocks_[static_cast<size_t>(rank)];
  unsigned char bytes[16] = {};
  const auto valid = static_cast<size_t>(copy.valid_bytes);
  if (valid > 0) {
    GlobalBuffer& buffer = global(kName, copy.place, copy.global, valid, false);
    const Access read{&copy.issued, copy.issued.agent, clock, Proxy::kGeneric, false,
                      kName,        copy.place};
    note({&buffer.record, -1, buffer.name.c_str()},
         reinterpret_cast<uintptr_t>(copy.global) - buffer.start, valid, read);
    std::memcpy(bytes, copy.global, valid);
  }
  const auto size = static_cast<size_t>(copy.bytes);
  land(target.shared.record, copy.issued.agent, offset, size, clock);
  std::memcpy(target.shared.start + offset, bytes, size);
}

void copy_commit() {
  Thread& self = machine->thread();
  self.copy_groups.push_back(std::move(self.copies));
  self.copies.clear();
}

void copy_wait(int groups_in_flight) {
  Thread& self = machine->thread();
  while (self.copy_groups.size() > static_cast<size_t>(groups_in_flight)) {
    for (const auto& copy : self.copy_groups.front()) machine->perform(*copy, self.now.clock);
    self.copy_groups.pop_front();
  }
}

void copy_arrive(uint32_t address) {
  constexpr const char* kName = "cp.async.mbarrier.arrive";
  machine->mbarrier(kName, OCNET_CALLER, address, false);
  Thread& self = machine->thread();
  CopyGroup all = self.copies;
  for (const CopyGroup& group : self.copy_groups) all.insert(all.end(), group.begin(), group.end());
  for (const auto& copy : all) copy->counted = true;
  machine->arrivals().push_back({std::move(all), &self, address, machine->release()});
}

// --- tensor copies ---

namespace {

// Calls body(global address or null outside of the tensor, offset in shared memory, bytes) for each
// run of bytes of the box, in units no longer than the swizzle's 16 bytes.
template <typename Body>
void for_each_piece(const TensorCopy& copy, const Body& body) {
  const TensorMapRequest& request = copy.request;
  const auto bytes = static_cast<int64_t>(element_bytes(request.element));
  const int64_t per_piece = 16 / bytes;
  const int64_t per_row = request.box[0];
  int64_t rows = 1;
  for (int axis = 1; axis < request.rank; ++axis) rows *= request.box[axis];
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row;
    bool inside = true;
    auto address = reinterpret_cast<uintptr_t>(request.data);
    for (int axis = 1; axis < request.rank; ++axis) {
      const int64_t at = copy.at[static_cast<size_t>(axis)] + rest % request.box[axis];
      rest /= request.box[axis];
      inside = inside && at >= 0 && at < static_cast<int64_t>(request.sizes[axis]);
      address += static_cast<uintptr_t>(at) * request.stride_bytes[axis];
    }
    for (int64_t first = 0; first < per_row; first += per_piece) {
      const int64_t at = copy.at[0] + first;
      // A piece may straddle the edge of the tensor.
      for (int64_t element = 0; element < per_piece;) {
        const bool holds =
            inside && at + element >= 0 && at + element < static_cast<int64_t>(request.sizes[0]);
        int64_t end = element + 1;
        while (end < per_piece && holds == (inside && at + end >= 0 &&
                                            at + end < static_cast<int64_t>(request.sizes[0]))) {
          ++end;
        }
        const auto place =
            static_cast<uint32_t>(copy.shared + (row * per_row + first + element) * bytes);
        const uint32_t offset = (request.swizzle ? ptx::swizzle_128(place) : place) - kSharedStart;
        const uintptr_t global = address + static_cast<uintptr_t>((at + element) * bytes);
        body(holds ? global : 0, offset, static_cast<size_t>((end - element) * bytes));
        element = end;
      }
    }
  }
}

TensorCopy describe_copy(const void* map, uint32_t shared, const int* coordinates, int rank,
                         Place place) {
  TensorCopy copy{};
  std::memcpy(&copy.request, map, sizeof(copy.request));
  copy.shared = shared;
  copy.at.assign(coordinates, coordinates + rank);
  copy.thread = &machine->thread();
  copy.place = place;
  const TensorMapRequest& request = copy.request;
  if (request.rank != rank) {
    machine->fail(kTensorCopy, place,
                  "has " + std::to_string(rank) + " coordinates for a tensor map of " +
                      std::to_string(request.rank) + " axes");
  }
  copy.bytes = element_bytes(request.element);
  for (int axis = 0; axis < rank; ++axis) copy.bytes *= static_cast<int>(request.box[axis]);
  // 128 bytes is the engine's rule. The pattern of the swizzle repeats every 1024: tiles that start
  // elsewhere are legal, and laid out as nobody expects.
  machine->locate(kTensorCopy, place, shared, static_cast<size_t>(copy.bytes),
                  request.swizzle ? 1024 : 128);
  return copy;
}

}  // namespace

// From its issue on, the destination belongs to the copy.
void Machine::mark(const TensorCopy& copy) {
  for (Block* target : copy.blocks) {
    const Access access{&copy.issued, target->mbarriers[copy.mbarrier].agent,
                        kInFlight,    Proxy::kAsync,
                        true,         kTensorCopy,
                        copy.place};
    for_each_piece(copy, [&](uintptr_t, uint32_t offset, size_t bytes) {
      note(memory_of(*target), offset, bytes, access);
    });
  }
}

void tensor_load(uint32_t shared, const void* map, uint32_t mbarrier, const int* coordinates,
                 int rank, uint16_t blocks) {
  const Place place = OCNET_CALLER;
  TensorCopy copy = describe_copy(map, shared, coordinates, rank, place);
  Block& own = machine->block();
  auto& all = machine->blocks();
  if (blocks >> all.size() != 0) {
    machine->fail(kTensorCopy, place, "names blocks outside of the cluster: mask " + hex(blocks));
  }
  for (Block& block : all) {
    const bool wanted = blocks == 0 ? &block == &own : (blocks >> block.rank & 1) != 0;
    if (wanted) copy.blocks.push_back(&block);
  }
  copy.shared %= 1u << 24;
  copy.mbarrier = mbarrier % (1u << 24) - kSharedStart;
  for (Block* target : copy.blocks) {
    machine->mbarrier(kTensorCopy, place,
                      cluster_address(copy.mbarrier + kSharedStart, target->rank), true);
  }
  copy.issued = machine->release();
  machine->mark(copy);
  machine->trace("tensor load of " + std::to_string(copy.bytes) + " bytes to +" +
                 hex(copy.shared - kSharedStart) + " is issued");
  machine->loads().push_back(std::move(copy));
}

void Machine::load(const TensorCopy& copy) {
  for (Block* target : copy.blocks) {
    Mbarrier& barrier = target->mbarriers[copy.mbarrier];
    const uint32_t clock = tick(barrier.agent);
    for_each_piece(copy, [&](uintptr_t from, uint32_t offset, size_t bytes) {
      unsigned char* const to = target->shared.start + offset;
      land(target->shared.record, barrier.agent, offset, bytes, clock);
      if (from == 0) {
        std::memset(to, 0, bytes);
        return;
      }
      const auto* const source = reinterpret_cast<const void*>(from);
      GlobalBuffer& buffer = global(kTensorCopy, copy.place, source, bytes, false);
      const Access read{&copy.issued, barrier.agent, clock,     Proxy::kAsync,
                        false,        kTensorCopy,   copy.place};
      note({&buffer.record, -1, buffer.name.c_str()}, from - buffer.start, bytes, read);
      std::memcpy(to, source, bytes);
    });
    raise(barrier.arriving.seen, barrier.agent, clock);
    count(*target, copy.mbarrier, barrier, 0, -copy.bytes);
  }
}

void tensor_store(const void* map, uint32_t shared, const int* coordinates, int rank) {
  const Place place = OCNET_CALLER;
  TensorCopy copy = describe_copy(map, shared, coordinates, rank, place);
  Thread& self = machine->thread();
  if (self.store_agent < 0) self.store_agent = machine->new_agent();
  copy.blocks = {self.block};
  copy.issued = machine->release();
  self.stores.push_back(std::move(copy));
}

// Reads shared memory; from here on the destination belongs to the copy.
void Machine::take(TensorCopy& copy) {
  Thread& self = *copy.thread;
  const uint32_t clock = tick(self.store_agent);
  for_each_piece(copy, [&](uintptr_t to, uint32_t offset, size_t bytes) {
    const Access read{&copy.issued, self.store_agent, clock,     Proxy::kAsync,
                      false,        kTensorCopy,      copy.place};
    note(memory_of(*self.block), offset, bytes, read);
    if (to == 0) return;
    GlobalBuffer& buffer =
        global(kTensorCopy, copy.place, reinterpret_cast<void*>(to), bytes, true);
    Access write = read;
    write.write = true;
    write.clock = kInFlight;
    note({&buffer.record, -1, buffer.name.c_str()}, to - buffer.start, bytes, write);
    const unsigned char* const from = self.block->shared.start + offset;
    copy.taken.insert(copy.taken.end(), from, from + bytes);
  });
  acquire(self, self.store_agent, clock);
}

// Writes global memory.
void Machine::store(const TensorCopy& copy) {
  Thread& self = *copy.thread;
  const uint32_t clock = tick(self.store_agent);
  const unsigned char* from = copy.taken.data();
  for_each_piece(copy, [&](uintptr_t to, uint32_t, size_t bytes) {
    if (to == 0) return;
    auto* const target = reinterpret_cast<void*>(to);
    GlobalBuffer& buffer = global(kTensorCopy, copy.place, target, bytes, true);
    land(buffer.record, self.store_agent, to - buffer.start, bytes, clock);
    std::memcpy(target, from, bytes);
    from += bytes;
  });
  acquire(self, self.store_agent, clock);
}

void tensor_prefetch(const void*) {}

void bulk_commit() {
  Thread& self = machine->thread();
  self.store_groups.push_back(std::move(self.stores));
  self.stores.clear();
}

// After `reads_only`, what the stores write is still in flight: until another wait, or the end.
void bulk_wait(int groups_in_flight, bool reads_only) {
  Thread& self = machine->thread();
  const auto most = static_cast<size_t>(groups_in_flight);
  while (self.store_groups.size() > most) {
    for (TensorCopy& copy : self.store_groups.front()) machine->take(copy);
    self.taken_groups.push_back(std::move(self.store_groups.front()));
    self.store_groups.pop_front();
  }
  if (!reads_only) machine->finish_stores(self, most);
}

// Lets at most so many groups of a thread be unfinished.
void Machine::finish_stores(Thread& thread, size_t most) {
  while (!thread.taken_groups.empty() &&
         thread.taken_groups.size() + thread.store_groups.size() > most) {
    for (const TensorCopy& copy : thread.taken_groups.front()) store(copy);
    thread.taken_groups.pop_front();
  }
}

// Performs one copy that somebody waits for, chosen at random.
bool Machine::advance_copies() {
  const auto awaited = [](Block& block, uint32_t offset) {
    return !block.mbarriers[offset].waiting.empty();
  };
  std::vector<std::pair<bool, size_t>> candidates;
  for (size_t i = 0; i < loads_.size(); ++i) {
    const TensorCopy& copy = loads_[i];
    if (std::any_of(copy.blocks.begin(), copy.blocks.end(),
                    [&](Block* block) { return awaited(*block, copy.mbarrier); })) {
      candidates.emplace_back(true, i);
    }
  }
  for (size_t i = 0; i < arrivals_.size(); ++i) {
    const uint32_t offset = arrivals_[i].mbarrier - kSharedStart;
    if (awaited(*arrivals_[i].thread->block, offset)) candidates.emplace_back(false, i);
  }
  if (candidates.empty()) return false;
  const auto [is_load, index] = candidates[random_() % candidates.size()];
  const auto at = static_cast<std::ptrdiff_t>(index);
  // Errors are those of the thread that issued it.
  running_ = is_load ? loads_[index].thread : arrivals_[index].thread;
  guarded([&, is_load = is_load] {
    if (is_load) {
      const TensorCopy copy = loads_[static_cast<size_t>(at)];
      loads_.erase(loads_.begin() + at);
      load(copy);
    } else {
      const Arrival arrival = arrivals_[static_cast<size_t>(at)];
      arrivals_.erase(arrivals_.begin() + at);
      arrive(arrival);
    }
  });
  return true;
}

void Machine::arrive(const Arrival& arrival) {
  for (const auto& copy : arrival.copies) perform(*copy, arrival.issued.clock);
  const uint32_t offset = arrival.mbarrier - kSharedStart;
  Mbarrier& barrier = arrival.thread->block->mbarriers[offset];
  if (barrier.pending < 1) {
    fail("cp.async.mbarrier.arrive", nullptr,
         "arrives once more than the " + std::to_string(barrier.expected) + " times of the " +
             state_of(offset, barrier));
  }
  join(barrier.arriving, joined({arrival.issued}));
  count(*arrival.thread->block, offset, barrier, 1, 0);
}

}  // namespace ocnet::emulator
