"""``make bench``: measure on this machine, now; print a table and write one JSON file.

Every number is taken in this run. Ratios are between numbers of this run and the only ones worth comparing across machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shem.sdk import Golem, Rental, events
from shem.testing.devnet import Devnet, DevNode
from shem.testing.small_image import make_small_image
from tools.bench.bare import bare_exec
from tools.bench.beside import beside
from tools.bench.billing import billing
from tools.bench.gas import gas

HIRES = 20
RUNS = 200
FILE_MIB = 256


async def main() -> None:
    """Measure all, or with ``--beside`` only what is compared with the original daemon."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--driver", default="auto")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--beside", action="store_true", help="only the market, beside the original daemon's")
    some.add_argument("--money", action="store_true", help="only vouchers, debit notes and gas")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "driver": options.driver,
    }
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="shem-bench-") as scratch:
        root = Path(scratch)
        if not (options.beside or options.money):
            await alone(results, root, options.driver, console)
        if not options.beside:
            await money(results, root, console)
        if not options.money:
            console.print("measuring beside the original daemon …")
            results["beside the original"] = await beside(root)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    show(results, Console())


async def alone(results: dict[str, Any], root: Path, driver: str, console: Console) -> None:
    """What needs nobody to compare with; added to ``results``."""
    image = make_small_image(root / "image")
    results["start"] = await starting(root)
    async with Devnet(root / "net", driver=driver) as net:
        for name, measure in (("hire", hiring), ("runs", running), ("transfer", transfer)):
            console.print(f"measuring {name} …")
            results[name] = await measure(net, image, root)
    results["bare"] = await asyncio.to_thread(bare_exec, root, image, RUNS)
    best = max((v for v in results["bare"].values() if isinstance(v, float)), default=None)
    if best:
        results["runs"]["one_container_vs_best_bare_exec"] = round(results["runs"]["one_container_per_s"] / best, 2)


async def money(results: dict[str, Any], root: Path, console: Console) -> None:
    """What payments cost in time and gas; added to ``results``."""
    console.print("measuring vouchers …")
    command = [sys.executable, "-m", "tools.bench.vouchers", str(root / "vouchers")]
    done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, check=True)
    results["vouchers"] = json.loads(done.stdout)
    console.print("measuring debit notes …")
    results |= await billing(root / "billing")
    console.print("measuring gas …")
    results["gas"] = await gas(root)


async def starting(root: Path) -> dict[str, float]:
    """Import times, a node's start to its first REST answer, and its memory when idle."""

    def python(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    empty = statistics.median(python("pass") for _ in range(5))
    imports = {
        f"import_{name}_ms": round(1000 * (statistics.median(python(code) for _ in range(5)) - empty), 1)
        for name, code in (("shem", "import shem"), ("golem", "from shem import Golem"))
    }
    node = DevNode("lonely", root / "lonely")
    net = Devnet(root, providers=1, chain=False)
    net.requestor = node
    begun = time.perf_counter()
    await net.start_node(node)
    ready = time.perf_counter() - begun
    assert node.node is not None
    rss_kib = _rss(node.node.pid)
    await node.node.stop()
    return {**imports, "node_start_to_rest_s": round(ready, 3), "node_idle_rss_mib": round(rss_kib / 1024, 1)}


def _rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def session(net: Devnet, listener: Callable[[events.Event], Any] | None = None) -> Golem:
    """A session that draws nothing."""
    return Golem(
        api_url=net.requestor.api_url, app_key=net.requestor.app_key, progress=False, listener=listener, budget="50"
    )


async def hiring(net: Devnet, image: Path, root: Path) -> dict[str, float]:
    """From the published demand to the first output of a rented container, the image warm."""
    times: list[float] = []
    stages: dict[str, list[float]] = {}
    for number in range(HIRES + 3):
        marks: dict[str, float] = {}

        def note(event: events.Event, marks: dict[str, float] = marks) -> None:
            marks.setdefault(type(event).__name__, time.perf_counter())

        async with session(net, note) as golem, golem.rent(image) as machine:
            await machine.run("echo", "hello")
        if number < 3:
            continue  # the first at each provider brings the image there
        begun = marks["DemandPublished"]
        times.append(marks["OutputReceived"] - begun)
        for name in ("ProposalSeen", "RentalProgress", "RentalStarted"):
            stages.setdefault(name, []).append(marks[name] - begun)
    times.sort()
    return {
        "demand_to_stdout_p50_s": round(statistics.median(times), 3),
        "demand_to_stdout_p95_s": round(times[int(len(times) * 0.95)], 3),
        "demand_to_proposal_p50_s": round(statistics.median(stages["ProposalSeen"]), 4),
        "demand_to_activity_p50_s": round(statistics.median(stages["RentalProgress"]), 3),
        "demand_to_started_p50_s": round(statistics.median(stages["RentalStarted"]), 3),
        "samples": len(times),
    }


async def running(net: Devnet, image: Path, root: Path) -> dict[str, float]:
    """No-op commands in one held container, and over three."""
    async with session(net) as golem:
        async with golem.rent(image) as machine:
            await machine.run("true")
            one = await _timed(lambda: _noops(machine, RUNS))

        async def task(machine: Rental, _: int) -> None:
            await machine.run("true")

        begun = 0.0
        count = 0
        async for _ in golem.map(task, range(RUNS + 3), image=image, workers=3):
            count += 1
            if count == 3:
                begun = time.perf_counter()  # hiring is measured elsewhere
        three = time.perf_counter() - begun
    return {"one_container_per_s": round(RUNS / one, 1), "three_containers_per_s": round(RUNS / three, 1), "runs": RUNS}


async def _noops(machine: Rental, count: int) -> None:
    for _ in range(count):
        await machine.run("true")


async def transfer(net: Devnet, image: Path, root: Path) -> dict[str, float]:
    """A large file to a machine and back, hash-checked at every stop."""
    source = root / "large"
    with source.open("wb") as file:
        for _ in range(FILE_MIB):
            file.write(os.urandom(1 << 20))
    async with session(net) as golem, golem.rent(image) as machine:
        up = await _timed(lambda: machine.upload(source, "/work/large"))
        down = await _timed(lambda: machine.download("/work/large", root / "back"))
    assert (root / "back").stat().st_size == FILE_MIB << 20
    return {
        "upload_mb_per_s": round(FILE_MIB * 1.048576 / up, 1),
        "download_mb_per_s": round(FILE_MIB * 1.048576 / down, 1),
    }


async def _timed(work: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if "gas" in value:
        return f"{value['gas']:,}" + (
            f" (design {value['design']:,}: {value['ratio']:.3f})" if "ratio" in value else ""
        )
    return f"{value['ours']:g} (the original {value['original']:g}: {value['times_better']:g} times better)"


def show(results: dict[str, Any], console: Console) -> None:
    """The table."""
    table = Table(title="Shem on this machine", title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for group, values in results.items():
        for name, value in values.items() if isinstance(values, dict) else ((group, values),):
            table.add_row(f"{group}: {name}" if isinstance(values, dict) else group, _shown(value))
    console.print(table)


if __name__ == "__main__":
    if shutil.which("busybox") is None:
        sys.exit("the measurements need busybox-static: make system installs it")
    asyncio.run(main())
