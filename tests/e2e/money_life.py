"""A network whose nodes are killed while a job on it is paid: what is done to it, drawn from a seed, and the job itself.

The job is a program as users write it: it maps tasks over rented machines, and when a session breaks it goes on in another
one. Debit notes come every few seconds, so that a short life has every stage: negotiation, opening the
channel, running, acceptance, closing and settlement. A blow falls a random moment after the first sign of its stage.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from shem.cogs.process import ProcessFailed
from shem.errors import ShemError
from shem.sdk import Golem, Rental, events
from shem.terms.amounts import parse_amount
from shem.testing.devnet import Devnet, DevNode
from tests.e2e.conftest import processes_of, session, until
from tests.e2e.money_oracle import Oracle, in_words

CHANNEL, TRANSFER = "channel-devnet-tglm", "erc20-devnet-tglm"
TASKS, WORKERS, SESSIONS = 14, 2, 5
RULES = "[rules]\ndebit_note_interval_s = 1\nidle_limit_s = 20.0\n"
TASK_S, HOURLY = "0.8", "0.6"
PROGRAM_S = 240.0
"""The job is done after so long, whatever was killed."""
REST_S = 90.0
"""And so long later all is paid, and nothing reserved."""

STAGES = {
    "negotiation": 0.8,
    "opening": 1.0,
    "running": 5.0,
    "acceptance": 0.3,
    "closing": 3.0,
    "settlement": 1.0,
}
"""The stages of a job, and within how many seconds of their first sign a blow falls."""
VICTIMS = {("requestor",): 4, ("node",): 4, ("machine",): 2, ("requestor", "node"): 3, ("requestor", "machine"): 1}
"""Who is killed at once, and how often: the requestor's node; the node of a provider, whose agent goes on; or its agent too."""
LOOK_S = 0.3
"""Between two looks at everything."""
DATABASE = "node.db"
LONG_S = 25.0
"""Longer than a node is asked again and again."""


@dataclass(frozen=True)
class Blow:
    """``kill -9`` of some nodes, ``delay_s`` after the first sign of a stage; they are away for ``away_s``."""

    stage: str
    delay_s: float
    victims: tuple[str, ...]
    provider: int
    away_s: float
    starting_s: float | None = None
    """Killed again so long after their start began, before or after they were ready."""

    def __str__(self) -> str:
        who = " and ".join(
            victim if victim == "requestor" else f"{victim} {self.provider + 1}" for victim in self.victims
        )
        again = "" if self.starting_s is None else f", and once more {self.starting_s:.2f} s into their start"
        return f"{self.stage} + {self.delay_s:.2f} s: {who}, for {self.away_s:.2f} s{again}"


@dataclass(frozen=True)
class Story:
    """One seed's."""

    seed: int
    platform: str
    blows: tuple[Blow, ...]
    tasks: int = TASKS

    def __str__(self) -> str:
        return "\n  ".join([f"seed {self.seed} on {self.platform}", *map(str, self.blows)])


def story(seed: int) -> Story:
    """What happens under a seed: always the same."""
    dice = random.Random(f"money {seed}")
    stages = list(STAGES)
    first = stages[seed % len(stages)]
    second = [dice.choice(stages[stages.index(first) :])] if dice.random() < 0.5 else []
    platform = TRANSFER if seed % 4 == 3 else CHANNEL
    return Story(seed, platform, tuple(_blow(stage, dice) for stage in (first, *second)))


def _blow(stage: str, dice: random.Random) -> Blow:
    (victims,) = dice.choices(list(VICTIMS), list(VICTIMS.values()))
    away_s = dice.choices((0.0, dice.uniform(0, 2), LONG_S), (5, 5, 1))[0]
    return Blow(
        stage=stage,
        delay_s=dice.uniform(0, STAGES[stage]),
        victims=victims,
        provider=dice.randrange(WORKERS),
        # a program waits for its own node for a while, but not for ever
        away_s=away_s if "requestor" not in victims else min(away_s, 10.0),
        starting_s=dice.uniform(0, 2.0) if dice.random() < 0.3 else None,
    )


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
        self.net = Devnet(
            root,
            providers=WORKERS,
            channels=True,
            prices={"start": "0.0001", "hourly": HOURLY, "cpu_hourly": "1.2"},
        )
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
            if not any("machine" in blow.victims for blow in told.blows):  # an agent counts for itself alone
                earned, least = await self.oracle.earned(life.told.rented), least_price(told.tasks)
                assert earned >= least, f"{told.tasks} tasks earned {earned}, less than {least}"
        except BaseException as error:
            error.add_note(f"{told}\n" + "\n".join(life.told.log) + f"\nlogs: {self.net.root}")
            raise
        self._dirty = False
        return life.told

    async def rest(self, told: Told) -> None:
        """Wait until all money is where it belongs."""
        self.rented |= told.rented
        problems: list[str] = []
        last: list[str] = []
        begun = asyncio.get_running_loop().time()

        async def settled() -> bool:
            nonlocal problems, last
            if problems:
                last = problems
                await asyncio.sleep(LOOK_S)
            problems = await self.oracle.problems(self.rented)
            return not problems

        try:
            await until(settled, REST_S)
        except TimeoutError:
            raise AssertionError(f"after {REST_S:.0f} s\n{in_words(problems)}") from None
        told.log.append(f"at rest {asyncio.get_running_loop().time() - begun:.1f} s later; the last to come right:")
        told.log.append(in_words(last))

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

    async def begin_to_restore(self, blow: Blow, seconds: float) -> None:
        """Start the nodes that were killed, and kill them again so much later, ready or not."""
        async with asyncio.TaskGroup() as group:
            for node, _ in self.struck(blow):
                group.create_task(self._start_in_vain(node))
            await asyncio.sleep(seconds)
            for node, _ in self.struck(blow):
                _kill_those_starting(node)
        for node, _ in self.struck(blow):
            await self.stop_node(node)

    async def _start_in_vain(self, node: DevNode) -> None:
        try:
            await self.net.start_node(node)
        except ProcessFailed:
            pass  # as it should

    async def stop_node(self, node: DevNode) -> None:
        """As a power cut does."""
        assert node.node is not None
        node.node.kill()
        await node.node.wait()

    def copy_books(self, node: DevNode) -> Path:
        """The database of a node that does not run, as it is now."""
        copy = self.root / f"copy-{node.name}"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in node.data_dir.glob(f"{DATABASE}*"):
            shutil.copy(file, copy)
        return copy

    async def put_back(self, node: DevNode, copy: Path) -> None:
        """A node of the network wakes up with older books."""
        await self.stop_node(node)
        self._dirty = True
        for file in node.data_dir.glob(f"{DATABASE}*"):
            file.unlink()
        for file in copy.iterdir():
            shutil.copy(file, node.data_dir)
        await self.net.start_node(node)

    def struck(self, blow: Blow) -> list[tuple[DevNode, bool]]:
        """The nodes that a blow kills, each with whether its agent dies too."""
        provider = self.net.providers[blow.provider]
        return [(self.net.requestor if v == "requestor" else provider, v == "machine") for v in blow.victims]


def _kill_those_starting(node: DevNode) -> None:
    for process in processes_of(node.data_dir):
        try:
            if b"\0node\0run\0" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
        except OSError:
            continue  # it has ended by itself


class Life:
    """One job from its first offer to rest."""

    def __init__(self, world: World, what: Story) -> None:
        self._world = world
        self._story = what
        self.told = Told()
        """What happened so far."""
        self.signs = {stage: asyncio.Event() for stage in STAGES}
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
        await self.signs[blow.stage].wait()
        await asyncio.sleep(blow.delay_s)
        async with self._hands:  # what one blow has killed comes back before another falls
            self._note(f"killed in {blow.stage}: {', '.join(blow.victims)}")
            await self._world.kill(blow)
            await asyncio.sleep(blow.away_s)
            if blow.starting_s is not None:
                await self._world.begin_to_restore(blow, blow.starting_s)
            await self._world.restore(blow)
            self._note("back")

    async def _program(self) -> None:
        left = set(range(self._story.tasks))
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
            case events.CostChanged(cost=cost) if cost:
                self._sign("acceptance")
            case events.PaymentSettled():
                self._sign("settlement")
            case events.TaskFailed() | events.BillRefused() | events.BillMissing() | events.ProviderLeft():
                self._note(str(event))
            case _:
                pass

    def _sign(self, stage: str) -> None:
        if not self.signs[stage].is_set():
            self._note(stage)
            self.signs[stage].set()


async def task(machine: Rental, number: int) -> int:
    """Under a second of work."""
    await machine.run("sleep", TASK_S)
    return number


def least_price(tasks: int) -> int:
    """What so many tasks cost at the least, in base units: their time, and none of the processor's."""
    return parse_amount(HOURLY) * tasks * int(Decimal(TASK_S) * 1000) // 3_600_000
