// SPDX-License-Identifier: MIT
// Which pairs of blocks of tokens meet in a pass, in which order, and how workers keep to it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "matrix.h"
#include "runtime.h"

namespace ocnet::cpu {

// Two blocks of tokens whose results a task adds to, by number; -1 for none.
struct BlockPair {
  int64_t first, second;
};

// Calls task(worker, pair) for every pair(round, slot) that has both blocks. Within a round every
// block comes once, and its tasks run one after another in order of the rounds: sums need no
// atomics and have one order, whoever computes them and when. A task waits for nothing but tasks
// that were taken before it, so even one worker gets through.
template <typename Pair, typename Task>
void run_rounds(int64_t rounds, int64_t slots, int64_t blocks, int64_t workers, const Pair& pair,
                const Task& task) {
  std::vector<std::atomic<int64_t>> finished(static_cast<size_t>(blocks));
  const auto wait = [&finished](int64_t block, int64_t round) {
    while (block >= 0 && finished[block].load(std::memory_order_acquire) < round) {
      std::this_thread::yield();
    }
  };
  const auto finish = [&finished](int64_t block, int64_t round) {
    if (block >= 0) {
      finished[block].store(round + 1, std::memory_order_release);
    }
  };
  run_tasks(rounds * slots, workers, [&](int64_t worker, int64_t index) {
    const int64_t round = index / slots, slot = index % slots;
    const BlockPair blocks_here = pair(round, slot);
    wait(blocks_here.first, round);
    wait(blocks_here.second, round);
    if (blocks_here.first >= 0 && blocks_here.second >= 0) {
      task(worker, blocks_here);
    }
    finish(blocks_here.first, round);
    finish(blocks_here.second, round);
  });
}

// Which tasks there are for one batch item, and in which order. The side with fewer blocks would
// keep most workers waiting if it had less than kAtOnce, so the other is cut into chunks of at
// least kChunk blocks, and each chunk has its own copy of the sums of the short side.
class Schedule {
 public:
  Schedule(bool shared, int64_t queries, int64_t keys)
      : shared_(shared), queries_(queries), keys_(keys) {
    constexpr int64_t kAtOnce = 16, kChunk = 4;
    const int64_t longer = std::max(queries, keys), shorter = std::min(queries, keys);
    if (!shared) {
      const int64_t most = std::max<int64_t>(1, longer / kChunk);
      chunk_ = ceil_div(longer, std::min(most, ceil_div(kAtOnce, shorter)));
      chunks_ = ceil_div(longer, chunk_);
      rounds_ = std::max(chunk_, shorter);
    } else {
      rounds_ = queries;
    }
  }

  int64_t rounds() const { return rounds_; }
  int64_t slots() const { return shared_ ? queries_ / 2 + 1 : chunks_ * rounds_; }
  // Blocks whose sums are apart, over all copies.
  int64_t blocks() const { return shared_ ? queries_ : longer() + chunks_ * shorter(); }
  int64_t query_copies() const { return queries_ < keys_ ? chunks_ : 1; }
  int64_t key_copies() const { return queries_ < keys_ ? 1 : chunks_; }
  int64_t most_tasks() const { return shared_ ? slots() : chunks_ * shorter(); }

  // Calls task(worker, item, pair) for every pair of every batch item.
  template <typename Run>
  void run(int64_t items, int64_t workers, const Run& task) const {
    const auto shifted = [](const BlockPair& pair, int64_t by) {
      return BlockPair{pair.first < 0 ? -1 : pair.first + by,
                       pair.second < 0 ? -1 : pair.second + by};
    };
    run_rounds(
        rounds(), items * slots(), items * blocks(), workers,
        [&](int64_t round, int64_t slot) {
          return shifted(pair(round, slot % slots()), slot / slots() * blocks());
        },
        [&](int64_t worker, const BlockPair& both) {
          const int64_t item = both.first / blocks();
          task(worker, item, shifted(both, -item * blocks()));
        });
  }

  struct Task {
    int64_t query_block, key_block, query_copy, key_copy;
  };

  // The blocks of run_rounds: queries and keys of all copies, where they are not the same.
  BlockPair pair(int64_t round, int64_t slot) const {
    if (shared_) {
      return shared_pair(round, slot);
    }
    const int64_t chunk = slot / rounds_, place = slot % rounds_;
    const int64_t one = chunk * chunk_ + place, other = (place + round) % rounds_;
    return {place < chunk_ && one < longer() ? one : -1,
            other < shorter() ? longer() + chunk * shorter() + other : -1};
  }

  Task task(const BlockPair& pair) const {
    if (shared_) {
      return {pair.first, pair.second, 0, 0};
    }
    const int64_t other = pair.second - longer();
    const int64_t copy = other / shorter(), block = other % shorter();
    return queries_ < keys_ ? Task{block, pair.first, copy, 0} : Task{pair.first, block, 0, copy};
  }

 private:
  int64_t longer() const { return std::max(queries_, keys_); }
  int64_t shorter() const { return std::min(queries_, keys_); }

  // Round r has all pairs whose numbers add up to r, modulo the number of blocks.
  BlockPair shared_pair(int64_t round, int64_t slot) const {
    const int64_t n = queries_;
    if (n % 2 == 0 && round % 2 == 1) {
      const int64_t first = (round + 1) / 2 + slot, second = (round - 1) / 2 - slot + n;
      return slot < n / 2 ? BlockPair{first % n, second % n} : BlockPair{-1, -1};
    }
    const int64_t middle = (round % 2 ? round + n : round) / 2;
    return {(middle + slot) % n, (middle - slot + n) % n};
  }

  bool shared_;
  int64_t queries_, keys_, chunk_ = 1, chunks_ = 1, rounds_ = 1;
};

}  // namespace ocnet::cpu
