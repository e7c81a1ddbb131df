// SPDX-License-Identifier: MIT
// Bounds, initialisation and races of every access.
#include "memory.h"

#include <algorithm>
#include <cstring>

#include "emulator.h"

namespace ocnet::emulator {

namespace {

constexpr size_t kWordBytes = 4;
constexpr size_t kRoomAround = 4096;  // so that what lies just outside belongs to nobody

std::string bytes_text(size_t bytes) {
  return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

}  // namespace

void raise(std::vector<uint32_t>& clocks, int agent, uint32_t clock) {
  const auto index = static_cast<size_t>(agent);
  if (clocks.size() <= index) clocks.resize(index + 1, 0);
  clocks[index] = std::max(clocks[index], clock);
}

namespace {

void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void keep_common(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (into.size() > from.size()) into.resize(from.size());
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::min(into[i], from[i]);
}

}  // namespace

void join(Knowledge& into, const Knowledge& from) {
  join(into.seen, from.seen);
  join(into.fenced, from.fenced);
}

Knowledge joined(const std::vector<Snapshot>& snapshots) {
  Knowledge all;
  const Knowledge* latest = nullptr;
  for (const Snapshot& one : snapshots) {
    if (one.known && one.known.get() != latest) join(all, *one.known);
    latest = one.known.get();
    raise(all.seen, one.agent, one.clock);
    raise(all.fenced, one.agent, one.fenced);
  }
  return all;
}

Knowledge common(const std::vector<Knowledge>& several) {
  Knowledge all = several.front();
  for (const Knowledge& one : several) {
    keep_common(all.seen, one.seen);
    keep_common(all.fenced, one.fenced);
  }
  return all;
}

// NaN in every floating type, within room that belongs to nobody.
void SharedMemory::prepare(size_t wanted) {
  constexpr size_t kAlignment = 1024;
  if (room == nullptr) {
    bytes = wanted;
    const size_t room_bytes = wanted + 2 * kRoomAround + kAlignment;
    room = std::make_unique<unsigned char[]>(room_bytes);
    const auto first = reinterpret_cast<uintptr_t>(room.get()) + kRoomAround;
    start = reinterpret_cast<unsigned char*>((first + kAlignment - 1) / kAlignment * kAlignment);
    record.words.resize((wanted + kWordBytes - 1) / kWordBytes);
  }
  std::memset(start, 0xff, wanted);
}

// --- the record ---

// Neither in flight nor of an earlier run, and known: what most accesses meet.
inline bool known_to(const Stamp& stamp, const Access& access, uint32_t run_start) {
  return stamp.clock >= run_start && access.known->seen_of(stamp.agent) >= stamp.clock;
}

bool Machine::ordered(const Stamp& stamp, const Access& access, bool global) const {
  if (stamp.proxy == Proxy::kAtomic && access.proxy == Proxy::kAtomic) return true;
  if (stamp.clock < run_start()) {
    if (!global) return true;  // of a block that used this memory before
    const auto next = std::upper_bound(run_starts_.begin(), run_starts_.end(), stamp.clock);
    return acquired_runs_.count(static_cast<uint32_t>(next - run_starts_.begin() - 1)) != 0;
  }
  return stamp.clock != kInFlight && access.known->seen_of(stamp.agent) >= stamp.clock;
}

std::string Machine::describe(const Stamp& stamp) const {
  std::string who;
  if (stamp.clock < run_start()) {
    who = "a block that ran before";
  } else if (stamp.agent < first_agent_) {
    const size_t threads = blocks_.front().threads.size();
    who = name_of(blocks_[stamp.agent / threads].threads[stamp.agent % threads]);
  } else {
    who = "an asynchronous operation";
  }
  return who + " at " + source_line(stamp.place);
}

void Machine::fail_race(const Stamp& stamp, const Memory& memory, size_t offset,
                        const Access& access, const char* how) {
  std::string what = access.write ? "writes " : "reads ";
  what += std::string(memory.name) + " at +" + hex(offset) + ", " + how + " " + describe(stamp);
  if (stamp.clock == kInFlight) {
    what += ", which is still in flight: its wait is missing";
  } else {
    what += ", and nothing orders the two: a barrier or a wait is missing";
  }
  fail(access.primitive, access.place, "race: " + what);
}

void Machine::check_mbarriers(const Memory& memory, size_t offset, size_t bytes,
                              const Access& access) {
  const auto& barriers = blocks_[static_cast<size_t>(memory.rank)].mbarriers;
  if (barriers.empty()) return;
  const auto next = barriers.lower_bound(static_cast<uint32_t>(offset & ~size_t{7}));
  if (next == barriers.end() || next->first >= offset + bytes) return;
  fail(access.primitive, access.place,
       std::string(access.write ? "writes" : "reads") + " shared memory at +" + hex(offset) +
           ", which holds an mbarrier");
}

void Machine::note(const Memory& memory, size_t offset, size_t bytes, const Access& access) {
  const bool global = memory.rank < 0;
  const uint32_t start = run_start();
  const bool reads = !access.write || access.proxy == Proxy::kAtomic;
  if (!global) check_mbarriers(memory, offset, bytes, access);
  if (global && launch_.programmatic && access.known->seen_of(earlier_launches_) < start) {
    fail(access.primitive, access.place,
         std::string(access.write ? "writes " : "reads ") + memory.name + " at +" + hex(offset) +
             " in a launch that may begin early: griddepcontrol.wait is missing");
  }
  Stamp stamp{access.clock, static_cast<uint16_t>(access.agent), 0, access.proxy, access.place};
  for (size_t at = offset; at < offset + bytes;) {
    const size_t in_word = at % kWordBytes;
    const size_t count = std::min(kWordBytes - in_word, offset + bytes - at);
    const auto mask = static_cast<uint8_t>(((1u << count) - 1) << in_word);
    Word& word = memory.record->words[at / kWordBytes];
    const bool fresh = word.write.bytes == 0 || (!global && word.write.clock < start);
    if (fresh && !global) word.initialised = 0;
    if (!fresh && (word.write.bytes & mask) != 0) {
      if (!known_to(word.write, access, start) && !ordered(word.write, access, global)) {
        fail_race(word.write, memory, at, access,
                  word.write.clock == kInFlight ? "which is being filled by" : "written by");
      }
      if (access.proxy == Proxy::kAsync && word.write.proxy == Proxy::kGeneric &&
          word.write.clock >= start &&
          access.known->fenced_of(word.write.agent) < word.write.clock) {
        fail(access.primitive, access.place,
             "touches " + std::string(memory.name) + " at +" + hex(at) + ", written by " +
                 describe(word.write) +
                 " without a fence.proxy.async between its write and the barrier");
      }
    }
    if (reads && !global && (word.initialised & mask) != mask) {
      fail(access.primitive, access.place,
           "reads uninitialised shared memory at +" + hex(at) + " of the block's");
    }
    stamp.bytes = mask;
    if (access.write) {
      for (const Stamp& read : word.reads) {
        if ((read.bytes & mask) != 0 && !known_to(read, access, start) &&
            !ordered(read, access, global)) {
          fail_race(read, memory, at, access, "which is read by");
        }
      }
      word.write = stamp;
      word.initialised |= mask;
    } else {
      // Two slots. Who knows of this read knows of those that its reader knew of.
      if (!known_to(word.reads[0], access, start)) word.reads[1] = word.reads[0];
      word.reads[0] = stamp;
    }
    at += count;
  }
}

// --- where an address leads ---

Machine::SharedPlace Machine::locate(const char* primitive, Place place, uint32_t address,
                                     size_t bytes, size_t alignment) {
  const uint32_t window = address >> 24;
  const size_t rank = window == 0 ? static_cast<size_t>(block().rank) : window - 1;
  const uint32_t offset = (address & 0xffffffu) - kSharedStart;
  if (rank >= blocks_.size()) {
    fail(primitive, place, "takes address " + hex(address) + " of a block outside the cluster");
  }
  Block& target = blocks_[rank];
  if ((address & 0xffffffu) < kSharedStart || offset + bytes > target.shared.bytes) {
    fail(primitive, place,
         "takes " + bytes_text(bytes) + " at +" + hex(offset) + " of shared memory, which has " +
             bytes_text(target.shared.bytes));
  }
  if (offset % alignment != 0) {
    fail(primitive, place,
         "takes shared memory at +" + hex(offset) + ", which must be aligned to " +
             bytes_text(alignment));
  }
  if (&target != &block() && target.finished == static_cast<int>(target.threads.size())) {
    fail(primitive, place,
         "takes shared memory of block " + std::to_string(target.index) +
             " of its cluster, which has exited: meet at a cluster barrier first");
  }
  return {&target, offset};
}

GlobalBuffer& Machine::global(const char* primitive, Place place, const void* address, size_t bytes,
                              bool write) {
  const auto start = reinterpret_cast<uintptr_t>(address);
  const GlobalBuffer* read_only = nullptr;
  for (GlobalBuffer& buffer : global_buffers()) {
    if (start < buffer.start || start + bytes > buffer.start + buffer.bytes) continue;
    if (!write || buffer.writable) return buffer;
    read_only = &buffer;
  }
  if (read_only != nullptr) {
    fail(primitive, place, "writes " + read_only->name + ", which is an input");
  }
  fail_bounds(start, bytes, write, place);
}

// Names the buffer next to which the address lies.
void Machine::fail_bounds(uintptr_t address, size_t bytes, bool write, Place place) {
  std::string what = (write ? "writes " : "reads ") + bytes_text(bytes) + " out of bounds";
  std::string nearest;
  uintptr_t distance = 1 << 20;
  const auto consider = [&](const std::string& name, uintptr_t start, size_t size) {
    const uintptr_t end = start + size;
    const bool before = address < start;
    const uintptr_t gap = before ? start - address : address >= end ? address - end : 0;
    // Running over an end is the likelier slip: what it leads to may be close to another buffer.
    const uintptr_t unlikely = before ? gap + 4096 : gap;
    if (unlikely >= distance) return;
    distance = unlikely;
    nearest = before ? std::to_string(gap) + " bytes before the start of "
                     : std::to_string(address + bytes - end) + " bytes past the end of ";
    nearest += name + " (" + bytes_text(size) + ")";
  };
  for (const Block& one : blocks_) {
    const std::string whose =
        &one == &block() ? "its" : "block " + std::to_string(one.index) + "'s";
    consider(whose + " shared memory", reinterpret_cast<uintptr_t>(one.shared.start),
             one.shared.bytes);
  }
  for (const GlobalBuffer& one : global_buffers()) consider(one.name, one.start, one.bytes);
  if (nearest.empty()) nearest = "an address outside of every buffer";
  fail(nullptr, place, what + ": " + nearest);
}

void Machine::access(uintptr_t address, size_t bytes, bool write, Place place) {
  Thread& self = thread();
  Access access;
  access.known = &self.now;
  access.agent = self.now.agent;
  access.clock = self.now.clock;
  access.write = write;
  access.place = place;
  for (Block& one : blocks_) {
    if (!one.shared.holds(address)) continue;
    const size_t offset = address - reinterpret_cast<uintptr_t>(one.shared.start);
    if (offset + bytes > one.shared.bytes) fail_bounds(address, bytes, write, place);
    if (&one != &block() && one.finished == static_cast<int>(one.threads.size())) {
      fail(nullptr, place,
           "touches the shared memory of block " + std::to_string(one.index) +
               " of its cluster, which has exited: meet at a cluster barrier first");
    }
    note(memory_of(one), offset, bytes, access);
    return;
  }
  if (!write && in_this_module(address)) return;  // constants
  GlobalBuffer& buffer =
      global(nullptr, place, reinterpret_cast<const void*>(address), bytes, write);
  note({&buffer.record, -1, buffer.name.c_str()}, address - buffer.start, bytes, access);
}

void Machine::atomic(const char* primitive, void* address, size_t bytes, Place place) {
  Thread& self = thread();
  const Access access{&self.now, self.now.agent, self.now.clock, Proxy::kAtomic,
                      true,      primitive,      place};
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (Block& one : blocks_) {
    if (!one.shared.holds(at)) continue;
    note(memory_of(one), at - reinterpret_cast<uintptr_t>(one.shared.start), bytes, access);
    return;
  }
  GlobalBuffer& buffer = global(primitive, place, address, bytes, true);
  note({&buffer.record, -1, buffer.name.c_str()}, at - buffer.start, bytes, access);
}

}  // namespace ocnet::emulator
