"""The order of samples: every sample once an epoch, a pure function of what it is said to depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from sum_factory.trainer.data.order import WINDOW, Mix, Order, slots_of

GROUPS = (5, 1, 7, 3, 3, 9, 2, 4, 6, 8, 1, 5, 2, 2, 10, 3, 4, 5, 6, 7, 1, 2)
ORDER = Order("data", GROUPS, seed=0)
COUNT = sum(GROUPS)


def epoch(order: Order, number: int) -> list[int]:
    """Return the indices of an epoch in their order."""
    drawn = [order.sample(position) for position in range(number * len(order), (number + 1) * len(order))]
    assert {epoch for epoch, _ in drawn} == {number}
    return [index for _, index in drawn]


def test_every_sample_comes_once_an_epoch() -> None:
    assert len(ORDER) == COUNT
    for number in range(3):
        assert sorted(epoch(ORDER, number)) == list(range(COUNT))


def test_order_is_a_pure_function() -> None:
    forwards = [ORDER.sample(position) for position in range(2 * COUNT)]
    fresh = Order("data", tuple(GROUPS), seed=0)
    backwards = [fresh.sample(position) for position in reversed(range(2 * COUNT))]
    assert backwards[::-1] == forwards


@pytest.mark.parametrize("other", [Order("data", GROUPS, 1), Order("other", GROUPS, 0)])
def test_other_seeds_and_data_give_another_order(other: Order) -> None:
    assert epoch(other, 0) != epoch(ORDER, 0)


def test_each_epoch_has_its_own_order() -> None:
    epochs = [tuple(epoch(ORDER, number)) for number in range(4)]
    assert len(set(epochs)) == 4


def test_samples_stay_in_windows_of_groups() -> None:
    """A window's samples are those of whole groups, as many as a reader has open."""
    group_of = [group for group, size in enumerate(GROUPS) for _ in range(size)]
    for number in range(3):
        groups = [group_of[index] for index in epoch(ORDER, number)]
        seen: list[set[int]] = []
        while groups:
            window: set[int] = set()
            while len(window) < WINDOW and set(groups) - window:
                window.add(next(group for group in groups if group not in window))
            size = sum(GROUPS[group] for group in window)
            assert set(groups[:size]) == window
            seen.append(window)
            groups = groups[size:]
        assert [len(window) for window in seen] == [8, 8, 6]


def test_samples_of_a_window_are_mixed() -> None:
    one_window = Order("data", (100,) * WINDOW, 0)
    groups = [index // 100 for index in epoch(one_window, 0)]
    assert Counter(groups[:200]).keys() == set(range(WINDOW))


def test_groups_are_shuffled_among_windows() -> None:
    first = [{index // 10 for index in epoch(Order("data", (10,) * 32, 0), number)[:80]} for number in range(2)]
    assert len(first[0]) == len(first[1]) == WINDOW
    assert first[0] != first[1]


def test_one_sample_is_enough() -> None:
    assert [Order("data", (1,), 0).sample(position) for position in range(3)] == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("mix", [Mix(1, 1), Mix(2, 1), Mix(1, 0), Mix(3, 2)])
def test_slots_are_shared_in_proportion_and_no_sample_is_left_out(mix: Mix) -> None:
    cycle = mix.human + mix.pseudo
    located = [mix.locate(slot) for slot in range(50 * cycle)]
    for name, share in (("human", mix.human), ("pseudo", mix.pseudo)):
        assert [position for stream, position in located if stream == name] == list(range(50 * share))
    for start in range(0, len(located), cycle):
        names = [stream for stream, _ in located[start : start + cycle]]
        assert names == ["human"] * mix.human + ["pseudo"] * mix.pseudo


def test_mix_of_nothing_is_refused() -> None:
    for human, pseudo in ((0, 0), (-1, 1), (1, -1)):
        with pytest.raises(ValueError, match=rf"a mix needs a positive number of samples, not {human} : {pseudo}"):
            Mix(human, pseudo)


@pytest.mark.parametrize("mix", [Mix(1, 1), Mix(2, 1), Mix(1, 3), Mix(1, 0)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 11])
@pytest.mark.parametrize("together", [1, 2, 3])
def test_ranks_share_each_step_out_among_them(ranks: int, together: int, mix: Mix) -> None:
    for step in (0, 1, 17):
        shares = [list(slots_of(step, 8, mix, together, rank, ranks)) for rank in range(ranks)]
        assert sorted(slot for share in shares for slot in share) == list(range(step * 8, step * 8 + 8))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def pseudo_in(slots: Iterable[int], mix: Mix) -> int:
    """Return how many of the slots are of the stream with many masks."""
    return [mix.locate(slot)[0] for slot in slots].count("pseudo")


@pytest.mark.parametrize("mix", [Mix(1, 1), Mix(2, 1), Mix(1, 3)])
@pytest.mark.parametrize(("batch", "ranks"), [(4, 2), (8, 2), (8, 4), (40, 8), (12, 6), (40, 16)])
def test_pseudo_labels_are_dealt_evenly(batch: int, ranks: int, mix: Mix) -> None:
    for step in range(5):
        counts = [pseudo_in(slots_of(step, batch, mix, 1, rank, ranks), mix) for rank in range(ranks)]
        assert sum(counts) == pseudo_in(range(step * batch, (step + 1) * batch), mix)
        assert max(counts) - min(counts) <= 1


def test_what_goes_through_the_model_together_does_not_depend_on_the_ranks() -> None:
    """Two by two: those that one rank takes, in their order; dealing single slots would give others."""
    for step in (0, 3):
        alone = list(slots_of(step, 8, Mix(1, 1), 2))
        expected = sorted(tuple(alone[start : start + 2]) for start in range(0, 8, 2))
        for ranks in (2, 4):
            shares = [list(slots_of(step, 8, Mix(1, 1), 2, rank, ranks)) for rank in range(ranks)]
            assert sorted((share[n], share[n + 1]) for share in shares for n in range(0, len(share), 2)) == expected
