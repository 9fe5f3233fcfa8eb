"""The functions that the server answers itself (``gearflow:*``). ``protocol.server_calls`` has their
schemas."""

from gearflow.broker.calls.call import BrokerParts
from gearflow.broker.calls.dispatcher import ServerCalls

__all__ = ["BrokerParts", "ServerCalls"]
