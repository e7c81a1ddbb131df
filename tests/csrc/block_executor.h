// SPDX-License-Identifier: MIT
// Runs the kernels of csrc/ on a CPU: the plain C++ form of common/device.cuh.
//
// Blocks run one after the other. The threads of a block are fibers that run until they reach a
// barrier or a shuffle; which runs next is drawn anew from a seed every round, so a missing barrier
// shows as a result that depends on the seed. Shared memory starts as NaN and is followed by guard
// bytes. A barrier that not every thread reaches is an error, as on a device it could hang.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

#include "common/device.cuh"

namespace ocnet::testing {

constexpr int kWarpThreads = 32;
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kGuardBytes = 1024;
constexpr unsigned char kGuardByte = 0xa5;

struct LaunchRecord {
  int64_t blocks;
  size_t shared_bytes;
};

class BlockExecutor {
 public:
  BlockExecutor(uint64_t seed, size_t shared_limit) : random_(seed), shared_limit_(shared_limit) {}

  size_t shared_limit() const { return shared_limit_; }
  const std::vector<LaunchRecord>& launches() const { return launches_; }

  // The launcher that the launch functions of csrc/ expect.
  template <typename Params>
  void operator()(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes,
                  const Params& params) {
    launches_.push_back({blocks, shared_bytes});
    if (blocks < 1) throw std::runtime_error("a launch without blocks");
    if (shared_bytes > shared_limit_) throw std::runtime_error("too much shared memory requested");
    if (threads % kWarpThreads != 0) throw std::runtime_error("threads must fill their warps");
    body_ = [kernel, &params] { kernel(params); };
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), random_);
    for (const int64_t block : order) run_block(block, threads, shared_bytes);
  }

  // What common/device.cuh asks of the thread that is running.
  static BlockExecutor& current() { return *current_; }
  int thread_index() const { return running_; }
  int64_t block_index() const { return block_; }
  void* shared_bytes() { return shared_.data(); }
  void barrier() { wait(State::kAtBarrier); }

  uint64_t shuffle_xor(uint64_t bits, int lane_mask) {
    // Two buffers in turn: the next shuffle cannot overwrite what a slower lane still reads.
    const int thread = running_;
    Fiber& fiber = *fibers_[static_cast<size_t>(thread)];
    auto& exchange = exchange_[fiber.shuffles++ % 2];
    exchange[static_cast<size_t>(thread)] = bits;
    wait(State::kAtShuffle);
    return exchange[static_cast<size_t>(thread ^ lane_mask)];
  }

 private:
  enum class State { kReady, kAtBarrier, kAtShuffle, kFinished };

  struct Fiber {
    State state;
    bool started;
    unsigned shuffles;
    ucontext_t context;
    jmp_buf resume_point;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
  };

  // 16-byte units, so that the block's memory is aligned as on a device.
  struct alignas(16) SharedUnit {
    unsigned char bytes[16];
  };

  void run_block(int64_t block, int threads, size_t shared_bytes) {
    block_ = block;
    current_ = this;
    prepare_shared(shared_bytes);
    while (fibers_.size() < static_cast<size_t>(threads)) {
      fibers_.push_back(std::make_unique<Fiber>());
    }
    for (auto& exchange : exchange_) exchange.assign(static_cast<size_t>(threads), 0);
    for (int thread = 0; thread < threads; ++thread) prepare(*fibers_[static_cast<size_t>(thread)]);

    std::vector<int> order(static_cast<size_t>(threads));
    std::iota(order.begin(), order.end(), 0);
    do {
      std::shuffle(order.begin(), order.end(), random_);
      for (const int thread : order) {
        if (fibers_[static_cast<size_t>(thread)]->state == State::kReady) resume(thread);
      }
    } while (release(threads));
    check_guard(shared_bytes);
  }

  void prepare(Fiber& fiber) {
    fiber.state = State::kReady;
    fiber.started = false;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &BlockExecutor::enter, 0);
  }

  // First function on a fiber's stack.
  static void enter() {
    BlockExecutor& executor = current();
    executor.body_();
    executor.wait(State::kFinished);
  }

  // Contexts only start fibers; later switches are jumps, without swapcontext's system calls.
  void resume(int thread) {
    Fiber& fiber = *fibers_[static_cast<size_t>(thread)];
    running_ = thread;
    if (_setjmp(scheduler_) == 0) {
      if (fiber.started) _longjmp(fiber.resume_point, 1);
      fiber.started = true;
      setcontext(&fiber.context);
    }
  }

  void wait(State state) {
    Fiber& fiber = *fibers_[static_cast<size_t>(running_)];
    fiber.state = state;
    if (_setjmp(fiber.resume_point) == 0) _longjmp(scheduler_, 1);
  }

  // Lets on the threads whose barrier or shuffle is complete; false when all have finished.
  bool release(int threads) {
    if (release_group(0, threads, State::kAtBarrier)) return true;
    bool any = false;
    for (int lane = 0; lane < threads; lane += kWarpThreads) {
      any = release_group(lane, lane + kWarpThreads, State::kAtShuffle) || any;
    }
    if (any) return true;
    if (count(0, threads, State::kFinished) == threads) return false;
    throw std::runtime_error(
        "threads diverge: " + std::to_string(count(0, threads, State::kAtBarrier)) +
        " at a barrier, " + std::to_string(count(0, threads, State::kAtShuffle)) +
        " at a shuffle, " + std::to_string(count(0, threads, State::kFinished)) + " finished");
  }

  bool release_group(int first, int end, State state) {
    if (count(first, end, state) != end - first) return false;
    for (int thread = first; thread < end; ++thread) {
      fibers_[static_cast<size_t>(thread)]->state = State::kReady;
    }
    return true;
  }

  int count(int first, int end, State state) const {
    int found = 0;
    for (int thread = first; thread < end; ++thread) {
      found += fibers_[static_cast<size_t>(thread)]->state == state ? 1 : 0;
    }
    return found;
  }

  void prepare_shared(size_t bytes) {
    shared_.resize((bytes + kGuardBytes) / sizeof(SharedUnit) + 1);
    auto* const start = reinterpret_cast<unsigned char*>(shared_.data());
    std::memset(start, 0xff, bytes);  // NaN in every floating type
    std::memset(start + bytes, kGuardByte, kGuardBytes);
  }

  void check_guard(size_t bytes) const {
    const auto* const guard = reinterpret_cast<const unsigned char*>(shared_.data()) + bytes;
    if (std::any_of(guard, guard + kGuardBytes, [](unsigned char b) { return b != kGuardByte; })) {
      throw std::runtime_error("a block wrote past its shared memory");
    }
  }

  static inline BlockExecutor* current_ = nullptr;
  std::mt19937_64 random_;
  size_t shared_limit_;
  std::vector<LaunchRecord> launches_;
  std::function<void()> body_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<uint64_t> exchange_[2];
  std::vector<SharedUnit> shared_;
  jmp_buf scheduler_;
  int running_ = 0;
  int64_t block_ = 0;
};

}  // namespace ocnet::testing

namespace ocnet::device {

inline int thread_index() { return testing::BlockExecutor::current().thread_index(); }
inline int64_t block_index() { return testing::BlockExecutor::current().block_index(); }
inline void barrier() { testing::BlockExecutor::current().barrier(); }
inline uint64_t shuffle_xor_bits(uint64_t bits, int lane_mask) {
  return testing::BlockExecutor::current().shuffle_xor(bits, lane_mask);
}
inline void* shared_bytes() { return testing::BlockExecutor::current().shared_bytes(); }

}  // namespace ocnet::device
