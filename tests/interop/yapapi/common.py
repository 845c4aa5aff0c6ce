"""What our yapapi programs share: the image of the network, a record of events, and one line of JSON at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from yapapi.events import Event
from yapapi.log import enable_default_logger
from yapapi.payload import vm

TIMEOUT = timedelta(minutes=10)


class Record:
    """Every event of a session, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, name: str) -> list[Any]:
        """All events of a kind."""
        return [event for event in self.events if type(event).__name__ == name]

    @property
    def names(self) -> list[str]:
        """Their kinds."""
        return [type(event).__name__ for event in self.events]


async def image() -> Any:
    """The network's image, by its hash, as the registry of the network has it."""
    return await vm.repo(image_hash=os.environ["IMAGE_HASH"], repository_url=os.environ["REGISTRY_URL"])


async def until(condition: Callable[[], Any]) -> None:
    """Look until it holds; the test has the deadline."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # services of yapapi tell nobody of their states


def run(main: Coroutine[Any, Any, Any]) -> None:
    """As yapapi's documentation has it: Ctrl-C cancels the work, and the session ends in order."""
    if "--log" in sys.argv:
        enable_default_logger(log_file="yapapi.log")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(main)
    try:
        print(json.dumps(loop.run_until_complete(task)), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        task.cancel()
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            print("ended in order", flush=True)
    finally:
        loop.close()
