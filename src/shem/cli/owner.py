"""What the owner of a node does with it, for both command lines: where the node is, which key opens what, and the calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shem.cogs.places import default_data_dir, local_api_url, local_app_key, node_url, owners_key
from shem.errors import Misconfigured

if TYPE_CHECKING:
    from shem.client.http import ApiClient
    from shem.wire.payment import Account

T = TypeVar("T")
SHUTDOWN_S = 30.0


@dataclass(frozen=True)
class Place:
    """A node, by its data directory; ``named``: the user has said which."""

    data_dir: Path
    named: bool = False

    @classmethod
    def of(cls, data_dir: Path | None) -> Place:
        """The directory that was named, or the usual one."""
        chosen = (data_dir or default_data_dir()).expanduser().absolute()
        return cls(chosen, named=data_dir is not None)

    @property
    def url(self) -> str:
        """A directory that was named tells better than the environment where its node is."""
        return (node_url(self.data_dir) if self.named else "") or local_api_url()

    def key(self) -> str:
        """For what any program may do. Raises :class:`~shem.errors.Misconfigured`."""
        key = (owners_key(self.data_dir) if self.named else "") or local_app_key() or owners_key(self.data_dir)
        if not key:
            raise Misconfigured(
                f"there is no app key: no YAGNA_APPKEY, and none to read in {self.data_dir}",
                code="no_app_key",
                hint="start the node first, name its data directory, or set YAGNA_APPKEY",
            )
        return key

    def owners_key(self) -> str:
        """For what only the owner may do. Raises :class:`~shem.errors.Misconfigured`."""
        key = owners_key(self.data_dir)
        if not key:
            raise Misconfigured(
                f"only the owner of the node may do that, by the key in its data directory, and {self.data_dir} has none",
                code="no_owners_key",
                hint="start the node first, or name its data directory",
            )
        return key


@asynccontextmanager
async def talking(place: Place, *, as_owner: bool = False) -> AsyncIterator[ApiClient]:
    """A line to the node."""
    from shem.client.http import ApiClient

    async with ApiClient(place.url, place.owners_key() if as_owner else place.key()) as http:
        yield http


def ask(place: Place, question: Callable[[ApiClient], Awaitable[T]], *, as_owner: bool = False) -> T:
    """One conversation with the node, from a command that is no coroutine itself."""

    async def talk() -> T:
        async with talking(place, as_owner=as_owner) as http:
            return await question(http)

    return asyncio.run(talk())


async def merged_accounts(http: ApiClient) -> list[Account]:
    """Where the node pays and is paid, each platform once; the default first."""
    from shem.client.payment import PaymentApi

    api = PaymentApi(http)
    found: dict[str, Account] = {}
    for account in (*await api.requestor_accounts(), *await api.provider_accounts()):
        known = found.setdefault(account.platform, account)
        known.send, known.receive = known.send or account.send, known.receive or account.receive
    return list(found.values())


async def release_allocations(http: ApiClient) -> int:
    """All of this identity; how many there were."""
    from shem.client.payment import PaymentApi
    from shem.errors import Gone, NotFound

    api = PaymentApi(http)
    released = 0
    for allocation in await api.allocations():
        try:
            await api.release_allocation(allocation.allocation_id)
        except (Gone, NotFound):  # somebody else was faster
            continue
        released += 1
    return released


def shut_down(place: Place) -> None:
    """End the node and wait until it has. Raises :class:`TimeoutError` besides what the call may."""
    from shem.client.admin import AdminApi

    ask(place, lambda http: AdminApi(http).shutdown(), as_owner=True)
    if not asyncio.run(ended(place.data_dir, SHUTDOWN_S)):
        raise TimeoutError(f"the node was told to end, and still runs after {SHUTDOWN_S:.0f} s")


async def ended(data_dir: Path, timeout_s: float) -> bool:
    """Wait until no node runs in this directory; False when one still does."""
    from shem.cogs.locks import try_lock

    try:
        async with asyncio.timeout(timeout_s):
            # a lock that another process holds tells nobody when it is free
            while (unlock := try_lock(data_dir / "lock")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    except OSError:
        return True  # no such directory, or not ours: no node that we could have ended
    unlock()
    return True
