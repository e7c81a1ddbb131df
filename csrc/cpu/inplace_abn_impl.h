// SPDX-License-Identifier: MIT
// No include guard: inplace_abn_kernels.cpp includes this file once for every instruction set
// (each_instruction_set.h). This file includes nothing but its other parts.

#include "vectors_impl.h"
// In this order: each uses what is before it.
#include "inplace_abn_numbers_impl.h"
#include "inplace_abn_ops_impl.h"

struct AllNumbers {
  template <typename V>
  OCNET_INLINE V operator()(V value) const {
    return value;
  }
  OCNET_INLINE AllNumbers of_part(int) const { return {}; }
};

// Those from `first` to `end` of the numbers that Parts vectors hold.
template <int Parts>
struct SomeNumbers {
  int64_t first, end;
  int part = 0;

  template <typename V>
  OCNET_INLINE V operator()(V value) const {
    using T = std::remove_reference_t<decltype(value[0])>;
    using Bit = std::make_signed_t<typename Float<T>::Bits>;
    Bit numbers[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) {
      numbers[i] = Parts * i + part;
    }
    const SignedBits<T> index = load<SignedBits<T>>(numbers);
    value = index >= fill<SignedBits<T>>(static_cast<Bit>(first)) ? value : V{};
    return index < fill<SignedBits<T>>(static_cast<Bit>(end)) ? value : V{};
  }
  OCNET_INLINE SomeNumbers of_part(int which) const { return {first, end, which}; }
};

// Adds vectors of Parts sums, one behind the other, to those of the neighbours that they belong to.
template <int Parts, typename T>
OCNET_OUTLINE void add_parts(const T* sums, double* target) {
  for (int i = 0; i < kLanes<T>; ++i) {
    for (int part = 0; part < Parts; ++part) {
      target[Parts * i + part] += sums[part * kLanes<T> + i];
    }
  }
}

// A tree of whole vectors for as long as there are such.
template <int Count, typename T>
OCNET_INLINE double total(const T* numbers) {
  double sums[Count];
  OCNET_UNROLL
  for (int i = 0; i < Count; ++i) {
    sums[i] = numbers[i];
  }
  OCNET_UNROLL
  for (int width = Count / 2; width > 0; width /= 2) {
    OCNET_UNROLL
    for (int i = 0; i < width; ++i) {
      sums[i] += sums[i + width];
    }
  }
  return sums[0];
}

// Of one channel, a call of memset would take longer than all that follows.
template <bool Rows>
OCNET_INLINE void clear(double* sums, int64_t width) {
  if constexpr (Rows) {
    std::memset(sums, 0, width * sizeof(double));
  } else {
    *sums = 0;
  }
}

// An operation on kStep neighbours at a time.
template <typename Op, typename Element>
struct Loop {
  using T = typename Op::T;
  using V = Vector<T>;
  using Block = AbnBlock<T, Element>;
  static constexpr int kParts = Stored<Element>::kParts;
  static constexpr int kKinds = Op::kKinds > 0 ? Op::kKinds : 1;
  static constexpr int64_t kStep = kParts * kLanes<T>;
  using Some = SomeNumbers<kParts>;

  struct Numbers {
    V map[kParts], residual[kParts], grad_out[kParts];
  };
  struct Sums {
    V of[kParts][kKinds] = {};
  };
  struct Ops {
    Op of[kParts];
  };

  template <bool Rows>
  static OCNET_INLINE Ops ops(const Block& block, int64_t column) {
    Ops all;
    all.of[0] = Op::at(block, Place<Rows, kParts, 0>{column});
    if constexpr (kParts > 1) {
      all.of[1] = Op::at(block, Place<Rows, kParts, 1>{column});
    }
    return all;
  }

  static OCNET_INLINE Numbers read(const Block& block, int64_t at) {
    Numbers numbers;
    Stored<Element>::read(block.map + at, numbers.map);
    if constexpr (Op::kReadsResidual) {
      if (block.residual != nullptr) {
        Stored<Element>::read(block.residual + at, numbers.residual);
      } else {
        for (V& part : numbers.residual) {
          // Adding -0 changes nothing, not even a sign.
          part = fill<V>(T(-0.0));
        }
      }
    }
    if constexpr (Op::kReadsGradient) {
      Stored<Element>::read(block.grad_out + at, numbers.grad_out);
    }
    return numbers;
  }

  template <typename Keep>
  static OCNET_INLINE void run(const Block& block, int64_t at, const Numbers& numbers,
                               const Ops& ops, Sums& sums, const Keep& keep) {
    V target[kParts], grad_residual[kParts];
    OCNET_UNROLL
    for (int part = 0; part < kParts; ++part) {
      const Outputs<T> out =
          ops.of[part](Inputs<T>{numbers.map[part], numbers.residual[part], numbers.grad_out[part]},
                       sums.of[part], keep.of_part(part));
      target[part] = out.target;
      grad_residual[part] = out.grad_residual;
    }
    if (Op::kWrites && block.target != nullptr) {
      Stored<Element>::write(block.target + at, target, block.past_caches);
    }
    if (Op::kWrites && Op::kReadsGradient && block.grad_residual != nullptr) {
      Stored<Element>::write(block.grad_residual + at, grad_residual, block.past_caches);
    }
  }

  // `count` numbers, fewer than a step: they are copied to where there is room for one.
  static OCNET_OUTLINE Sums run_short(Block block, int64_t at, int64_t count, const Ops& ops) {
    alignas(64) Element room[5][kStep] = {};
    const size_t bytes = count * sizeof(Element);
    Element *const target = block.target, *const grad_residual = block.grad_residual;
    take(block.map, at, bytes, room[0]);
    take(block.residual, at, bytes, room[1]);
    take(block.grad_out, at, bytes, room[2]);
    block.target = target != nullptr ? room[3] : nullptr;
    block.grad_residual = grad_residual != nullptr ? room[4] : nullptr;
    Sums sums;
    run(block, 0, read(block, 0), ops, sums, Some{0, count});
    if (Op::kWrites && target != nullptr) {
      std::memcpy(target + at, room[3], bytes);
    }
    if (Op::kWrites && grad_residual != nullptr) {
      std::memcpy(grad_residual + at, room[4], bytes);
    }
    return sums;
  }
  static OCNET_INLINE void take(const Element*& source, int64_t at, size_t bytes, Element* copy) {
    if (source != nullptr) {
      std::memcpy(copy, source + at, bytes);
      source = copy;
    }
  }

  // Also what is only written, unless that goes past the caches: its lines come from memory too.
  // Asking for what is not there does nothing.
  static OCNET_INLINE void prefetch(const Block& block, int64_t at) {
    OCNET_PREFETCH(block.map + at);
    if constexpr (Op::kReadsGradient) {
      OCNET_PREFETCH(block.grad_out + at);
    }
    if (Op::kReadsResidual && block.residual != nullptr) {
      OCNET_PREFETCH(block.residual + at);
    }
    if (Op::kWrites && block.target != nullptr && !block.past_caches) {
      OCNET_PREFETCH(block.target + at);
    }
    if (Op::kWrites && Op::kReadsGradient && block.grad_residual != nullptr && !block.past_caches) {
      OCNET_PREFETCH(block.grad_residual + at);
    }
  }

  // The line of the next channel but one begins behind that of the next. Lines that are short and
  // far apart are not foreseen by the processor.
  static OCNET_INLINE void prefetch_line(const Block& block, int64_t start) {
    if (block.length < kPage) {
      for (int64_t i = 0; i < block.length; i += kLine) {
        prefetch(block, start + i);
      }
    }
  }

  static OCNET_INLINE void add(Sums& to, const Sums& from) {
    OCNET_UNROLL
    for (int part = 0; part < kParts; ++part) {
      OCNET_UNROLL
      for (int kind = 0; kind < Op::kKinds; ++kind) {
        to.of[part][kind] += from.of[part][kind];
      }
    }
  }

  // Lines are parts of planes of one channel. What is left of a line after whole steps is done with
  // its last step, numbers of which are done twice, with one result: it is read before anything is
  // written, because the target may be the map.
  static void planes(const Block& given) {
    const Block block = given;  // which no store can change, as far as a compiler knows
    const Ops all = ops<false>(block, 0);
    Sums sums[kUnroll];
    for (int64_t line = 0; line < block.lines; ++line) {
      const int64_t start = line * block.stride, end = start + block.length, last = end - kStep;
      if (block.length < kStep) {
        add(sums[0], run_short(block, start, block.length, all));
        continue;
      }
      prefetch_line(block, start + 2 * block.length);
      const Numbers kept = read(block, last);
      int64_t at = start;
      while (at + kUnroll * kStep <= end) {
        const int64_t stop = Op::kKinds > 0 && at + kChain < end ? at + kChain : end;
        Sums part[kUnroll];
        for (; at + kUnroll * kStep <= stop; at += kUnroll * kStep) {
          OCNET_UNROLL
          for (int i = 0; i < kUnroll; ++i) {
            if (i * kStep % kLine == 0) {
              prefetch(block, at + i * kStep + kAhead);
            }
            run(block, at + i * kStep, read(block, at + i * kStep), all, part[i], AllNumbers());
          }
        }
        OCNET_UNROLL
        for (int i = 0; i < kUnroll; ++i) {
          add(sums[i], part[i]);
        }
      }
      for (; at <= last; at += kStep) {
        run(block, at, read(block, at), all, sums[0], AllNumbers());
      }
      if (at < end) {
        run(block, last, kept, all, sums[0], Some{at - last, kStep});
      }
    }
    OCNET_UNROLL
    for (int width = kUnroll; width > 1; width /= 2) {
      OCNET_UNROLL
      for (int i = 0; i < width / 2; ++i) {
        add(sums[i], sums[i + width / 2]);
      }
    }
    OCNET_UNROLL
    for (int kind = 0; kind < Op::kKinds; ++kind) {
      T numbers[kStep];
      put(sums[0], kind, numbers);
      block.sums[kind * block.sums_stride] += total<kStep>(numbers);
    }
  }

  static OCNET_INLINE void put(const Sums& sums, int kind, T (&numbers)[kStep]) {
    OCNET_UNROLL
    for (int part = 0; part < kParts; ++part) {
      store(numbers + part * kLanes<T>, sums.of[part][kind]);
    }
  }

  // The sums of the rows so far, of the columns of one step, vector by vector.
  static OCNET_INLINE T* so_far(const Block& block, int64_t step, int kind) {
    return block.scratch + (1 + kind) * abn_padded(block.length) + step * kStep;
  }
  static OCNET_INLINE void keep(const Block& block, int64_t step, const Sums& sums) {
    OCNET_UNROLL
    for (int kind = 0; kind < Op::kKinds; ++kind) {
      OCNET_UNROLL
      for (int part = 0; part < kParts; ++part) {
        T* const target = so_far(block, step, kind) + part * kLanes<T>;
        store(target, load<V>(target) + sums.of[part][kind]);
      }
    }
  }

  // Rows from `first` to `end`, Wide steps of columns: a whole cache line, of which each row then
  // needs one at a time.
  template <int Wide>
  static OCNET_INLINE void columns(const Block& block, int64_t first, int64_t end, int64_t step) {
    const int64_t column = step * kStep;
    // The rows behind these are asked for line by line in the order of memory, where nothing lies
    // between, and a page ahead at least, as short rows are done before memory answers: a processor
    // that sees every row ask for a line now and then foresees nothing.
    const bool dense = block.length == block.stride;
    const int64_t between = dense ? kLine : block.stride;
    const int64_t far = std::max(end, first + kPage / block.stride);
    int64_t ahead = far * block.stride + (dense ? column * (end - first) : column);
    if (far >= block.lines) {
      ahead = first * block.stride;  // what comes next may be another worker's
    }
    Ops all[Wide];
    Sums sums[Wide];
    OCNET_UNROLL
    for (int i = 0; i < Wide; ++i) {
      all[i] = ops<true>(block, column + i * kStep);
    }
    for (int64_t row = first; row < end; ++row) {
      const int64_t at = row * block.stride + column;
      prefetch(block, ahead);
      ahead += between;
      OCNET_UNROLL
      for (int i = 0; i < Wide; ++i) {
        run(block, at + i * kStep, read(block, at + i * kStep), all[i], sums[i], AllNumbers());
      }
    }
    OCNET_UNROLL
    for (int i = 0; i < Wide; ++i) {
      keep(block, step + i, sums[i]);
    }
  }

  // The columns that are not a whole cache line. The last step is as that of planes.
  static OCNET_INLINE void last_columns(const Block& block, int64_t first, int64_t end,
                                        int64_t step, const Numbers* kept) {
    for (; step * kStep < block.length; ++step) {
      const int64_t column = step * kStep, last = block.length - kStep;
      const bool whole = column <= last;
      const int64_t start = whole ? column : last;
      const Ops all = ops<true>(block, start);
      Sums sums;
      for (int64_t row = first; row < end; ++row) {
        const int64_t at = row * block.stride + start;
        run(block, at, whole ? read(block, at) : kept[row - first], all, sums,
            Some{column - start, kStep});
      }
      keep(block, step, sums);
    }
  }

  static OCNET_INLINE void short_columns(const Block& block, int64_t first, int64_t end) {
    const Ops all = ops<true>(block, 0);
    Sums sums;
    for (int64_t row = first; row < end; ++row) {
      add(sums, run_short(block, row * block.stride, block.length, all));
    }
    keep(block, 0, sums);
  }

  // How many rows to work on at the same time, which share the values of their channels. The lines
  // of a column must find room in the cache: those whose addresses differ by pages, as of rows that
  // are so far apart and of maps that begin alike, share a place that holds only so many. Sums are
  // of as many rows wherever maps are, or their rounding would depend on it.
  static int64_t together(const Block& block) {
    if (Op::kKinds > 0) {
      return kTogether;
    }
    constexpr int64_t kPageBytes = 4096, kPlaces = 8;
    const void* const maps[] = {block.map, Op::kReadsGradient ? block.grad_out : nullptr,
                                Op::kReadsResidual ? block.residual : nullptr,
                                Op::kWrites ? block.target : nullptr,
                                Op::kWrites ? block.grad_residual : nullptr};
    const auto line = [](const void* map) {
      return reinterpret_cast<uintptr_t>(map) % kPageBytes / 64;
    };
    int64_t alike = 1;
    for (const void* map : maps) {
      int64_t others = 0;
      for (const void* other : maps) {
        others += map != nullptr && other != nullptr && line(map) == line(other);
      }
      alike = std::max(alike, others);
    }
    const int64_t between = block.stride * static_cast<int64_t>(sizeof(Element));
    return std::min(kTogether, kPageBytes / std::gcd(kPageBytes, between) * (kPlaces / alike));
  }

  // Lines are rows of channels.
  static void rows(const Block& given) {
    const Block block = given;
    constexpr int kWide = 64 / sizeof(Element) > kStep ? 2 : 1;
    const int64_t last = block.length - kStep;
    if (Op::kKinds > 0) {
      std::memset(so_far(block, 0, 0), 0, Op::kKinds * abn_padded(block.length) * sizeof(T));
    }
    const int64_t rows_at_once = together(block);
    for (int64_t first = 0; first < block.lines; first += rows_at_once) {
      const int64_t end = std::min(first + rows_at_once, block.lines);
      if (last < 0) {
        short_columns(block, first, end);
        continue;
      }
      Numbers kept[kTogether];
      for (int64_t row = first; last % kStep != 0 && row < end; ++row) {
        kept[row - first] = read(block, row * block.stride + last);
      }
      int64_t step = 0;
      for (; (step + kWide) * kStep <= block.length; step += kWide) {
        columns<kWide>(block, first, end, step);
      }
      last_columns(block, first, end, step, kept);
    }
    for (int64_t column = 0; Op::kKinds > 0 && column < block.length; column += kStep) {
      const int64_t start = column <= last || last < 0 ? column : last;
      OCNET_UNROLL
      for (int kind = 0; kind < Op::kKinds; ++kind) {
        add_parts<kParts>(so_far(block, column / kStep, kind),
                          block.sums + kind * block.sums_stride + start);
      }
    }
  }

 private:
  static constexpr int kUnroll = Op::kUnroll / kParts > 1 ? Op::kUnroll / kParts : 1;
  // Numbers whose sums are added up in one go: short chains lose less than one long one.
  static constexpr int64_t kChain = 32 * kUnroll * kStep;
  // Numbers of a cache line, of a page, and of the lines between the one asked for and that at
  // work.
  static constexpr int64_t kLine = 64 / sizeof(Element), kPage = 64 * kLine, kAhead = 16 * kLine;
  static constexpr int64_t kTogether = sizeof(Element) == 2 ? 8 : 4;
};

// Code for the base of x86 is slow while upper halves of vectors are in use. Compilers see to that,
// but not behind a call of a function that they know to use none.
OCNET_INLINE void leave(bool past_caches) {
#if OCNET_X86
  if (past_caches) {
    _mm_sfence();  // others see what was written past the caches in no order
  }
#if OCNET_BYTES > 16
  _mm256_zeroupper();
#endif
#endif
}

template <bool Rows, typename Op, typename Element, typename T = typename Op::T>
void run(const AbnBlock<T, Element>& block) {
  if constexpr (Rows) {
    Loop<Op, Element>::rows(block);
  } else {
    Loop<Op, Element>::planes(block);
  }
  leave(block.past_caches);
}

// Deviations are from the mean of a sixteenth of the block: near enough to the whole block's, since
// that part is in the block, for the sum of squares to be at most 16 times that from the mean. The
// subtraction of what it is too large then costs no more than 4 bits, and rarely any.
template <bool Rows, typename T, typename Element>
void moments(const AbnBlock<T, Element>& block) {
  constexpr int64_t kPart = 16;
  const int64_t width = Rows ? block.length : 1;
  double* const means = block.sums;
  double* const squares = block.sums + block.sums_stride;
  AbnBlock<T, Element> part = block;
  part.lines = (block.lines + kPart - 1) / kPart;
  if (!Rows) {
    const int64_t wanted = (block.lines * block.length + kPart - 1) / kPart;
    // Less than a vector would take longer than one.
    const int64_t least = std::min(block.length, Loop<Total<T>, Element>::kStep);
    part.length = std::max((wanted + part.lines - 1) / part.lines, least);
  }
  clear<Rows>(means, width);
  run<Rows, Total<T>>(part);
  const double some = static_cast<double>(Rows ? part.lines : part.lines * part.length);
  for (int64_t i = 0; i < width; ++i) {
    block.scratch[i] = static_cast<T>(means[i] / some);
  }
  clear<Rows>(means, width);
  clear<Rows>(squares, width);
  run<Rows, Deviations<T>>(block);
  const double all = static_cast<double>(Rows ? block.lines : block.lines * block.length);
  for (int64_t i = 0; i < width; ++i) {
    const double deviation = means[i] / all, rest = squares[i] - means[i] * deviation;
    means[i] = block.scratch[i] + deviation;
    // Rounding must not make it negative; NaN stays.
    squares[i] = rest < 0 ? 0 : rest;
  }
}

template <typename T, typename Element, bool Rows>
const AbnKernels<T, Element>& table() {
#define OCNET_RUN(...) run<Rows, __VA_ARGS__, Element>
  static const AbnKernels<T, Element> all = {
      moments<Rows, T, Element>,
      {OCNET_RUN(Normalise<T, kLeakyRelu>), OCNET_RUN(Normalise<T, kElu>),
       OCNET_RUN(Normalise<T, kRelu>)},
      {{OCNET_RUN(Gradient<T, kLeakyRelu, kSums>), OCNET_RUN(Gradient<T, kElu, kSums>),
        OCNET_RUN(Gradient<T, kRelu, kSums>), OCNET_RUN(Gradient<T, kSlopeGradient, kSums>)},
       {OCNET_RUN(Gradient<T, kLeakyRelu, kCentred>), OCNET_RUN(Gradient<T, kElu, kCentred>)},
       {OCNET_RUN(Gradient<T, kLeakyRelu, kScaled>), OCNET_RUN(Gradient<T, kElu, kScaled>),
        OCNET_RUN(Gradient<T, kRelu, kScaled>)}}};
#undef OCNET_RUN
  return all;
}
