"""The form of uniques that no two jobs share."""

import pytest

from gearflow.protocol.uniques import check_chosen, fresh_unique, is_fresh

OTHERS = [
    "",
    "~",
    "k",
    "0" * 32,
    "~" + "0" * 31,
    "~" + "0" * 33,
    "~" + "G" * 32,
    "~" + "A" * 32,
    "~" + "é" * 32,
    "~" + "0" * 32 + "\n",
    "x~" + "0" * 32,
]


def test_each_fresh_unique_is_a_new_one_and_known_by_its_form() -> None:
    made = {fresh_unique() for _ in range(100)}
    assert len(made) == 100
    for unique in made:
        assert is_fresh(unique)
        assert is_fresh(unique.encode())
        assert len(unique) == 33
        with pytest.raises(ValueError, match="give another key"):
            check_chosen(unique)
        with pytest.raises(ValueError, match="give another key"):
            check_chosen(unique.encode())


@pytest.mark.parametrize("unique", OTHERS)
def test_no_other_text_has_the_form(unique: str) -> None:
    assert not is_fresh(unique)
    assert not is_fresh(unique.encode())
    check_chosen(unique)
    check_chosen(unique.encode())
