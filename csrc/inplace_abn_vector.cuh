// SPDX-License-Identifier: MIT
// 16 bytes of a map in registers, and how kernels read and write them.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "common/math.h"
#include "common/ptx/arithmetic.cuh"
#include "inplace_abn_plan.h"

namespace ocnet::abn {

// Blocks that share a multiprocessor, as the registers of a kernel allow for numbers of 16, 32 and
// 64 bits.
template <typename scalar_t>
constexpr int together(int narrow, int single, int wide) {
  return sizeof(scalar_t) == 2 ? narrow : sizeof(scalar_t) == 4 ? single : wide;
}

// Any of the storage types lies in these words.
struct __attribute__((may_alias, aligned(16))) Words {
  uint32_t at[4];
};

template <typename scalar_t>
struct Vector {
  using acc_t = accumulator_t<scalar_t>;
  static constexpr int kNumbers = kWidth<scalar_t>;
  Words words = {};

  // `j` is known when the loop around it is unrolled.
  OCNET_DEVICE scalar_t stored(int j) const {
    if constexpr (sizeof(scalar_t) == 2) {
      return {static_cast<uint16_t>(words.at[j / 2] >> (j % 2 * 16))};
    } else if constexpr (sizeof(scalar_t) == 4) {
      return detail::bit_cast<scalar_t>(words.at[j]);
    } else {
      return detail::bit_cast<scalar_t>(words.at[2 * j] | static_cast<uint64_t>(words.at[2 * j + 1])
                                                              << 32);
    }
  }
  OCNET_DEVICE acc_t operator[](int j) const { return to_accumulator(stored(j)); }

  // Of a place that holds 0.
  OCNET_DEVICE void fill(int j, scalar_t value) {
    if constexpr (sizeof(scalar_t) == 2) {
      words.at[j / 2] |= static_cast<uint32_t>(value.bits) << (j % 2 * 16);
    } else {
      set_wide(j, value);
    }
  }
  // Puts 0 where a slot has no number.
  OCNET_DEVICE void keep(uint32_t mask) {
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(scalar_t) == 2) {
        words.at[i] &= ((mask >> 2 * i & 1) != 0 ? 0xffffu : 0u) |
                       ((mask >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u);
      } else if ((mask >> i * 4 / sizeof(scalar_t) & 1) == 0) {
        words.at[i] = 0;
      }
    }
  }
  // Rounds numbers 2 i and 2 i + 1.
  OCNET_DEVICE void round(int i, acc_t low, acc_t high) {
    if constexpr (sizeof(scalar_t) == 2) {
      words.at[i] = ptx::pack_pair(low, high, scalar_t{});
    } else {
      set_wide(2 * i, low);
      set_wide(2 * i + 1, high);
    }
  }

 private:
  OCNET_DEVICE void set_wide(int j, acc_t value) {
    if constexpr (sizeof(scalar_t) == 4) {
      words.at[j] = detail::bit_cast<uint32_t>(value);
    } else {
      const auto bits = detail::bit_cast<uint64_t>(value);
      words.at[2 * j] = static_cast<uint32_t>(bits);
      words.at[2 * j + 1] = static_cast<uint32_t>(bits >> 32);
    }
  }
};

// `kWhole`, here and below, is for slots that have all of their vector, or nothing.
template <typename scalar_t, bool kWhole = false>
OCNET_DEVICE bool is_whole(const Slot& slot) {
  return kWhole ? slot.mask != 0 : slot.mask == (1u << kWidth<scalar_t>)-1;
}

// Whether all of a slot's vector may be read, though another block has some of its numbers. Of the
// numbers of a map, `readable` ones may: all that there are, or none where others write them.
template <typename scalar_t, bool kWhole = false>
OCNET_DEVICE bool reads_whole(const Slot& slot, int64_t readable) {
  if (is_whole<scalar_t, kWhole>(slot)) return true;
  return !kWhole && slot.mask != 0 && slot.at + kWidth<scalar_t> <= readable;
}

template <typename scalar_t>
OCNET_DEVICE Vector<scalar_t> load_whole(const scalar_t* map, const Slot& slot) {
  return {*reinterpret_cast<const Words*>(map + slot.at)};
}
template <typename scalar_t>
OCNET_DEVICE Vector<scalar_t> load_by_number(const scalar_t* map, const Slot& slot) {
  Vector<scalar_t> vector;
  OCNET_UNROLL
  for (int j = 0; j < kWidth<scalar_t>; ++j) {
    if (slot.has(j)) vector.fill(j, map[slot.at + j]);
  }
  return vector;
}

// The numbers of kSlots slots; 0 where there are none. All whole vectors are asked for before the
// first of them is waited for.
template <bool kWhole = false, typename scalar_t, int kSlots>
OCNET_DEVICE void load_slots(Vector<scalar_t> (&vectors)[kSlots], const scalar_t* map,
                             int64_t readable, const Slot (&slots)[kSlots]) {
  OCNET_UNROLL
  for (int i = 0; i < kSlots; ++i) {
    vectors[i] = {};
    if (reads_whole<scalar_t, kWhole>(slots[i], readable)) vectors[i] = load_whole(map, slots[i]);
  }
  if constexpr (!kWhole) {
    OCNET_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      if (is_whole<scalar_t>(slots[i])) continue;
      if (reads_whole<scalar_t>(slots[i], readable)) {
        vectors[i].keep(slots[i].mask);
      } else if (slots[i].mask != 0) {
        vectors[i] = load_by_number(map, slots[i]);
      }
    }
  }
}

template <bool kWhole = false, typename scalar_t, int kSlots>
OCNET_DEVICE void store_slots(scalar_t* map, const Slot (&slots)[kSlots],
                              const Vector<scalar_t> (&vectors)[kSlots]) {
  OCNET_UNROLL
  for (int i = 0; i < kSlots; ++i) {
    if (is_whole<scalar_t, kWhole>(slots[i])) {
      *reinterpret_cast<Words*>(map + slots[i].at) = vectors[i].words;
    } else if constexpr (!kWhole) {
      OCNET_UNROLL
      for (int j = 0; j < kWidth<scalar_t>; ++j) {
        if (slots[i].has(j)) map[slots[i].at + j] = vectors[i].stored(j);
      }
    }
  }
}

}  // namespace ocnet::abn
