"""The colours of the style sheet meet WCAG 2.2 AA in both themes: 4.5 for text, 3 for marks and edges."""

import re
from importlib.resources import files

import pytest

SHEET = (files("gearflow.web") / "static" / "gearflow.css").read_text()

TEXT = [
    *[
        (ink, ground)
        for ink in ("ink", "muted", "accent", "good", "warn", "bad")
        for ground in ("surface", "back")
    ],
    *[("ink", "sunken"), ("muted", "sunken"), ("ink", "accent-soft")],
    *[(name, f"{name}-soft") for name in ("accent", "good", "warn", "bad")],
    *[("on-accent", "accent"), ("on-bad", "bad")],
]
MARKS = [
    *[(f"plot-{number}", "surface") for number in (1, 2, 3, 4)],
    *[("edge", "surface"), ("edge", "back"), ("accent", "sunken")],
]


def _themes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", SHEET, re.DOTALL)
    colors = r"--([\w-]+): (#[0-9a-f]{6})"
    first = dict(re.findall(colors, light))
    return {"light": first, "dark": {**first, **dict(re.findall(colors, dark))}}


def _luminance(color: str) -> float:
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_black_on_white_has_the_most_contrast() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("one", "other", "least"), [*[(*pair, 4.5) for pair in TEXT], *[(*pair, 3.0) for pair in MARKS]]
)
def test_colours_can_be_told_from_their_ground(theme: str, one: str, other: str, least: float) -> None:
    colors = _themes()[theme]
    assert contrast(colors[one], colors[other]) >= least


def test_both_themes_have_all_colours() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", SHEET, re.DOTALL)
    names = re.compile(r"--([\w-]+): #")
    assert set(names.findall(light)) == set(names.findall(dark))


def test_no_colour_is_written_outside_of_the_themes() -> None:
    _, _, rules = SHEET.partition("/* ---")
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", rules)
