"""``gearflow:stream``: the parts of a job, and then its end."""

from __future__ import annotations

from gearflow.broker.calls.call import BrokerParts, CallFailed, ServerCall, Steps
from gearflow.protocol import server_calls as api


class StreamCalls:
    """Answers with the parts of jobs."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def stream(self, call: ServerCall) -> Steps:
        """Send the parts of a job, and end as the job ended."""
        call.read(api.StreamRequest)
        raise CallFailed("gearflow:refused", "there are no streams yet")
        yield

    def watch(self, call: ServerCall) -> Steps:
        """Send what happens to a job, and end as the job ended."""
        call.read(api.WatchRequest)
        raise CallFailed("gearflow:refused", "nothing can be watched yet")
        yield
