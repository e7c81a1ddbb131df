// SPDX-License-Identifier: MIT
// Kernels of activated batch norm on rows (R, C): a block has a tile of vectors of a part of the
// super-rows (RowCut). No torch headers.
//
// Kernels that come second in a call take the parts in reverse: what was read last may still be in
// the L2 cache.
#pragma once

#include "common/launch.cuh"
#include "inplace_abn_numbers.cuh"
#include "inplace_abn_params.cuh"
#include "inplace_abn_planes.cuh"

namespace ocnet::abn {

// The vectors of a thread: one column, of each `lanes`-th super-row of the part.
struct RowPlace {
  int part;
  int first_column;  // of the tile
  int tile_column;   // of the thread, within the tile
  int lane;
  int column;
  bool has_column;
};

OCNET_DEVICE RowPlace locate_rows(const RowCut& cut, int64_t block) {
  const auto index = static_cast<uint32_t>(block);
  const uint32_t part = index / static_cast<uint32_t>(cut.tiles);
  const int tile = static_cast<int>(index - part * static_cast<uint32_t>(cut.tiles));
  const int thread = device::thread_index();
  RowPlace place;
  place.part = static_cast<int>(part);
  place.lane = thread / cut.columns;
  place.tile_column = thread - place.lane * cut.columns;
  place.first_column = tile * cut.columns;
  place.column = place.first_column + place.tile_column;
  place.has_column = place.lane < cut.lanes && place.column < cut.vectors;
  return place;
}
OCNET_DEVICE RowPlace locate_rows_in_reverse(const RowCut& cut) {
  return locate_rows(cut, device::grid_blocks() - 1 - device::block_index());
}

// Calls body(slots of the next kSlots super-rows of this thread, how many there are of them).
template <typename scalar_t, int kSlots, typename Body>
OCNET_DEVICE void for_rows(const RowCut& cut, const RowPlace& place, int64_t end,
                           const Body& body) {
  if (!place.has_column) return;
  OCNET_UNROLL_BY(1)
  for (int64_t row = cut.first_row(place.part) + place.lane; row < end; row += kSlots * cut.lanes) {
    Slot slots[kSlots];
    int count = 0;
    OCNET_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      slots[i] = {};
      if (row + i * cut.lanes < end) {
        slots[i] = cut.template slot<kWidth<scalar_t>>(row + i * cut.lanes, place.column);
        ++count;
      }
    }
    body(slots, count);
  }
}

// Values of the threads in shared memory: value i of all threads, then value i + 1.
template <typename T>
OCNET_DEVICE T& lane_value(T* shared, int i, int thread) {
  return shared[i * kStreamThreads + thread];
}

// Folds the lanes of each column in halves, in an order that depends on their number alone; the
// result is that of the first lane. keep() writes a thread's values to shared memory, fold(thread)
// adds those of another.
template <typename Keep, typename Fold>
OCNET_DEVICE void fold_lanes(int lanes, int columns, int lane, const Keep& keep, const Fold& fold) {
  int half = 1;
  while (2 * half < lanes) half *= 2;
  for (int left = lanes; half > 0; left = half, half /= 2) {
    if (lane >= half && lane < left) keep();
    device::barrier();
    // Every lane keeps once, in a place of its own: no barrier has to follow.
    if (lane < half && lane + half < left) fold(device::thread_index() + half * columns);
  }
}

// Statistics of the vectors of a tile, over one part of the super-rows.
//
// Grid: (part, tile), tiles fastest; 256 threads: lanes of columns. fp32 (fp64 for fp64 storage)
// moments: of a thread's next four numbers of a channel, then merged in a fixed order.
// Shared memory: (2 * width + 1) * 256 accumulators.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(4, 4, 3))
inplace_abn_stats_rows_kernel(StatsParams<scalar_t, RowCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kNumbers = kWidth<scalar_t>;
  const RowCut& cut = params.cut;
  const RowPlace place = locate_rows(cut, device::block_index());
  const int64_t end = cut.end_of_whole(place.part, place.column);
  acc_t count = 0, mean[kNumbers] = {}, squares[kNumbers] = {};
  for_rows<scalar_t, kInFlight>(cut, place, end, [&](const Slot(&slots)[kInFlight], int rows) {
    Vector<scalar_t> x[kInFlight];
    OCNET_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      if (i < rows) x[i] = load_whole(params.x, slots[i]);
    }
    const auto numbers = static_cast<acc_t>(rows);
    const acc_t share = joining_share(count, numbers);
    const acc_t each = 1 / at_least(numbers, acc_t(1));
    OCNET_UNROLL
    for (int j = 0; j < kNumbers; ++j) {
      acc_t few_mean = 0, few_squares = 0;
      OCNET_UNROLL
      for (int i = 0; i < kInFlight; ++i) few_mean += x[i][j];  // 0 where there is no row
      few_mean *= each;
      OCNET_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        const acc_t deviation = x[i][j] - few_mean;
        if (i < rows) few_squares += deviation * deviation;
      }
      join(mean[j], squares[j], count * share, share, few_mean, few_squares);
    }
    count += numbers;
  });

  acc_t* const shared = device::shared_memory<acc_t>();
  const int thread = device::thread_index();
  fold_lanes(
      cut.lanes, cut.columns, place.lane,
      [&] {
        OCNET_UNROLL
        for (int j = 0; j < kNumbers; ++j) {
          lane_value(shared, 2 * j, thread) = mean[j];
          lane_value(shared, 2 * j + 1, thread) = squares[j];
        }
        lane_value(shared, 2 * kNumbers, thread) = count;
      },
      [&](int other) {
        const acc_t added = lane_value(shared, 2 * kNumbers, other);
        const acc_t share = joining_share(count, added);
        OCNET_UNROLL
        for (int j = 0; j < kNumbers; ++j) {
          join(mean[j], squares[j], count * share, share, lane_value(shared, 2 * j, other),
               lane_value(shared, 2 * j + 1, other));
        }
        count += added;
      });
  if (place.lane != 0 || !place.has_column) return;
  // The last vector of a map may be cut.
  Slot rest;
  if (end < cut.end_row(place.part)) rest = cut.template slot<kNumbers>(end, place.column);
  const Vector<scalar_t> x = load_by_number(params.x, rest);
  OCNET_UNROLL
  for (int j = 0; j < kNumbers; ++j) {
    Moments<acc_t> moments{count, mean[j], squares[j]};
    if (rest.has(j)) moments = combined(moments, {1, x[j], 0});
    const RowCut::Channel to = cut.channel_at(place.column * kNumbers + j);
    store_record(params.records, cut.channels, cut.record(place.part, to.repeat), to.channel,
                 static_cast<acc_t>(cut.count(place.part, to.repeat)), moments.mean,
                 moments.squares);
  }
}

// Puts what make(channel, whether this thread writes what is written once) returns for the channels
// of the tile where channels_of_tile finds it.
template <typename scalar_t, typename Make>
OCNET_DEVICE void prepare_channels(const RowCut& cut, const RowPlace& place, const Make& make) {
  using Channel = decltype(make(int64_t{}, true));
  constexpr int kNumbers = kWidth<scalar_t>;
  const int thread = device::thread_index();
  const int column = thread / kNumbers;
  const int j = thread - column * kNumbers;
  if (column < cut.columns && place.first_column + column < cut.vectors) {
    const RowCut::Channel of = cut.channel_at((place.first_column + column) * kNumbers + j);
    device::shared_memory<Channel>()[j * cut.columns + column] =
        make(of.channel, place.part == 0 && of.repeat == 0);
  }
  device::barrier();
}
// Neighbouring columns lie next to each other.
template <typename Channel>
OCNET_DEVICE auto channels_of_tile(const RowCut& cut, const RowPlace& place) {
  const Channel* const own = device::shared_memory<Channel>() + place.tile_column;
  const int columns = cut.columns;
  return [own, columns](int j) { return own[j * columns]; };
}

template <typename Value, typename Records>
OCNET_DEVICE Value sum_of_records(const Records& records, int64_t c) {
  Value value;
  OCNET_UNROLL_BY_4
  for (int64_t i = 0; i < records.count; ++i) value = combined(value, records.at(i, c));
  return value;
}

// Normalises and activates a tile of one part of the rows. Of a channel, the first number of the
// first part writes the statistics.
//
// Grid: as above, in reverse; 256 threads. Shared memory: width * columns channels.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(3, 4, 3))
inplace_abn_fwd_rows_kernel(ForwardParams<scalar_t, RowCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  const RowPlace place = locate_rows_in_reverse(params.cut);
  const auto& normalisation = params.normalisation;
  prepare_channels<scalar_t>(params.cut, place, [&](int64_t c, bool writes) {
    if (!normalisation.training) return channel_of_running(params.pointwise, normalisation, c);
    const auto moments = sum_of_records<Moments<acc_t>>(normalisation.records, c);
    return channel_of_batch(params.pointwise, normalisation, c, moments, writes);
  });
  const auto channels = channels_of_tile<ForwardChannel<acc_t>>(params.cut, place);
  const int64_t end = params.cut.end_row(place.part);
  if (params.residual == nullptr) {
    for_rows<scalar_t, kInFlight>(params.cut, place, end, [&](const Slot(&slots)[kInFlight], int) {
      normalise_slots<false>(params, slots, channels);
    });
  } else {
    for_rows<scalar_t, kInFlight / 2>(params.cut, place, end,
                                      [&](const Slot(&slots)[kInFlight / 2], int) {
                                        normalise_slots<true>(params, slots, channels);
                                      });
  }
}

// Sums over a tile of one part of the rows; with frozen statistics also the gradients of the maps.
//
// Grid: (part, tile), tiles fastest; 256 threads: lanes of columns. Sums are fp32 (fp64): of a
// thread's next two numbers of a channel, then all of these, then over lanes in a fixed order.
// Shared memory: width * columns channels, then 3 * width * 256 accumulators.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(2, 3, 2))
inplace_abn_bwd_reduce_rows_kernel(BackwardParams<scalar_t, RowCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSlots = kInFlight / 2;
  constexpr int kNumbers = kWidth<scalar_t>;
  const RowCut& cut = params.cut;
  const RowPlace place = locate_rows(cut, device::block_index());
  prepare_channels<scalar_t>(cut, place,
                             [&](int64_t c, bool) { return channel_without_sums(params, c); });
  const auto channels = channels_of_tile<BackwardChannel<acc_t>>(cut, place);
  const acc_t lowest = params.pointwise.lowest;
  const bool writes = params.grad_x != nullptr || params.grad_residual != nullptr;
  Sums<acc_t> sums[kNumbers];
  for_rows<scalar_t, kSlots>(
      cut, place, cut.end_row(place.part), [&](const Slot(&slots)[kSlots], int) {
        BackwardVectors<scalar_t, kSlots> v(params, params.residual != nullptr, slots);
        with_activation(params.pointwise.activation, [&](auto act) {
          add_up<decltype(act)>(
              v.z, v.grad_out, v.residual, channels, lowest,
              [&](int j, const Sums<acc_t>& more) { sums[j] = combined(sums[j], more); });
        });
        if (!writes) return;
        with_activation(params.pointwise.activation, [&](auto act) {
          differentiate<decltype(act)>(v.z, v.grad_out, v.residual, true, channels, lowest);
        });
        store_gradients(params, slots, v);
      });

  acc_t* const shared = reinterpret_cast<acc_t*>(device::shared_memory<BackwardChannel<acc_t>>() +
                                                 kNumbers * cut.columns);
  const int thread = device::thread_index();
  fold_lanes(
      cut.lanes, cut.columns, place.lane,
      [&] {
        OCNET_UNROLL
        for (int j = 0; j < kNumbers; ++j) {
          lane_value(shared, kSums * j, thread) = sums[j].dy;
          lane_value(shared, kSums * j + 1, thread) = sums[j].centred;
          lane_value(shared, kSums * j + 2, thread) = sums[j].negative;
        }
      },
      [&](int other) {
        OCNET_UNROLL
        for (int j = 0; j < kNumbers; ++j) {
          sums[j] = combined(sums[j], {lane_value(shared, kSums * j, other),
                                       lane_value(shared, kSums * j + 1, other),
                                       lane_value(shared, kSums * j + 2, other)});
        }
      });
  if (place.lane != 0 || !place.has_column) return;
  OCNET_UNROLL
  for (int j = 0; j < kNumbers; ++j) {
    const RowCut::Channel to = cut.channel_at(place.column * kNumbers + j);
    store_sums(params.records, cut.records(), cut.channels, cut.record(place.part, to.repeat),
               to.channel, sums[j]);
  }
}

// Gradients of the maps, of a tile of one part of the rows. Of a channel, the first number of the
// first part writes the gradients of its vectors that are wanted.
//
// Grid: as above, in reverse; 256 threads. Shared memory: width * columns channels.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(3, 4, 2))
inplace_abn_bwd_apply_rows_kernel(BackwardParams<scalar_t, RowCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSlots = kInFlight / 2;
  const RowPlace place = locate_rows_in_reverse(params.cut);
  const bool frozen = params.sums.data == nullptr;
  const bool adds = !frozen && params.residual != nullptr;
  prepare_channels<scalar_t>(params.cut, place, [&](int64_t c, bool writes) {
    if (frozen) return channel_without_sums(params, c);
    const auto sums = sum_of_records<Sums<acc_t>>(params.sums, c);
    if (writes) write_vectors(params.vectors, params.pointwise, params.cut.channels, c, sums);
    return channel_with_sums(params, c, sums);
  });
  const auto channels = channels_of_tile<BackwardChannel<acc_t>>(params.cut, place);
  for_rows<scalar_t, kSlots>(params.cut, place, params.cut.end_row(place.part),
                             [&](const Slot(&slots)[kSlots], int) {
                               BackwardVectors<scalar_t, kSlots> v(params, adds, slots);
                               with_activation(params.pointwise.activation, [&](auto act) {
                                 differentiate<decltype(act)>(v.z, v.grad_out, v.residual, frozen,
                                                              channels, params.pointwise.lowest);
                               });
                               store_gradients(params, slots, v);
                             });
}

// Bytes of shared memory for values of every thread, and for the channels of a tile.
template <typename scalar_t>
size_t bytes_of_threads(int values) {
  return values * kStreamThreads * sizeof(accumulator_t<scalar_t>);
}
template <typename scalar_t, typename Channel>
size_t bytes_of_tile(const RowCut& cut) {
  return kWidth<scalar_t> * cut.columns * sizeof(Channel);
}
template <typename scalar_t, typename Launch>
void launch_stats(const StatsParams<scalar_t, RowCut>& params, const Launch& launch) {
  launch(inplace_abn_stats_rows_kernel<scalar_t>,
         stream_grid(params.cut, bytes_of_threads<scalar_t>(2 * kWidth<scalar_t> + 1)), params);
}
template <typename scalar_t, typename Launch>
void launch_forward(const ForwardParams<scalar_t, RowCut>& params, const Launch& launch) {
  launch(inplace_abn_fwd_rows_kernel<scalar_t>,
         stream_grid(params.cut,
                     bytes_of_tile<scalar_t, ForwardChannel<accumulator_t<scalar_t>>>(params.cut)),
         params);
}
template <typename scalar_t, typename Launch>
void launch_reduce(const BackwardParams<scalar_t, RowCut>& params, const Launch& launch) {
  launch(inplace_abn_bwd_reduce_rows_kernel<scalar_t>,
         stream_grid(params.cut,
                     bytes_of_tile<scalar_t, BackwardChannel<accumulator_t<scalar_t>>>(params.cut) +
                         bytes_of_threads<scalar_t>(kSums * kWidth<scalar_t>)),
         params);
}
template <typename scalar_t, typename Launch>
void launch_apply(const BackwardParams<scalar_t, RowCut>& params, const Launch& launch) {
  launch(inplace_abn_bwd_apply_rows_kernel<scalar_t>,
         stream_grid(params.cut,
                     bytes_of_tile<scalar_t, BackwardChannel<accumulator_t<scalar_t>>>(params.cut)),
         params);
}

}  // namespace ocnet::abn
