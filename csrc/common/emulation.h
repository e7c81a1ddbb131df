// SPDX-License-Identifier: MIT
// What the emulated forms in this folder ask of the emulator; defined in tests/emulator/.
//
// Every call is made by the emulated thread that is running. A call that has to wait lets other
// threads run. Whatever a device would leave undefined ends the launch with an error.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ocnet::emulator {

// --- host: a launch ---
struct Launch {
  const char* function;  // who launches, for messages
  const void* kernel;    // its address, which names it
  int64_t blocks;
  int threads;
  size_t shared_bytes;
  int cluster_blocks;
  bool programmatic;  // may begin before the launch before it has ended
};
// Runs a grid: every thread calls run(context). Throws std::runtime_error for whatever it catches.
void launch(const Launch& launch, void (*run)(const void*), const void* context);
size_t shared_limit();
int multiprocessors();
bool has_clusters();
// Global memory that kernels may read, and write if `writable`, until detach_all.
void attach(const char* name, const void* data, size_t bytes, bool writable);
void detach_all();

// --- where am I ---
int thread_index();     // threadIdx.x
int64_t block_index();  // blockIdx.x
int64_t grid_blocks();  // gridDim.x
int cluster_rank();     // rank of the block in its cluster
int cluster_blocks();   // blocks in a cluster
void* shared_memory();  // start of the block's dynamic shared memory, 1024-byte aligned
void print(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- waiting for one another ---
void block_barrier();
void named_barrier(int id, int threads, bool wait);
void cluster_arrive();
void cluster_wait();
// Every lane of the group (32: the warp, 128: the warpgroup) hands in `bytes` bytes for the same
// primitive; returns what all of them handed in, `bytes` apart. Valid until the caller's next but
// one gather. Orders no memory.
const void* gather(const char* primitive, int lanes, const void* value, size_t bytes);
// A gather that also orders the memory accesses of the warp.
void sync_warp();
void wait_for_earlier_launches();

// --- memory ---
// 32-bit addresses: offset in the block's own shared memory, and for other blocks of the cluster
// (rank + 1) << 24 besides. The dynamic shared memory starts at kSharedStart.
constexpr uint32_t kSharedStart = 1024;
uint32_t shared_address(const void* pointer);
uint32_t cluster_address(uint32_t address, int rank);
void* cluster_pointer(void* pointer, int rank);
// As the running thread; alignment is that of the access.
void read_shared(const char* primitive, uint32_t address, void* to, size_t bytes);
void write_shared(const char* primitive, uint32_t address, const void* from, size_t bytes);
// Marks a read-modify-write of a global or shared word: no race with other atomics.
void atomic_access(const char* primitive, void* address, size_t bytes);
void thread_fence();
void fence_proxy_async();
void fence_mbarrier_init();

// --- asynchronous copies ---
void copy_async(uint32_t shared, const void* global, int bytes, int valid_bytes);
void copy_commit();
void copy_wait(int groups_in_flight);
void copy_arrive(uint32_t mbarrier);

void mbarrier_init(uint32_t mbarrier, int arrivals);
void mbarrier_invalidate(uint32_t mbarrier);
// Adds `transaction_bytes` to what the phase expects, then arrives `arrivals` times (0: not at
// all).
void mbarrier_arrive(uint32_t mbarrier, int arrivals, int transaction_bytes);
// Waits until the phase of this parity has completed.
void mbarrier_wait(uint32_t mbarrier, uint32_t parity);
bool mbarrier_test(uint32_t mbarrier, uint32_t parity);

// `map` points to an encoded tensor map (tensor_map.h); coordinates are innermost first.
void tensor_load(uint32_t shared, const void* map, uint32_t mbarrier, const int* coordinates,
                 int rank, uint16_t blocks);  // blocks: 0 or the ranks that receive a copy
void tensor_store(const void* map, uint32_t shared, const int* coordinates, int rank);
void tensor_prefetch(const void* map);
void bulk_commit();
void bulk_wait(int groups_in_flight, bool reads_only);

// --- warpgroup products ---
enum class OperandType { kBFloat16, kFloat16, kTFloat32, kFloat8 };
struct Wgmma {
  OperandType type;
  int columns;  // N
  bool a_tokens_contiguous;
  bool b_tokens_contiguous;
  bool accumulate;
  uint64_t a_descriptor;
  uint64_t b_descriptor;
  const uint32_t* a;    // 4 registers, or null: A is in shared memory
  float* accumulators;  // columns / 2
};
void wgmma_fence();
void wgmma(const Wgmma& operation);
void wgmma_commit();
void wgmma_wait(int groups_in_flight);
void set_max_registers(int registers, bool increase);

}  // namespace ocnet::emulator
