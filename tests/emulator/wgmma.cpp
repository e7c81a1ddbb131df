// SPDX-License-Identifier: MIT
// Products of warpgroups, performed when they are waited for; and the registers they hold until
// then.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "common/ptx/arithmetic.cuh"
#include "common/ptx/descriptor.h"
#include "emulator.h"

namespace ocnet::emulator {

namespace {

constexpr const char* kName = "wgmma.mma_async";
constexpr int kRows = 64;
constexpr int kMostDepth = 32;
constexpr int kDepthBytes = 32;
constexpr int kMostColumns = 256;
constexpr int kUnitBytes = 16;

Warpgroup& own_warpgroup() {
  Block& block = machine->block();
  return block.warpgroups[static_cast<size_t>(machine->thread().index / kWarpgroup)];
}

int bytes_of(OperandType type) {
  switch (type) {
    case OperandType::kTFloat32:
      return 4;
    case OperandType::kFloat8:
      return 1;
    default:
      return 2;
  }
}
int depth_of(OperandType type) { return kDepthBytes / bytes_of(type); }

double value_of(uint32_t bits, OperandType type) {
  switch (type) {
    case OperandType::kBFloat16:
      return ptx::operand_value(bits, BFloat16{});
    case OperandType::kFloat16:
      return ptx::operand_value(bits, Float16{});
    case OperandType::kFloat8:
      return ptx::operand_value(bits, Float8{});
    default:
      return ptx::operand_value(bits, ptx::TFloat32{});
  }
}

}  // namespace

// --- registers ---

void Machine::touch_registers(uintptr_t address, size_t bytes, Place place) {
  Thread& self = thread();
  for (const RegistersInFlight& one : self.registers) {
    const auto base = reinterpret_cast<uintptr_t>(one.base);
    if (address < base + one.bytes && base < address + bytes) {
      fail(nullptr, place,
           std::string("touches registers that a ") + kName +
               (one.values.empty() ? " in flight reads" : " in flight writes") +
               ": wgmma.wait_group is missing");
    }
  }
  const size_t first = (address - self.stack) / 4;
  const size_t last = (address + bytes - 1 - self.stack) / 4;
  for (size_t word = first; word <= last; ++word) {
    self.register_touches[word] = self.register_fence;
  }
}

void wgmma_fence() {
  machine->gather("wgmma.fence", kWarpgroup, "", 1, OCNET_CALLER);
  Thread& self = machine->thread();
  if (self.register_touches.empty()) self.register_touches.resize(kStackBytes / 4, 0);
  ++self.register_fence;
}

namespace {

// Registers must be locals, and untouched since the latest fence.
void check_fenced(const Thread& thread, const void* registers, size_t bytes, Place place) {
  if (thread.register_fence == 0) {
    machine->fail(kName, place, "is executed without a wgmma.fence before it");
  }
  const uintptr_t offset = reinterpret_cast<uintptr_t>(registers) - thread.stack;
  if (offset >= kStackBytes) machine->fail(kName, place, "needs registers: local arrays");
  for (size_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    if (thread.register_touches[word] == thread.register_fence) {
      machine->fail(kName, place,
                    "uses registers that the thread has touched since its latest wgmma.fence");
    }
  }
}

RegistersInFlight* hold(Thread& thread, const void* registers, size_t bytes, bool accumulators,
                        Place place) {
  auto* const base = static_cast<unsigned char*>(const_cast<void*>(registers));
  for (RegistersInFlight& one : thread.registers) {
    if (one.base != base) continue;
    if (one.bytes != bytes || one.values.empty() == accumulators) {
      machine->fail(kName, place, "takes registers that another shape of it has in flight");
    }
    ++one.operations;
    return &one;
  }
  check_fenced(thread, registers, bytes, place);
  thread.registers.push_back({base, bytes, 1, {}});
  RegistersInFlight& held = thread.registers.back();
  if (accumulators) {
    held.values.resize(bytes / sizeof(float));
    std::memcpy(held.values.data(), base, bytes);
    std::memset(base, 0xff, bytes);  // NaN until the wait
  }
  return &held;
}

void let_go(Thread& thread, RegistersInFlight* held) {
  if (--held->operations > 0) return;
  if (!held->values.empty()) std::memcpy(held->base, held->values.data(), held->bytes);
  thread.registers.remove_if([&](const RegistersInFlight& one) { return &one == held; });
}

// --- tiles ---

struct Tile {
  uint32_t start, leading, stride;
  bool tokens_contiguous;
  int element_bytes;

  // Where the element lies, and its channel.
  uint32_t offset(int token, int channel) const {
    uint32_t at = start;
    if (tokens_contiguous) {
      at += static_cast<uint32_t>(token / 64) * leading +
            static_cast<uint32_t>(channel / 8) * stride +
            static_cast<uint32_t>(channel % 8 * 128 + token % 64 * element_bytes);
    } else {
      at += static_cast<uint32_t>(token / 8) * stride +
            static_cast<uint32_t>(token % 8 * 128 + channel * element_bytes);
    }
    return ptx::swizzle_128(at);
  }
};

Tile tile_of(uint64_t descriptor, bool tokens_contiguous, OperandType type, Place place) {
  const auto field = [&](int shift) {
    return static_cast<uint32_t>(descriptor >> shift & 0x3fffu) << 4;
  };
  const Tile tile{field(0), field(16), field(32), tokens_contiguous, bytes_of(type)};
  const auto require = [&](bool holds, const std::string& what) {
    if (!holds) machine->fail(kName, place, "has an illegal descriptor: " + what);
  };
  require(descriptor >> 62 == 1, "only the 128-byte swizzle is modelled");
  require((descriptor >> 49 & 7) == 0 && (tile.start & 0x380u) == 0,
          "it must start in the first row of a 1024-byte atom, got " + hex(tile.start));
  require(tile.stride % 1024 == 0,
          "its stride must be a multiple of 1024 bytes, got " + std::to_string(tile.stride));
  require(
      !tokens_contiguous || tile.leading % 1024 == 0,
      "its leading stride must be a multiple of 1024 bytes, got " + std::to_string(tile.leading));
  return tile;
}

}  // namespace

// --- issue ---

void wgmma(const Wgmma& fields) {
  const Place place = OCNET_CALLER;
  Block& block = machine->block();
  const int first = machine->thread().index / kWarpgroup * kWarpgroup;
  machine->gather(kName, kWarpgroup, &fields, sizeof(fields), place, [&](const unsigned char* all) {
    const auto* const every = reinterpret_cast<const Wgmma*>(all);
    WgmmaOperation operation{};
    operation.fields = fields;
    operation.place = place;
    std::vector<Knowledge> warps;
    std::vector<Snapshot> lanes;
    for (int i = 0; i < kWarpgroup; ++i) {
      Thread& thread = block.threads[static_cast<size_t>(first + i)];
      const Wgmma& own = every[i];
      if (own.a_descriptor != fields.a_descriptor || own.b_descriptor != fields.b_descriptor ||
          own.accumulate != fields.accumulate || own.columns != fields.columns) {
        machine->fail(kName, place,
                      "gets other descriptors in thread " + std::to_string(first + i) +
                          ": they must be the same in the whole warpgroup");
      }
      operation.accumulators.push_back(hold(thread, own.accumulators,
                                            static_cast<size_t>(own.columns) / 2 * sizeof(float),
                                            true, place));
      if (own.a != nullptr) {
        operation.a_registers.push_back(hold(thread, own.a, 4 * sizeof(uint32_t), false, place));
        operation.a_values.insert(operation.a_values.end(), own.a, own.a + 4);
      }
      lanes.push_back(thread.now);
      ++thread.now.clock;
      if ((i + 1) % kWarp == 0) {
        warps.push_back(joined(lanes));
        lanes.clear();
      }
    }
    // Each warp must know of what the product reads.
    operation.issued.known = std::make_shared<const Knowledge>(common(warps));
    if (fields.a == nullptr) {
      tile_of(fields.a_descriptor, fields.a_tokens_contiguous, fields.type, place);
    }
    tile_of(fields.b_descriptor, fields.b_tokens_contiguous, fields.type, place);
    own_warpgroup().open.push_back(std::move(operation));
  });
}

void wgmma_commit() {
  machine->gather("wgmma.commit_group", kWarpgroup, "", 1, OCNET_CALLER, [](const unsigned char*) {
    Warpgroup& group = own_warpgroup();
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  });
}

void wgmma_wait(int groups_in_flight) {
  machine->gather("wgmma.wait_group", kWarpgroup, &groups_in_flight, sizeof(int), OCNET_CALLER,
                  [&](const unsigned char*) {
                    machine->retire(own_warpgroup(), static_cast<size_t>(groups_in_flight));
                  });
}

// --- performance ---

namespace {

struct Operands {
  double a[kRows][kMostDepth];
  double b[kMostColumns][kMostDepth];
};

void read_tile(const WgmmaOperation& operation, int agent, uint32_t clock, const Tile& tile,
               int tokens, double (*values)[kMostDepth]) {
  Block& block = machine->block();
  const Wgmma& fields = operation.fields;
  const Access access{&operation.issued, agent, clock, Proxy::kAsync, false, kName,
                      operation.place};
  const auto bytes = static_cast<size_t>(tile.element_bytes);
  for (int token = 0; token < tokens; ++token) {
    for (int channel = 0; channel < depth_of(fields.type); ++channel) {
      const uint32_t offset = tile.offset(token, channel) - kSharedStart;
      // The swizzle moves units of 16 bytes, 16 elements of 8 bits, 8 of 16 or 4 of 32.
      const int along = tile.tokens_contiguous ? token : channel;
      if (along * tile.element_bytes % kUnitBytes == 0) {
        if (offset + kUnitBytes > block.shared.bytes) {
          machine->fail(kName, operation.place,
                        "reads +" + hex(offset) + " past the end of shared memory (" +
                            std::to_string(block.shared.bytes) + " bytes)");
        }
        machine->note(machine->memory_of(block), offset, kUnitBytes, access);
      }
      uint32_t bits = 0;
      std::memcpy(&bits, block.shared.start + offset, bytes);
      values[token][channel] = value_of(bits, fields.type);
    }
  }
}

// A from registers: a word holds one channel, two or four, as in mma.cuh and wgmma.cuh.
void unpack_registers(const WgmmaOperation& operation, double (*values)[kMostDepth]) {
  const OperandType type = operation.fields.type;
  const int bytes = bytes_of(type);
  const int per_word = 4 / bytes;
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    const int lane = thread % kWarp;
    for (int word = 0; word < 4; ++word) {
      const int row = thread / kWarp * 16 + lane / 4 + word % 2 * 8;
      const uint32_t bits = operation.a_values[static_cast<size_t>(thread * 4 + word)];
      for (int i = 0; i < per_word; ++i) {
        const int channel = (lane % 4 + word / 2 * 4) * per_word + i;
        values[row][channel] = value_of(bits >> (8 * bytes * i), type);
      }
    }
  }
}

// Products are exact; they and the accumulator are summed in double and rounded once.
void multiply(const WgmmaOperation& operation, const Operands& operands) {
  const Wgmma& fields = operation.fields;
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    std::vector<float>& sums = operation.accumulators[static_cast<size_t>(thread)]->values;
    const int row = thread / kWarp * 16 + thread % kWarp / 4;
    for (int i = 0; i < fields.columns / 2; ++i) {
      const double* const a = operands.a[row + i % 4 / 2 * 8];
      const double* const b = operands.b[i / 4 * 8 + thread % 4 * 2 + i % 2];
      double sum = fields.accumulate ? sums[static_cast<size_t>(i)] : 0.0;
      for (int channel = 0; channel < depth_of(fields.type); ++channel) {
        sum += a[channel] * b[channel];
      }
      sums[static_cast<size_t>(i)] = static_cast<float>(sum);
    }
  }
}

void compute(const WgmmaOperation& operation, int agent, uint32_t clock) {
  static Operands operands;
  const Wgmma& fields = operation.fields;
  if (fields.a != nullptr) {
    unpack_registers(operation, operands.a);
  } else {
    const Tile tile =
        tile_of(fields.a_descriptor, fields.a_tokens_contiguous, fields.type, operation.place);
    read_tile(operation, agent, clock, tile, kRows, operands.a);
  }
  const Tile tile =
      tile_of(fields.b_descriptor, fields.b_tokens_contiguous, fields.type, operation.place);
  read_tile(operation, agent, clock, tile, fields.columns, operands.b);
  multiply(operation, operands);
}

}  // namespace

void Machine::retire(Warpgroup& group, size_t groups_in_flight) {
  if (group.groups.size() <= groups_in_flight) return;
  if (group.agent < 0) group.agent = new_agent();
  const size_t first = static_cast<size_t>(thread().index / kWarpgroup * kWarpgroup);
  const uint32_t clock = tick(group.agent);
  while (group.groups.size() > groups_in_flight) {
    for (const WgmmaOperation& operation : group.groups.front()) {
      compute(operation, group.agent, clock);
      for (size_t i = 0; i < kWarpgroup; ++i) {
        Thread& thread = block().threads[first + i];
        let_go(thread, operation.accumulators[i]);
        if (!operation.a_registers.empty()) let_go(thread, operation.a_registers[i]);
      }
    }
    group.groups.pop_front();
  }
  for (size_t i = 0; i < kWarpgroup; ++i) {
    acquire(block().threads[first + i], group.agent, clock);
  }
  trace("wgmma.wait_group: products are done");
}

}  // namespace ocnet::emulator
