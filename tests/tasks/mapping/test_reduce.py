"""A reduction as a tree, whatever the order in which results arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.tasks.mapping.reduce import Reduction, ReductionTree


def test_neighbours_are_reduced_as_soon_as_all_are_there() -> None:
    tree = ReductionTree(2)
    assert tree.add(0, 1, "b") == []
    assert tree.add(0, 2, "c") == []
    assert tree.add(0, 0, "a") == [Reduction(1, 0, ["a", "b"])]


def test_nothing_is_reduced_as_an_empty_list() -> None:
    tree = ReductionTree(2)
    assert tree.close(0) == [Reduction(1, 0, [])]
    assert tree.add(1, 0, "nothing") == []
    assert tree.root == ["nothing"]


def test_a_single_value_is_reduced_once() -> None:
    tree = ReductionTree(2)
    tree.add(0, 0, "a")
    assert tree.close(1) == [Reduction(1, 0, ["a"])]


def test_a_value_left_over_goes_up_as_it_is() -> None:
    tree = ReductionTree(2)
    for place, value in enumerate("abc"):
        tree.add(0, place, value)
    assert tree.add(1, 0, "ab") == []
    assert tree.close(3) == [Reduction(2, 0, ["ab", "c"])]


def test_a_tree_that_does_not_get_smaller_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        ReductionTree(1)


@given(st.integers(0, 70), st.integers(2, 5), st.data())
def test_the_order_is_kept_whichever_comes_first(size: int, fan_in: int, data: st.DataObject) -> None:
    tree = ReductionTree(fan_in)
    arriving = [(0, place, [place]) for place in range(size)]
    close_after = data.draw(st.integers(0, size))
    reductions: list[Reduction] = []
    arrived = 0
    closed = False
    while arriving or not closed:
        if arrived >= close_after and not closed:
            closed = True
            ready = tree.close(size)
        else:
            level, place, value = arriving.pop(data.draw(st.integers(0, len(arriving) - 1)))
            arrived += 1
            ready = tree.add(level, place, value)
        reductions += ready
        arriving += [(r.level, r.place, [x for part in r.values for x in part]) for r in ready]
    assert tree.root == [list(range(size))]
    assert all(len(reduction.values) <= fan_in for reduction in reductions)
    assert reductions
