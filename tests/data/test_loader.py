# SPDX-License-Identifier: MIT
"""A stream of batches that is a function of its seed, wherever it is entered."""

import itertools

import pytest
import torch

from ocnet.data import (
    Batch,
    DatasetInfo,
    Loader,
    Sample,
    SegmentationDataset,
    Standardise,
    distinct_colours,
)


class Numbered(SegmentationDataset):
    """Sample ``i`` is filled with ``i``; a draw adds a random fraction."""

    def __init__(self, length: int, odd_size: int | None = None) -> None:
        super().__init__(DatasetInfo(("a", "b"), Standardise(1), distinct_colours(2)))
        self.length = length
        self.odd_size = odd_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        side = 3 if index == self.odd_size else 2
        label = torch.zeros(side, side, dtype=torch.int64)
        return Sample(torch.full((1, side, side), float(index)), label, str(index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        sample = self[index]
        return Sample(sample.image + torch.rand((), generator=generator), sample.label, sample.name)


class Broken(Numbered):
    """Has one sample that cannot be had."""

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        raise ValueError("check_labels: label must be better")


def take(loader: Loader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and a.names == b.names
        for a, b in zip(one, two, strict=True)
    )


def test_batches_are_stacked() -> None:
    (batch,) = take(Loader(Numbered(5), 3, seed=0), 1)
    assert batch.images.shape == (3, 1, 2, 2)
    assert batch.labels.shape == (3, 2, 2)
    assert batch.images.long().unique().tolist() == sorted(int(name) for name in batch.names)


def test_each_epoch_has_each_sample_once_in_an_order_of_its_own() -> None:
    batches = take(Loader(Numbered(6), 4, seed=0), 6)
    names = [name for batch in batches for name in batch.names]
    epochs = [names[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_augmentation_differs_from_epoch_to_epoch() -> None:
    batches = take(Loader(Numbered(1), 1, seed=0), 5)
    assert len({float(batch.images[0, 0, 0, 0]) for batch in batches}) == 5


def test_the_stream_is_a_function_of_the_seed() -> None:
    first = take(Loader(Numbered(7), 3, seed=1), 5)
    torch.rand(5)
    assert same(first, take(Loader(Numbered(7), 3, seed=1), 5))
    assert not same(first, take(Loader(Numbered(7), 3, seed=2), 5))


def test_position_takes_the_stream_up_again() -> None:
    whole = take(Loader(Numbered(7), 3, seed=1), 9)
    loader = Loader(Numbered(7), 3, seed=1)
    take(loader, 4)
    assert loader.position == 4
    later = Loader(Numbered(7), 3, seed=1)
    later.position = loader.position
    assert same(whole[4:], take(later, 5))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_workers_change_nothing() -> None:
    alone = take(Loader(Numbered(7), 3, seed=1), 6)
    assert same(alone, take(Loader(Numbered(7), 3, seed=1, workers=2), 6))


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    take(Loader(Numbered(7), 3, seed=1), 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_sample_come_through_as_they_are(workers: int) -> None:
    with pytest.raises(ValueError, match=r"^check_labels: label must be better$"):
        take(Loader(Broken(3), 2, seed=0, workers=workers), 1)


def test_samples_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size, got \[\(1, 2, 2\), \(1, 3, 3\)\]"):
        take(Loader(Numbered(3, odd_size=1), 3, seed=0), 1)


@pytest.mark.parametrize(
    ("batch_size", "seed", "workers", "name"),
    [(0, 0, 0, "batch_size"), (1, -1, 0, "seed"), (1, 0, -1, "workers")],
)
def test_options_out_of_range_are_refused(
    batch_size: int, seed: int, workers: int, name: str
) -> None:
    with pytest.raises(ValueError, match=f"^Loader: {name} must be at least"):
        Loader(Numbered(3), batch_size, seed, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_each_batch_of_one(workers: int) -> None:
    whole = take(Loader(Numbered(7), 6, seed=3), 4)
    parts = [
        take(Loader(Numbered(7), 6, seed=3, workers=workers, rank=rank, processes=3), 4)
        for rank in range(3)
    ]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert sum((share.names for share in shares), ()) == batch.names


def test_a_share_is_taken_up_again_where_it_was() -> None:
    whole = take(Loader(Numbered(7), 4, seed=3, rank=1, processes=2), 4)
    loader = Loader(Numbered(7), 4, seed=3, rank=1, processes=2)
    loader.position = 2
    assert same(take(loader, 2), whole[2:])


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Loader: batch_size must be a multiple .* 3, got 4"):
        Loader(Numbered(7), 4, seed=0, processes=3)
