// SPDX-License-Identifier: MIT
// The emulator's own view of a launch: threads, blocks, what they know of each other, and memory
// with a record of who touched it. csrc/common/emulation.h is what kernels see of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "common/device.cuh"
#include "common/emulation.h"
#include "common/tensor_map.h"
#include "memory.h"

namespace ocnet::emulator {

// In a function of emulation.h: the line of the kernel that called the emulated form.
#define OCNET_CALLER __builtin_return_address(1)

constexpr int kWarp = device::kWarpThreads;
constexpr int kWarpgroup = device::kWarpgroupThreads;
// One error for the many ways to wait for ever.
constexpr int kSpinLimit = 1000;
constexpr int kAtomicsInARow = 100;  // a thread that does more of them may be waiting for another
constexpr size_t kStackBytes = 256 * 1024;

struct Settings {
  uint64_t seed = 0;
  size_t shared_limit = 227 * 1024;  // sm_90
  int64_t traced_block = -1;
  int multiprocessors = 132;  // H100, H200
  bool clusters = true;       // from sm_90 on
};

struct LaunchRecord {
  std::string kernel;
  int64_t blocks;
  int threads;
  size_t shared_bytes;
  int cluster_blocks;
};

struct Block;
struct Thread;

// What a thread waits in, for reports and for those who can end the wait.
struct Wait {
  const char* primitive = nullptr;
  std::string detail;
  Place place = nullptr;
};

// An asynchronous copy from global to shared memory. Its group may wait for it, and an mbarrier
// too.
struct Copy {
  uint32_t shared;
  const void* global;
  int bytes;
  int valid_bytes;
  Snapshot issued;
  Place place;
  bool counted = false;  // at an mbarrier
  bool done = false;
};
using CopyGroup = std::vector<std::shared_ptr<Copy>>;

// A copy of the copy engine between a tensor and shared memory.
struct TensorCopy {
  TensorMapRequest request;  // a copy: the thread may have exited when it is performed
  uint32_t shared;
  std::vector<int> at;
  std::vector<Block*> blocks;
  uint32_t mbarrier;  // offset in each of the blocks
  int bytes;
  Thread* thread;
  Snapshot issued;
  Place place;
  std::vector<unsigned char> taken;  // from shared memory, by a store that has not written them yet
};

// Registers that an instruction in flight reads or writes: nobody else may touch them.
struct RegistersInFlight {
  unsigned char* base;
  size_t bytes;
  int operations;             // in flight
  std::vector<float> values;  // of accumulators, while their place holds NaN
};

struct Thread {
  Block* block = nullptr;
  int index = 0;  // in the block
  bool finished = false;
  bool spinning = false;
  int atomics = 0;  // since it last let others run
  Wait wait;

  // Its own clock moves on whenever others may learn of what was done so far.
  Snapshot now;

  unsigned gathers[2] = {0, 0};  // of its warp and of its warpgroup
  bool in_cluster_barrier = false;
  Snapshot device_fence;  // state at the latest thread_fence
  std::vector<uint32_t> unfenced_mbarriers;
  std::vector<struct AtomicSync*> unfenced_atomics;

  CopyGroup copies;  // since the last commit
  std::deque<CopyGroup> copy_groups;
  std::vector<TensorCopy> stores;  // since the last commit
  std::deque<std::vector<TensorCopy>> store_groups;
  std::deque<std::vector<TensorCopy>> taken_groups;  // have read, and not written
  int store_agent = -1;

  std::list<RegistersInFlight> registers;
  uint32_t register_fence = 0;             // counts wgmma_fence
  std::vector<uint32_t> register_touches;  // by word of the stack: the fence it was touched after

  struct Fiber* fiber = nullptr;
  uintptr_t stack = 0;
};

// Threads that execute one collective together.
struct Gather {
  const char* primitive = nullptr;
  size_t bytes = 0;
  int arrived = 0;
  std::vector<unsigned char> values[2];  // in turn: a fast lane must not overwrite what others read
  std::vector<Thread*> waiting;
};

struct NamedBarrier {
  int threads = 0;
  std::vector<Snapshot> arrived;
  std::vector<Thread*> waiting;
  Thread* last = nullptr;  // that has arrived, and where
  Place place = nullptr;
};

struct Mbarrier {
  int expected = 0;
  int pending = 0;
  int64_t transaction_bytes = 0;
  uint64_t phase = 0;
  Knowledge arriving;   // what those know who have arrived in this phase
  Knowledge completed;  // what waiting for a completed phase tells
  int agent = -1;       // on whose behalf copies write that this barrier counts
  Stamp initialised;
  bool fenced = false;
  std::vector<Stamp> remote;  // arrivals from other blocks
  std::vector<Thread*> waiting;
};

struct WgmmaOperation {
  Wgmma fields;
  std::vector<RegistersInFlight*> accumulators;  // one per thread of the warpgroup
  std::vector<RegistersInFlight*> a_registers;
  std::vector<uint32_t> a_values;  // 4 per thread, where A comes from registers
  Snapshot issued;                 // what all four warps knew
  Place place;
};

struct Warpgroup {
  std::vector<WgmmaOperation> open;  // since the last commit
  std::deque<std::vector<WgmmaOperation>> groups;
  int agent = -1;
  int registers = 0;  // per thread
};

struct Block {
  int rank = 0;
  int64_t index = 0;
  int finished = 0;
  SharedMemory shared;
  std::vector<Thread> threads;
  std::vector<Thread*> at_barrier;
  NamedBarrier named[16];
  std::vector<Gather> warps;
  std::vector<Gather> warpgroup_gathers;
  std::vector<Warpgroup> warpgroups;
  std::map<uint32_t, Mbarrier> mbarriers;
  int free_registers = 0;
  std::vector<Thread*> want_registers;
};

// What blocks tell one another through an atomic word.
struct AtomicSync {
  Knowledge known;
  std::set<uint32_t> runs;
};

// One launch. The functions of emulation.h work on the thread that is running.
class Machine {
 public:
  Machine(const Launch& launch, void (*run)(const void*), const void* context);
  ~Machine();
  void run();

  // --- the running thread ---
  Thread& thread() { return *running_; }
  Block& block() { return *running_->block; }
  bool running() const { return running_ != nullptr; }
  // Ends the launch. `primitive` may be null: an ordinary access.
  [[noreturn]] void fail(const char* primitive, Place place, const std::string& what);
  void suspend(const char* primitive, Place place, const std::string& detail = "");
  void wake(std::vector<Thread*>& threads);
  void trace(const std::string& event);
  void print(const std::string& text);

  // --- what threads know
  // ---------------------------------------------------------------------------
  Snapshot release();  // a snapshot that others may learn; what follows is later than it
  void acquire(Thread& thread, const Knowledge& knowledge);
  void acquire(Thread& thread, int agent, uint32_t clock);
  int new_agent();
  uint32_t tick(int agent) { return ++agent_clocks_[static_cast<size_t>(agent - first_agent_)]; }

  // --- collectives ---
  // The last to arrive calls `complete` before anybody goes on.
  const void* gather(const char* primitive, int lanes, const void* value, size_t bytes, Place place,
                     const std::function<void(const unsigned char*)>& complete = nullptr);

  // --- memory
  // ----------------------------------------------------------------------------------------
  void access(uintptr_t address, size_t bytes, bool write, Place place);
  // Locals of the running thread, some of which may belong to a product.
  void touch_registers(uintptr_t address, size_t bytes, Place place);
  // A block of the cluster and an offset from the start of its shared memory.
  struct SharedPlace {
    Block* block;
    uint32_t offset;
  };
  SharedPlace locate(const char* primitive, Place place, uint32_t address, size_t bytes,
                     size_t alignment);
  GlobalBuffer& global(const char* primitive, Place place, const void* address, size_t bytes,
                       bool write);
  Memory memory_of(Block& block) { return {&block.shared.record, block.rank}; }
  // Checks one access against what came before, and records it.
  void note(const Memory& memory, size_t offset, size_t bytes, const Access& access);
  // Who knows of it may touch global memory, where a launch may begin early.
  int earlier_launches() const { return earlier_launches_; }

  // --- asynchronous work ---
  void atomic(const char* primitive, void* address, size_t bytes, Place place);
  void perform(Copy& copy, uint32_t clock);
  void load(const TensorCopy& copy);
  void take(TensorCopy& copy);
  void store(const TensorCopy& copy);
  void finish_stores(Thread& thread, size_t most);
  void mark(const TensorCopy& copy);
  Mbarrier& mbarrier(const char* primitive, Place place, uint32_t address, bool by_engine);
  static std::string state_of(uint32_t offset, const Mbarrier& barrier);
  void complete(Block& block, uint32_t offset, Mbarrier& barrier);
  void count(Block& block, uint32_t offset, Mbarrier& barrier, int arrivals, int64_t bytes);
  void retire(Warpgroup& warpgroup, size_t groups_in_flight);

  struct Arrival {
    CopyGroup copies;
    Thread* thread;
    uint32_t mbarrier;
    Snapshot issued;
  };
  void arrive(const Arrival& arrival);

  const Launch& launch() const { return launch_; }
  std::vector<Block>& blocks() { return blocks_; }
  std::vector<TensorCopy>& loads() { return loads_; }
  std::vector<Arrival>& arrivals() { return arrivals_; }
  std::map<const void*, AtomicSync>& atomics() { return atomics_; }
  std::set<uint32_t>& acquired_runs() { return acquired_runs_; }
  uint32_t run_start() const { return run_starts_.back(); }
  uint32_t current_run() const { return static_cast<uint32_t>(run_starts_.size() - 1); }
  std::vector<Snapshot>& cluster_arrived() { return cluster_arrived_; }
  std::vector<Thread*>& cluster_waiting() { return cluster_waiting_; }
  const Knowledge& cluster_known() const { return cluster_known_; }
  void cluster_complete();
  std::string name_of(const Thread& thread) const;
  // Runs in the fiber of a thread.
  void thread_main();

 private:
  void run_cluster(int64_t cluster);
  void prepare(int64_t cluster);
  void resume(Thread* thread);
  void run_batch();
  bool advance_copies();
  bool release_spinners();
  void check_finished();
  void check_named_barriers(const Block& block);
  void check_lifetimes(const Block& block);
  // Runs work of no fiber in the name of `running_`; errors are thrown.
  void guarded(const std::function<void()>& work);
  std::string awaited_mbarriers() const;
  [[noreturn]] void fail_deadlock();
  std::string describe(const Stamp& stamp) const;
  bool ordered(const Stamp& stamp, const Access& access, bool global) const;
  [[noreturn]] void fail_race(const Stamp& stamp, const Memory& memory, size_t offset,
                              const Access& access, const char* how);
  void check_mbarriers(const Memory& memory, size_t offset, size_t bytes, const Access& access);
  [[noreturn]] void fail_bounds(uintptr_t address, size_t bytes, bool write, Place place);
  [[noreturn]] void leave();

  Launch launch_;
  void (*run_)(const void*);
  const void* context_;
  std::mt19937_64 random_;
  std::vector<Block> blocks_;
  std::vector<Thread*> ready_;
  std::vector<bool> slow_warps_;
  Thread* running_ = nullptr;
  std::string error_;
  int spins_ = 0;

  int first_agent_ = 0;        // agents below are threads
  int earlier_launches_ = -1;  // the agent of what they did
  std::vector<uint32_t> agent_clocks_;
  std::vector<uint32_t> run_starts_;  // the first clock of each run of a cluster
  std::set<uint32_t> acquired_runs_;
  std::map<const void*, AtomicSync> atomics_;
  std::vector<TensorCopy> loads_;
  std::vector<Arrival> arrivals_;
  std::vector<Snapshot> cluster_arrived_;
  std::vector<Thread*> cluster_waiting_;
  Knowledge cluster_known_;
};

// Null outside of a launch.
extern Machine* machine;

// The state that outlives launches.
Settings& settings();
std::vector<LaunchRecord>& launch_records();
std::vector<std::string>& trace_lines();
std::vector<GlobalBuffer>& global_buffers();

// report.cpp
std::string kernel_name(const void* kernel);
std::string source_line(Place place);
bool in_this_module(uintptr_t address);

std::string hex(uint64_t value);

}  // namespace ocnet::emulator
