// SPDX-License-Identifier: MIT
// Memory and threads, from torch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "matrix.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ocnet::cpu {

// Uninitialised memory from torch's allocator (64-byte aligned, seen by its profiler), freed with
// the object.
template <typename T>
class Buffer {
 public:
  Buffer(const torch::stable::Tensor& like, int64_t count)
      : tensor_(torch::stable::new_empty(like, {count},
                                         sizeof(T) == sizeof(double)
                                             ? torch::headeronly::ScalarType::Double
                                             : torch::headeronly::ScalarType::Float)),
        data_(static_cast<T*>(tensor_.mutable_data_ptr())) {}

  T* data() const { return data_; }

 private:
  torch::stable::Tensor tensor_;
  T* data_;
};

// The same, but not from torch's allocator if it is so little that the call of that would take
// longer than its use.
template <typename T>
class ScratchBuffer {
 public:
  ScratchBuffer(const torch::stable::Tensor& like, int64_t count) {
    if (count * static_cast<int64_t>(sizeof(T)) <= kLittle) {
      little_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
    } else {
      large_.emplace(like, count);
    }
  }

  T* data() const { return large_ ? large_->data() : little_.get(); }

 private:
  static constexpr int64_t kLittle = 65536;
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, kAlignment); }
  };

  std::unique_ptr<T, Free> little_;
  std::optional<Buffer<T>> large_;
};

// What a pass keeps for its whole duration, in one block of memory: shares are taken first, then
// the block is allocated. In pieces it would leave gaps that the next pass cannot use.
template <typename T>
class Workspace {
 public:
  explicit Workspace(const torch::stable::Tensor& like) : like_(like) {}

  int64_t take(int64_t count) {
    const int64_t offset = count_;
    count_ += round_up(count, 64 / static_cast<int64_t>(sizeof(T)));
    return offset;
  }

  // The C library keeps freed blocks of up to 32 MiB to itself, and then a training step would hold
  // the memory of both of its passes. What is asked for and not touched costs nothing.
  void allocate() {
    constexpr int64_t kSmall = (int64_t{8} << 20) / sizeof(T);
    constexpr int64_t kReturned = (int64_t{33} << 20) / sizeof(T);
    memory_.emplace(like_, count_ < kSmall ? count_ : std::max(count_, kReturned));
  }

  T* data() const { return memory_->data(); }

 private:
  torch::stable::Tensor like_;
  int64_t count_ = 0;
  std::optional<Buffer<T>> memory_;
};

// A part of a workspace, there once that is allocated.
template <typename T>
class Share {
 public:
  Share(Workspace<T>& workspace, int64_t count)
      : workspace_(&workspace), offset_(workspace.take(count)) {}

  T* data() const { return workspace_->data() + offset_; }

 private:
  const Workspace<T>* workspace_;
  int64_t offset_;
};

// While one lives, results too small for a normal number become 0: weights near the limit of exp
// would otherwise make every product that meets them many times slower on x86.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned int saved_;
#else
  FlushSubnormals() {}
#endif
 public:
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

template <typename Element>
Matrices<Element> matrices(const torch::stable::Tensor& tensor, const Groups* groups = nullptr) {
  return {static_cast<Element*>(tensor.data_ptr()),
          groups == nullptr ? tensor.size(1) : groups->tokens(),
          tensor.size(2),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          groups};
}

template <typename Element>
std::optional<Matrices<Element>> maybe_matrices(const std::optional<torch::stable::Tensor>& tensor,
                                                const Groups* groups = nullptr) {
  return tensor ? std::optional<Matrices<Element>>(matrices<Element>(*tensor, groups))
                : std::nullopt;
}

// One number for each token.
template <typename T>
Matrices<T> numbers(const torch::stable::Tensor& tensor, const Groups* groups = nullptr) {
  return {static_cast<T*>(tensor.data_ptr()),
          groups == nullptr ? tensor.size(1) : groups->tokens(),
          1,
          tensor.stride(0),
          1,
          1,
          groups};
}

// Batch items whose packed copies live together: enough tasks to keep many cores busy, not more.
inline int64_t batches_at_once(int64_t batches, int64_t tasks) {
  return std::min(batches, ceil_div(64, tasks));
}

inline int64_t worker_count(int64_t tasks) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), tasks));
}

// Calls task(worker, index) for every index below `tasks`. A worker takes the next index when it is
// free; results do not depend on who took what, because no task reads what another writes. `worker`
// tells scratch memory apart.
template <typename Task>
void run_tasks(int64_t tasks, int64_t workers, const Task& task) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    const FlushSubnormals guard;
    for (int64_t index = next.fetch_add(1); index < tasks; index = next.fetch_add(1)) {
      task(worker, index);
    }
  });
}

}  // namespace ocnet::cpu
