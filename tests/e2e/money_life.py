"""A network whose nodes are killed while a job on it is paid: what is done to it, drawn from a seed, and the job itself.

The job is a program as users write it: it maps tasks over rented machines, and when a session breaks it goes on in another
one. Providers send a debit note every second, so that a life of a few seconds has every stage: negotiation, opening the
channel, running, acceptance, closing and settlement. A blow falls a random moment after the first sign of its stage.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

from shem.errors import ShemError
from shem.sdk import Golem, Rental, events
from shem.testing.devnet import Devnet, DevNode
from tests.e2e.conftest import session, until
from tests.e2e.money_oracle import Oracle, in_words

CHANNEL, TRANSFER = "channel-devnet-tglm", "erc20-devnet-tglm"
TASKS, WORKERS, SESSIONS = 8, 2, 5
RULES = "[rules]\ndebit_note_interval_s = 1\nidle_limit_s = 20.0\n"
PROGRAM_S = 240.0
"""The job is done after so long, whatever was killed."""
REST_S = 90.0
"""And so long later all is paid, and nothing reserved."""

STAGES = {
    "negotiation": 0.8,
    "opening": 1.0,
    "running": 2.5,
    "acceptance": 0.3,
    "closing": 0.6,
    "settlement": 2.5,
}
"""The stages of a job, and within how many seconds of their first sign a blow falls."""
VICTIMS = (("requestor",), ("node",), ("machine",), ("requestor", "node"), ("requestor", "machine"))
"""Who is killed at once: the requestor's node; the node of a provider, whose agent goes on; or its agent too."""


@dataclass(frozen=True)
class Blow:
    """``kill -9`` of some nodes, ``delay_s`` after the first sign of a stage; they are away for ``away_s``."""

    stage: str
    delay_s: float
    victims: tuple[str, ...]
    provider: int
    away_s: float
    again_s: float | None
    """So long after its end the same ones are killed once more."""


@dataclass(frozen=True)
class Story:
    """One seed's."""

    seed: int
    platform: str
    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed} on {self.platform}"]
        for blow in self.blows:
            again = "" if blow.again_s is None else f", and again after {blow.again_s:.2f} s"
            who = " and ".join(f"{v} {blow.provider + 1}" if v != "requestor" else v for v in blow.victims)
            lines.append(f"{blow.stage} + {blow.delay_s:.2f} s: {who}, for {blow.away_s:.2f} s{again}")
        return "\n  ".join(lines)


def story(seed: int, platform: str | None = None) -> Story:
    """What happens under a seed: always the same."""
    dice = random.Random(f"money {seed}")
    stages = list(STAGES)
    first = stages[seed % len(stages)]
    second = dice.choice(stages[stages.index(first) :]) if dice.random() < 0.35 else None
    blows = []
    for stage in filter(None, (first, second)):
        blows.append(
            Blow(
                stage=stage,
                delay_s=dice.uniform(0, STAGES[stage]),
                victims=dice.choices(VICTIMS, weights=(4, 4, 2, 2, 1))[0],
                provider=dice.randrange(WORKERS),
                away_s=dice.choice((0.0, dice.uniform(0, 2))),
                again_s=dice.uniform(0, 1.5) if dice.random() < 0.2 else None,
            )
        )
    return Story(seed, platform or (TRANSFER if seed % 4 == 3 else CHANNEL), tuple(blows))


@dataclass
class Told:
    """What a story came to."""

    rented: set[str] = field(default_factory=set)
    broken: list[ShemError] = field(default_factory=list)
    """Why sessions of the program ended early."""
    log: list[str] = field(default_factory=list)


class World:
    """A network that serves one story after another."""

    def __init__(self, root: Path, image: Path) -> None:
        self.root = root
        self.image = image
        self.net: Devnet
        self.oracle: Oracle
        self.rented: set[str] = set()
        self._runs = 0
        self._dirty = True
        self._open: Devnet | None = None

    async def ready(self) -> None:
        """A network on which nothing is owed: the one that is there, unless a story went wrong on it."""
        if not self._dirty:
            return
        await self.close()
        self._runs += 1
        root = self.root / f"net-{self._runs}"
        self.net = Devnet(root, providers=WORKERS, channels=True)
        for provider in self.net.providers:
            rules = provider.data_dir / "agent" / "provider.toml"
            rules.parent.mkdir(parents=True)
            rules.write_text(RULES)
        await self.net.__aenter__()
        self._open, self.rented, self.oracle = self.net, set(), Oracle(self.net)
        await self.oracle.begin()
        self._dirty = False

    async def close(self) -> None:
        """End the network."""
        net, self._open = self._open, None
        if net is not None:
            await net.stop()

    async def tell(self, told: Story) -> Told:
        """Run the job under its blows, and have everything come to rest. Raises ``AssertionError`` when it does not."""
        await self.ready()
        self._dirty = True  # until it is seen not to be
        life = Life(self, told)
        try:
            async with asyncio.timeout(PROGRAM_S):
                await life.run()
            await self.rest(life.told)
        except (AssertionError, TimeoutError) as error:
            error.add_note(f"{told}\n" + "\n".join(life.told.log) + f"\nlogs: {self.net.root}")
            raise
        self._dirty = False
        return life.told

    async def rest(self, told: Told) -> None:
        """Wait until all money is where it belongs."""
        self.rented |= told.rented
        problems = ["not looked"]

        async def settled() -> bool:
            nonlocal problems
            problems = await self.oracle.problems(self.rented)
            return not problems

        try:
            await until(settled, REST_S)
        except TimeoutError:
            raise AssertionError(f"after {REST_S:.0f} s\n{in_words(problems)}") from None

    async def kill(self, blow: Blow) -> None:
        """Processes end without a word."""
        children = [child for node, agent in self.struck(blow) for child in (node.node, node.agent if agent else None)]
        for child in children:
            if child is not None:
                child.kill()
        for child in children:
            if child is not None:
                await child.wait()

    async def restore(self, blow: Blow) -> None:
        """Start what was killed."""
        for node, _ in self.struck(blow):
            await self.net.start_node(node)
        for node, agent in self.struck(blow):
            if agent:
                await self.net.start_agent(node)

    def struck(self, blow: Blow) -> list[tuple[DevNode, bool]]:
        """The nodes that a blow kills, each with whether its agent dies too."""
        provider = self.net.providers[blow.provider]
        return [(self.net.requestor if v == "requestor" else provider, v == "machine") for v in blow.victims]


class Life:
    """One job from its first offer to rest."""

    def __init__(self, world: World, what: Story) -> None:
        self._world = world
        self._story = what
        self.told = Told()
        self._signs = {stage: asyncio.Event() for stage in STAGES}
        self._begun = asyncio.get_running_loop().time()
        self._hands = asyncio.Lock()

    async def run(self) -> None:
        """Program and blows, side by side."""
        async with asyncio.TaskGroup() as group:
            for blow in self._story.blows:
                group.create_task(self._strike(blow))
            group.create_task(self._program())

    def _note(self, what: str) -> None:
        self.told.log.append(f"{asyncio.get_running_loop().time() - self._begun:6.2f} s  {what}")

    async def _strike(self, blow: Blow) -> None:
        await self._signs[blow.stage].wait()
        for pause_s in (blow.delay_s, blow.again_s):
            if pause_s is None:
                return
            await asyncio.sleep(pause_s)
            async with self._hands:  # what one blow has killed comes back before another falls
                self._note(f"killed in {blow.stage}: {', '.join(blow.victims)}")
                await self._world.kill(blow)
                await asyncio.sleep(blow.away_s)
                await self._world.restore(blow)
                self._note("back")

    async def _program(self) -> None:
        left = set(range(TASKS))
        for _ in range(SESSIONS):
            golem = session(self._world.net, budget="5", platform=self._story.platform, listener=self._hear)
            try:
                async with golem:
                    await self._work(golem, left)
                    self._sign("closing")
                self._note(f"session over, {'all' if golem.report.settled else 'not all'} settled")
            except ShemError as error:
                self.told.broken.append(error)
                self._note(f"session broke: {error.code}: {error}")
            if not left:
                break
        for stage in STAGES:
            self._sign(stage)
        assert not left, f"{len(left)} tasks were not done in {SESSIONS} sessions"

    async def _work(self, golem: Golem, left: set[int]) -> None:
        async for done in golem.map(task, sorted(left), image=self._world.image, workers=WORKERS, retries=5):
            left.discard(done)

    def _hear(self, event: events.Event) -> None:
        match event:
            case events.ProposalSeen():
                self._sign("negotiation")
            case events.RentalStarted():
                self.told.rented.add(event.agreement_id)
                self._note(f"rented {event.agreement_id[:8]} of {event.provider_name}")
                self._sign("opening")
            case events.TaskStarted():
                self._sign("running")
            case events.CostChanged():
                self._sign("acceptance")
            case events.PaymentSettled():
                self._sign("settlement")
            case events.TaskFailed() | events.BillRefused() | events.BillMissing() | events.ProviderLeft():
                self._note(str(event))
            case _:
                pass

    def _sign(self, stage: str) -> None:
        if not self._signs[stage].is_set():
            self._note(stage)
            self._signs[stage].set()


async def task(machine: Rental, number: int) -> int:
    """Under a second of work."""
    await machine.run("sleep", "0.7")
    return number
