"""Limits in words: what holds a function back."""

from typing import Any

import pytest

from gearflow.observe import LimitTexts
from gearflow.protocol.limits import LimitedFunction, LimitInfo, LimitList, LimitUse, LimitValue

TWO = LimitValue(count=2)
RATE = LimitValue(count=60, per=60)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("work:concurrency", {"value": TWO, "running": 2}, "2 of 2 run"),
        ("work:concurrency", {"value": TWO, "running": 1}, ""),
        ("work:rate", {"value": RATE, "text": "60/m", "next": 3}, "60/m, next in 3 s"),
        ("work:rate", {"value": RATE, "text": "60/m"}, ""),
        ("work:rate", {"value": RATE, "paused": True}, "its limit is paused"),
        ("shopify", {"value": RATE, "paused": True}, "shopify: paused"),
        ("shopify", {"value": TWO, "running": 2}, "shopify: 2 of 2 run"),
        ("shopify", {}, ""),
    ],
)
def test_a_limit_says_why_jobs_wait(name: str, changes: dict[str, Any], reason: str) -> None:
    used = LimitedFunction(function="work", limits=(LimitUse(limit=name),))
    texts = LimitTexts(LimitList(limits=(LimitInfo(name=name, **changes),), functions=(used,)))
    assert texts.waits_for("work") == reason
    assert texts.waits_for("other") == ""
