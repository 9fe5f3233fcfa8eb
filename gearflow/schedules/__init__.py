"""When schedules are due: cron expressions and intervals. Pure.

A server gives its time to a :class:`Plan`, which answers with the next time. All times are whole Unix
seconds. The database of time zones is the only thing that this package reads.
"""

from gearflow.schedules.declared import Cron, Every, Schedule
from gearflow.schedules.plan import Missed, Overlap, Plan, Upcoming, when

__all__ = ["Cron", "Every", "Missed", "Overlap", "Plan", "Schedule", "Upcoming", "when"]
