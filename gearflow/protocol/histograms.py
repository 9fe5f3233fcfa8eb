"""Histograms of durations, whose buckets are each twice as wide as the one before.

Durations are seconds. ``broker.counts`` and ``metrics.worker_counts`` count without this model, because they
are on hot paths.
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from math import ceil
from typing import Annotated, Final

from gearflow.protocol.messages import Answer, Count, Span, WhenRead

BUCKETS: Final = 44
"""Buckets of a histogram. The last one ends after more than a hundred years."""

BucketCounts = Annotated[tuple[Count, ...], WhenRead(max_length=64)]
"""The counts of a histogram. Later servers may have some more buckets."""


def bucket_end(index: int) -> float:
    """The end of a bucket in seconds: a millisecond for the first one, then twice the one before."""
    return (1 << index) / 1000


class Histogram(Answer):
    """How often something took how long."""

    counts: BucketCounts = ()
    """By bucket. ``bucket_end`` has their ends. Trailing zeros are left out."""

    sum: Span = 0
    """The sum of all durations."""


def percentile(histogram: Histogram | Sequence[int], share: float) -> float | None:
    """The time in seconds within which this share of all durations lies. None if there are none.

    The true value lies in the same bucket of the histogram, so it differs by less than a factor of two.
    Within the bucket the durations are taken as spread evenly.

    Args:
        histogram: The histogram, or its counts.
        share: Such as 0.5 for the median.
    """
    counts = histogram.counts if isinstance(histogram, Histogram) else histogram
    total = sum(counts)
    if not total:
        return None
    rank = max(1, ceil(share * total))
    passed = 0
    for index, count in enumerate(counts):
        if passed + count >= rank:
            begin = bucket_end(index - 1) if index else 0.0
            return begin + (bucket_end(index) - begin) * (rank - passed) / count
        passed += count
    raise AssertionError("the rank is one of those that were counted")


def added(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of histograms."""
    each = tuple(histograms)
    if len(each) == 1:
        return each[0]
    counts = added_counts(one.counts for one in each)
    return Histogram(counts=counts, sum=sum(one.sum for one in each))


def added_counts(histograms: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The sum of the counts of histograms."""
    return tuple(sum(column) for column in zip_longest(*histograms, fillvalue=0))


def between(before: Histogram, after: Histogram) -> Histogram:
    """What was added to a histogram between two moments."""
    pairs = zip_longest(before.counts, after.counts, fillvalue=0)
    counts = tuple(max(0, now - then) for then, now in pairs)
    return Histogram(counts=counts, sum=max(0.0, after.sum - before.sum))
