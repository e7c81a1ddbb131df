// SPDX-License-Identifier: MIT
// Tensor copies by the copy engine (TMA): cp.async.bulk.tensor (ISA: Data Movement and Conversion
// Instructions: Tensor copy) of boxes that a tensor map describes (../tensor_map.h), sm_90.
//
// One thread issues a copy. What lies outside the tensor is read as 0 and not written. Coordinates
// count elements from the start of the tensor, innermost axis first, and may be negative.
// Loads count their bytes (the whole box, zeros included) at an mbarrier; stores belong to the bulk
// group of the thread. The map is a kernel parameter marked OCNET_GRID_CONSTANT.
#pragma once

#include "../tensor_map.h"
#include "address.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

OCNET_DEVICE uint64_t map_address(const TensorMap& map) { return reinterpret_cast<uint64_t>(&map); }

#define OCNET_TMA_LOAD(rank, coordinates, ...)                             \
  asm volatile("cp.async.bulk.tensor." rank                                \
               ".shared::cluster.global.tile.mbarrier::complete_tx::bytes" \
               " [%0], [%1, {" coordinates "}], [%2];" ::"r"(shared),      \
               "l"(map_address(map)), "r"(mbarrier), __VA_ARGS__           \
               : "memory")

OCNET_DEVICE void tensor_load(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                              const int (&at)[1]) {
  OCNET_TMA_LOAD("1d", "%3", "r"(at[0]));
}
OCNET_DEVICE void tensor_load(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                              const int (&at)[2]) {
  OCNET_TMA_LOAD("2d", "%3, %4", "r"(at[0]), "r"(at[1]));
}
OCNET_DEVICE void tensor_load(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                              const int (&at)[3]) {
  OCNET_TMA_LOAD("3d", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
}
OCNET_DEVICE void tensor_load(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                              const int (&at)[4]) {
  OCNET_TMA_LOAD("4d", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
}
#undef OCNET_TMA_LOAD

#define OCNET_TMA_MULTICAST(rank, coordinates, ...)                                           \
  asm volatile("cp.async.bulk.tensor." rank                                                   \
               ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster" \
               " [%0], [%1, {" coordinates "}], [%2], %3;" ::"r"(shared),                     \
               "l"(map_address(map)), "r"(mbarrier), "h"(blocks), __VA_ARGS__                 \
               : "memory")

// Into every block of the cluster whose bit is set in `blocks`, at the same place in its shared
// memory, counted at the mbarrier in the same place there.
OCNET_DEVICE void tensor_load_multicast(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                                        const int (&at)[2], uint16_t blocks) {
  OCNET_TMA_MULTICAST("2d", "%4, %5", "r"(at[0]), "r"(at[1]));
}
OCNET_DEVICE void tensor_load_multicast(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                                        const int (&at)[3], uint16_t blocks) {
  OCNET_TMA_MULTICAST("3d", "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]));
}
OCNET_DEVICE void tensor_load_multicast(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                                        const int (&at)[4], uint16_t blocks) {
  OCNET_TMA_MULTICAST("4d", "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
}
#undef OCNET_TMA_MULTICAST

#define OCNET_TMA_STORE(rank, coordinates, ...)                           \
  asm volatile("cp.async.bulk.tensor." rank                               \
               ".global.shared::cta.tile.bulk_group"                      \
               " [%0, {" coordinates "}], [%1];" ::"l"(map_address(map)), \
               "r"(shared), __VA_ARGS__                                   \
               : "memory")

OCNET_DEVICE void tensor_store(const TensorMap& map, uint32_t shared, const int (&at)[2]) {
  OCNET_TMA_STORE("2d", "%2, %3", "r"(at[0]), "r"(at[1]));
}
OCNET_DEVICE void tensor_store(const TensorMap& map, uint32_t shared, const int (&at)[3]) {
  OCNET_TMA_STORE("3d", "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
}
OCNET_DEVICE void tensor_store(const TensorMap& map, uint32_t shared, const int (&at)[4]) {
  OCNET_TMA_STORE("4d", "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
}
#undef OCNET_TMA_STORE

// prefetch.tensormap (ISA: prefetch, prefetchu).
OCNET_DEVICE void tensor_prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map_address(map)) : "memory");
}
// cp.async.bulk.commit_group and .wait_group (ISA: the same chapter) of this thread's stores.
// `_read` waits only until shared memory has been read and may be written again.
OCNET_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kInFlight>
OCNET_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kInFlight) : "memory");
}
template <int kInFlight>
OCNET_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kInFlight) : "memory");
}

#else

template <int kRank>
OCNET_EMULATED void tensor_load(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                                const int (&at)[kRank]) {
  emulator::tensor_load(shared, &map, mbarrier, at, kRank, 0);
}
template <int kRank>
OCNET_EMULATED void tensor_load_multicast(uint32_t shared, const TensorMap& map, uint32_t mbarrier,
                                          const int (&at)[kRank], uint16_t blocks) {
  emulator::tensor_load(shared, &map, mbarrier, at, kRank, blocks);
}
template <int kRank>
OCNET_EMULATED void tensor_store(const TensorMap& map, uint32_t shared, const int (&at)[kRank]) {
  emulator::tensor_store(&map, shared, at, kRank);
}
OCNET_EMULATED void tensor_prefetch(const TensorMap& map) { emulator::tensor_prefetch(&map); }
OCNET_EMULATED void bulk_commit() { emulator::bulk_commit(); }
template <int kInFlight>
OCNET_EMULATED void bulk_wait() {
  emulator::bulk_wait(kInFlight, false);
}
template <int kInFlight>
OCNET_EMULATED void bulk_wait_read() {
  emulator::bulk_wait(kInFlight, true);
}

#endif

}  // namespace ocnet::ptx
