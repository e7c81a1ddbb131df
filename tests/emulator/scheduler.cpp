// SPDX-License-Identifier: MIT
// Threads as fibers, clusters in any order, and everything in which threads wait for one another.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "emulator.h"

namespace ocnet::emulator {

Machine* machine = nullptr;

constexpr size_t kPageBytes = 4096;
constexpr size_t kPoisonedBytes = 4096;
constexpr int kMostThreads = 1024;
constexpr int kRegistersOfBlock = 65536;

// A stack and where its thread stopped; reused by later threads.
struct Fiber {
  unsigned char* stack;
  bool started = false;
  ucontext_t context;
  jmp_buf resume_point;

  Fiber() {
    void* const room = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) throw std::runtime_error("emulator: no memory for another stack");
    mprotect(room, kPageBytes, PROT_NONE);  // an overflow stops here
    stack = static_cast<unsigned char*>(room);
  }
};

namespace {

jmp_buf scheduler;

std::vector<std::unique_ptr<Fiber>>& fibers() {
  static std::vector<std::unique_ptr<Fiber>> pool;
  return pool;
}

// First function on a fiber's stack.
void enter() { machine->thread_main(); }

std::string span(int first, int last, const char* one, const char* many) {
  if (first == last) return std::string(one) + " " + std::to_string(first);
  return std::string(many) + " " + std::to_string(first) + "-" + std::to_string(last);
}

}  // namespace

Settings& settings() {
  static Settings value;
  return value;
}
std::vector<LaunchRecord>& launch_records() {
  static std::vector<LaunchRecord> records;
  return records;
}
std::vector<std::string>& trace_lines() {
  static std::vector<std::string> lines;
  return lines;
}
std::vector<GlobalBuffer>& global_buffers() {
  static std::vector<GlobalBuffer> buffers;
  return buffers;
}

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// --- a launch ---

Machine::Machine(const Launch& launch, void (*run)(const void*), const void* context)
    : launch_(launch), run_(run), context_(context), random_(settings().seed) {
  const auto require = [&](bool holds, const std::string& what) {
    if (!holds) {
      throw std::runtime_error(std::string(launch.function) + ": kernel " +
                               kernel_name(launch.kernel) + " must be launched with " + what);
    }
  };
  require(launch.threads % kWarp == 0 && launch.threads > 0 && launch.threads <= kMostThreads,
          "whole warps, at most 1024 threads, got " + std::to_string(launch.threads));
  require(launch.shared_bytes <= settings().shared_limit,
          "at most " + std::to_string(settings().shared_limit) +
              " bytes of shared memory, the device's limit, got " +
              std::to_string(launch.shared_bytes));
  require(launch.cluster_blocks == 1 || settings().clusters,
          "clusters of 1, before sm_90, got " + std::to_string(launch.cluster_blocks));
  require(launch.cluster_blocks >= 1 && launch.cluster_blocks <= 8 &&
              launch.blocks % launch.cluster_blocks == 0,
          "clusters of 1 to 8 that divide its blocks, got " +
              std::to_string(launch.cluster_blocks) + " of " + std::to_string(launch.blocks));
  blocks_.resize(static_cast<size_t>(launch.cluster_blocks));
  first_agent_ = launch.cluster_blocks * launch.threads;
  for (GlobalBuffer& buffer : global_buffers()) {
    buffer.record.words.assign(buffer.bytes / 4 + 2, Word{});
  }
}

Machine::~Machine() { machine = nullptr; }

void Machine::run() {
  std::vector<int64_t> order(static_cast<size_t>(launch_.blocks / launch_.cluster_blocks));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::shuffle(order.begin(), order.end(), random_);
  for (const int64_t cluster : order) run_cluster(cluster);
}

void Machine::prepare(int64_t cluster) {
  const auto threads = static_cast<size_t>(launch_.threads);
  uint32_t start = run_starts_.empty() ? 1 : run_starts_.back() + 1;
  for (const Block& block : blocks_) {
    for (const Thread& thread : block.threads) start = std::max(start, thread.now.clock + 1);
  }
  for (const uint32_t clock : agent_clocks_) start = std::max(start, clock + 1);
  run_starts_.push_back(start);
  acquired_runs_ = {current_run()};
  agent_clocks_.clear();
  earlier_launches_ = new_agent();
  cluster_known_ = {};
  ready_.clear();
  slow_warps_.assign(blocks_.size() * threads / kWarp, false);
  for (size_t warp = 0; warp < slow_warps_.size(); ++warp) slow_warps_[warp] = random_() % 4 == 0;
  while (fibers().size() < blocks_.size() * threads) fibers().push_back(std::make_unique<Fiber>());
  for (size_t rank = 0; rank < blocks_.size(); ++rank) {
    SharedMemory shared = std::move(blocks_[rank].shared);
    Block& block = blocks_[rank] = Block{};
    block.shared = std::move(shared);
    block.shared.prepare(launch_.shared_bytes);
    block.rank = static_cast<int>(rank);
    block.index = cluster * launch_.cluster_blocks + block.rank;
    block.warps.resize(threads / kWarp);
    block.warpgroup_gathers.resize(threads / kWarpgroup);
    block.warpgroups.resize(threads / kWarpgroup);
    for (Warpgroup& group : block.warpgroups) {
      group.registers = std::min(256, kRegistersOfBlock / launch_.threads / 8 * 8);
    }
    block.threads.resize(threads);
    for (size_t index = 0; index < threads; ++index) {
      Thread& thread = block.threads[index];
      thread.block = &block;
      thread.index = static_cast<int>(index);
      thread.now.agent = static_cast<int>(rank * threads + index);
      thread.now.clock = start;
      thread.fiber = fibers()[static_cast<size_t>(thread.now.agent)].get();
      thread.fiber->started = false;
      thread.stack = reinterpret_cast<uintptr_t>(thread.fiber->stack);
      ready_.push_back(&thread);
    }
  }
}

void Machine::run_cluster(int64_t cluster) {
  prepare(cluster);
  for (;;) {
    if (!ready_.empty()) {
      run_batch();
    } else if (!advance_copies() && !release_spinners()) {
      const bool all = std::all_of(blocks_.begin(), blocks_.end(), [](const Block& block) {
        return block.finished == static_cast<int>(block.threads.size());
      });
      if (!all) fail_deadlock();
      check_finished();
      return;
    }
  }
}

// Who is ready runs until it waits, in random order; some warps only when no other can.
void Machine::run_batch() {
  std::vector<Thread*> batch;
  std::vector<Thread*> slow;
  for (Thread* thread : ready_) {
    const bool is_slow = slow_warps_[static_cast<size_t>(thread->now.agent / kWarp)];
    (is_slow ? slow : batch).push_back(thread);
  }
  ready_.clear();
  if (batch.empty()) {
    batch.swap(slow);
  } else {
    ready_ = slow;
  }
  std::shuffle(batch.begin(), batch.end(), random_);
  for (Thread* thread : batch) {
    resume(thread);
    if (!error_.empty()) throw std::runtime_error(error_);
  }
}

// Contexts only start fibers; later switches are jumps, without swapcontext's system calls.
void Machine::resume(Thread* thread) {
  Fiber& fiber = *thread->fiber;
  running_ = thread;
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.resume_point, 1);
    fiber.started = true;
    // Locals that the kernel does not set are NaN.
    std::memset(fiber.stack + kStackBytes - kPoisonedBytes, 0xff, kPoisonedBytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &enter, 0);
    setcontext(&fiber.context);
  }
  running_ = nullptr;
}

void Machine::leave() { _longjmp(scheduler, 1); }

void Machine::thread_main() {
  run_(context_);
  Thread& self = thread();
  self.finished = true;
  ++self.block->finished;
  self.copy_groups.push_back(self.copies);
  for (const CopyGroup& group : self.copy_groups) {
    for (const auto& copy : group) {
      if (copy->done || copy->counted) continue;
      fail("cp.async", copy->place,
           "is in flight when the thread exits: cp.async.wait_group is missing");
    }
  }
  self.store_groups.push_back(self.stores);
  for (const std::vector<TensorCopy>& group : self.store_groups) {
    if (group.empty()) continue;
    fail("cp.async.bulk.tensor", group.front().place,
         "is in flight and still reads shared memory when the thread exits: "
         "cp.async.bulk.wait_group is missing");
  }
  if (!self.registers.empty()) {
    fail("wgmma.mma_async", nullptr,
         "is in flight when the thread exits: wgmma.wait_group is missing");
  }
  leave();
}

// What only shows when a cluster has finished.
void Machine::check_finished() {
  if (!loads_.empty() || !arrivals_.empty()) {
    const bool load = !loads_.empty();
    running_ = load ? loads_.front().thread : arrivals_.front().thread;
    guarded([&] {
      fail(load ? "cp.async.bulk.tensor" : "cp.async.mbarrier.arrive",
           load ? loads_.front().place : nullptr,
           "is never waited for: the block exits before it is done");
    });
  }
  for (Block& block : blocks_) {
    check_named_barriers(block);
    for (Thread& thread : block.threads) finish_stores(thread, 0);
    if (blocks_.size() > 1) check_lifetimes(block);
  }
}

// What has arrived at a barrier is there for whoever uses it next: none may be left half full.
void Machine::check_named_barriers(const Block& block) {
  for (int id = 0; id < 16; ++id) {
    const NamedBarrier& barrier = block.named[id];
    if (barrier.arrived.empty()) continue;
    running_ = barrier.last;
    guarded([&] {
      fail("bar.arrive", barrier.place,
           "leaves barrier " + std::to_string(id) +
               " half full when the block exits: " + std::to_string(barrier.arrived.size()) +
               " of " + std::to_string(barrier.threads) + " threads have arrived");
    });
  }
}

// A block must have learnt of what others did to its shared memory before it exits: else, on
// another day, it has exited before they do it.
void Machine::check_lifetimes(const Block& block) {
  std::vector<Snapshot> last;
  for (const Thread& thread : block.threads) last.push_back(thread.now);
  const Knowledge known = joined(last);
  const int threads = launch_.threads;
  const auto check = [&](const Stamp& stamp, const char* primitive) {
    if (stamp.bytes == 0 || stamp.clock < run_start() || stamp.agent >= first_agent_ ||
        stamp.agent / threads == block.rank || clock_of(known.seen, stamp.agent) >= stamp.clock) {
      return;
    }
    running_ = &blocks_[static_cast<size_t>(stamp.agent / threads)]
                    .threads[static_cast<size_t>(stamp.agent % threads)];
    guarded([&] {
      fail(primitive, stamp.place,
           "touches the shared memory of block " + std::to_string(block.index) +
               " of its cluster, which may have exited: meet at a cluster barrier first");
    });
  };
  for (const Word& word : block.shared.record.words) {
    check(word.write, nullptr);
    for (const Stamp& read : word.reads) check(read, nullptr);
  }
  for (const auto& [offset, barrier] : block.mbarriers) {
    for (const Stamp& arrival : barrier.remote) check(arrival, "mbarrier.arrive");
  }
}

void Machine::guarded(const std::function<void()>& work) {
  if (_setjmp(scheduler) == 0) work();
  running_ = nullptr;
  if (!error_.empty()) throw std::runtime_error(error_);
}

void Machine::suspend(const char* primitive, Place place, const std::string& detail) {
  Thread& self = thread();
  self.wait = {primitive, detail, place};
  if (_setjmp(self.fiber->resume_point) == 0) leave();
  self.wait = {};
}

void Machine::wake(std::vector<Thread*>& threads) {
  ready_.insert(ready_.end(), threads.begin(), threads.end());
  threads.clear();
  spins_ = 0;
}

// Threads that keep asking are answered once nothing else can happen.
bool Machine::release_spinners() {
  bool any = false;
  for (Block& block : blocks_) {
    for (Thread& thread : block.threads) {
      if (!thread.spinning) continue;
      thread.spinning = false;
      for (auto& [offset, barrier] : block.mbarriers) {
        auto& waiting = barrier.waiting;
        waiting.erase(std::remove(waiting.begin(), waiting.end(), &thread), waiting.end());
      }
      ready_.push_back(&thread);
      any = true;
    }
  }
  return any && ++spins_ < kSpinLimit;
}

// --- reports ---

std::string Machine::name_of(const Thread& thread) const {
  return "block " + std::to_string(thread.block->index) + ", thread " +
         std::to_string(thread.index) + " (warp " + std::to_string(thread.index / kWarp) +
         ", lane " + std::to_string(thread.index % kWarp) + ")";
}

void Machine::fail(const char* primitive, Place place, const std::string& what) {
  error_ = std::string(launch_.function) + ": kernel " + kernel_name(launch_.kernel) + ", " +
           name_of(thread()) + ": " + (primitive != nullptr ? std::string(primitive) + " " : "") +
           (place != nullptr ? "at " + source_line(place) + ": " : "") + what;
  leave();
}

// One line for each run of threads that are in the same state.
void Machine::fail_deadlock() {
  std::string text = std::string(launch_.function) + ": kernel " + kernel_name(launch_.kernel) +
                     ": deadlock: threads wait and nothing can end their waits";
  const auto state = [](const Thread& thread) {
    if (thread.finished) return std::string("exited");
    std::string where = std::string("in ") + thread.wait.primitive;
    if (!thread.wait.detail.empty()) where += " (" + thread.wait.detail + ")";
    return where + " at " + source_line(thread.wait.place);
  };
  const auto same = [](const Thread& a, const Thread& b) {
    return a.finished == b.finished && a.wait.place == b.wait.place &&
           a.wait.primitive == b.wait.primitive && a.wait.detail == b.wait.detail;
  };
  for (const Block& block : blocks_) {
    for (size_t first = 0; first < block.threads.size();) {
      size_t last = first;
      while (last + 1 < block.threads.size() &&
             same(block.threads[first], block.threads[last + 1])) {
        ++last;
      }
      text += "\n  block " + std::to_string(block.index) + ", " +
              span(static_cast<int>(first), static_cast<int>(last), "thread", "threads") + ": " +
              state(block.threads[first]);
      first = last + 1;
    }
  }
  throw std::runtime_error(text + awaited_mbarriers());
}

void Machine::trace(const std::string& event) {
  if (block().index != settings().traced_block) return;
  trace_lines().push_back(name_of(thread()) + ": " + event);
}

void Machine::print(const std::string& text) {
  trace_lines().push_back(name_of(thread()) + ": print: " + text);
}

// --- the functions of emulation.h: launches and indices ---

void launch(const Launch& launch, void (*run)(const void*), const void* context) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  Machine current(launch, run, context);
  launch_records().push_back({kernel_name(launch.kernel), launch.blocks, launch.threads,
                              launch.shared_bytes, launch.cluster_blocks});
  machine = &current;
  current.run();
}

size_t shared_limit() { return settings().shared_limit; }
int multiprocessors() { return settings().multiprocessors; }
bool has_clusters() { return settings().clusters; }

void attach(const char* name, const void* data, size_t bytes, bool writable) {
  GlobalBuffer buffer;
  buffer.name = name;
  buffer.start = reinterpret_cast<uintptr_t>(data);
  buffer.bytes = bytes;
  buffer.writable = writable;
  global_buffers().push_back(std::move(buffer));
}

void detach_all() { global_buffers().clear(); }

int thread_index() { return machine->thread().index; }
int64_t block_index() { return machine->block().index; }
int64_t grid_blocks() { return machine->launch().blocks; }
int cluster_rank() { return machine->block().rank; }
int cluster_blocks() { return machine->launch().cluster_blocks; }
void* shared_memory() { return machine->block().shared.start; }

void print(const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof(text), format, values);
  va_end(values);
  machine->print(text);
}

}  // namespace ocnet::emulator
