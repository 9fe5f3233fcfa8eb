"""The event loop that gearflow's own programs run on."""

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop there is: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
