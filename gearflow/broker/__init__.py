"""What happens to jobs: pure. Bytes and time go in, outboxes come out; no socket, no clock, no await."""

from gearflow.broker.broker import Broker
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.limits import SizeLimits
from gearflow.broker.session import Session

__all__ = ["Broker", "JobState", "QueuedJob", "Session", "SizeLimits"]
