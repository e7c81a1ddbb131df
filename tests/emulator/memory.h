// SPDX-License-Identifier: MIT
// Who knows what, and who touched which word when: the record that races are found in.
//
// Every thread has a clock, and so has every asynchronous unit ("agent"). A thread knows, for each
// other agent, up to which clock it may rely on what that agent did; barriers, mbarriers and waits
// pass this knowledge on. An access that meets a conflicting one it does not know of is a race,
// whatever order the two happened to run in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

namespace ocnet::emulator {

// An instruction of the kernel: a return address, turned into a source line only for reports.
using Place = const void*;

constexpr uint32_t kInFlight = 0xffffffffu;  // the clock of what has not happened yet

enum class Proxy : uint8_t { kGeneric, kAsync, kAtomic };

struct Stamp {
  uint32_t clock = 0;
  uint16_t agent = 0;
  uint8_t bytes = 0;  // of the word, one bit each; 0: none
  Proxy proxy = Proxy::kGeneric;
  Place place = nullptr;
};

// By agent: the clock up to which it is known, and up to which that is behind a proxy fence.
struct Knowledge {
  std::vector<uint32_t> seen;
  std::vector<uint32_t> fenced;
};
using Known = std::shared_ptr<const Knowledge>;

void raise(std::vector<uint32_t>& clocks, int agent, uint32_t clock);
inline uint32_t clock_of(const std::vector<uint32_t>& clocks, int agent) {
  return static_cast<size_t>(agent) < clocks.size() ? clocks[static_cast<size_t>(agent)] : 0;
}

// What a thread knew at some point, itself included.
struct Snapshot {
  Known known;
  int agent = -1;
  uint32_t clock = 0;
  uint32_t fenced = 0;

  uint32_t seen_of(int other) const {
    return other == agent ? clock : known ? clock_of(known->seen, other) : 0;
  }
  uint32_t fenced_of(int other) const {
    return other == agent ? fenced : known ? clock_of(known->fenced, other) : 0;
  }
};

void join(Knowledge& into, const Knowledge& from);
// Joins many at the cost of one where they share what they know.
Knowledge joined(const std::vector<Snapshot>& snapshots);
// What all of them know.
Knowledge common(const std::vector<Knowledge>& several);

struct Access {
  const Snapshot* known = nullptr;  // of the thread that makes it, or when it issued it
  int agent = 0;                    // in whose name it is recorded
  uint32_t clock = 0;
  Proxy proxy = Proxy::kGeneric;
  bool write = false;
  const char* primitive = nullptr;
  Place place = nullptr;
};

// The latest write of a word of 4 bytes, its latest read, and the latest that this one knew nothing
// of.
struct Word {
  Stamp write;
  Stamp reads[2];
  uint8_t initialised = 0;
};

struct Record {
  std::vector<Word> words;
};

// Words with a record, and the block they belong to; -1: global memory.
struct Memory {
  Record* record;
  int rank;
  const char* name = "shared memory";
};

struct SharedMemory {
  std::unique_ptr<unsigned char[]> room;
  unsigned char* start = nullptr;
  size_t bytes = 0;
  Record record;

  void prepare(size_t wanted);
  bool holds(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(start) < bytes;
  }
};

struct GlobalBuffer {
  std::string name;
  uintptr_t start = 0;
  size_t bytes = 0;
  bool writable = false;
  Record record;  // as long as the launch
};

}  // namespace ocnet::emulator
