"""Quantities as people read them: durations, sizes and numbers. Pure.

Sentences have the whole forms. The short forms are for columns and figures, which have room for few
characters.
"""

from typing import Final

_LONG_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60))
_SHORT_UNITS: Final = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))
_THOUSANDS: Final = ("k", "M", "G", "T")
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float) -> str:
    """``340 ms``, ``2.5 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.0005:
        return "0 s" if seconds <= 0 else "< 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for index, (unit, length) in enumerate(_LONG_UNITS):
        if whole >= length:
            below, smaller = _LONG_UNITS[index + 1] if index + 1 < len(_LONG_UNITS) else ("s", 1)
            rest = whole % length // smaller
            return f"{whole // length:,} {unit}" + (f" {rest} {below}" if rest else "")
    raise AssertionError("a minute is the smallest unit")


def size(count: float) -> str:
    """``512 B``, ``1.5 KiB``, ``128 MiB``."""
    power = 0
    while power < len(_SIZES) - 1 and count >= 1024 ** (power + 1):
        power += 1
    scaled = count / 1024**power
    digits = 0 if not power or scaled >= 100 else 1
    return f"{scaled:,.{digits}f}".removesuffix(".0") + f" {_SIZES[power]}"


def counted(number: float, noun: str, plural: str = "") -> str:
    """``1 job``, ``2 jobs``, ``1,200 jobs``. The plural has an ``s`` unless it is given."""
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"


def number(value: float) -> str:
    """``1,234``, ``1.5``, ``0.5``, ``0.02``."""
    if value == int(value) or abs(value) >= 9.95:
        return f"{value:,.0f}"
    if abs(value) >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}".rstrip("0") if abs(value) >= 0.005 else "<.01"


def short_number(value: float, exact: float = 10_000) -> str:
    """``812``, ``0.02``, ``12.3k``, ``1.23M``. Numbers below ``exact`` are as ``number`` has them."""
    if abs(value) < exact - 0.5:
        return number(value)
    power = 1
    while power < len(_THOUSANDS) and abs(value) / 1000**power >= 999.5:
        power += 1
    return f"{value / 1000**power:.3g}{_THOUSANDS[power - 1]}"


def short_duration(seconds: float) -> str:
    """``0.4ms``, ``25ms``, ``3.2s``, ``42s``, ``5m10s``, ``3h05m``, ``2d04h``."""
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    unit, length, below, smaller = next(each for each in _SHORT_UNITS if whole >= each[1])
    first, rest = divmod(whole, length)
    return f"{first}{unit}" if first >= 100 else f"{first}{unit}{rest // smaller:02}{below}"
