"""``shem demo``: the main job, end to end, on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shem.cli.common import Driver
from shem.errors import Conflict, Misconfigured, ShemError

if TYPE_CHECKING:
    from rich.console import Console

    from shem.testing.devnet import Devnet

PROGRAM = Path("render") / "render.py"
REPORT = "report.json"


class DemoFailed(ShemError):
    """The requestor program did not end well; what it said stands above."""

    default_code = "demo_failed"


class DemoRunning(Conflict):
    """A demo is under way in this directory: its network's data must not be touched."""

    default_code = "demo_running"


def demo(
    out: Annotated[Path, typer.Option(help="Where the picture goes; the network's data is kept beside it.")] = Path(
        "out"
    ),
    providers: Annotated[int, typer.Option(min=1, max=16, help="How many providers.")] = 3,
    driver: Driver = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Bring a network up, rent its providers, render an animation in a docker image, pay for it by channel."""
    from rich.console import Console

    told = asyncio.run(_demo(out.resolve(), providers, driver, Console(stderr=True, quiet=as_json)))
    if as_json:
        print(json.dumps(told))
        return
    typer.echo(
        f"{told['tasks']} frames from {told['providers']} providers in {told['seconds']} s, paid {told['paid']} tGLM."
    )
    typer.echo(f"The picture: {told['output']}")


async def _demo(out: Path, providers: int, driver: str, console: Console) -> dict[str, Any]:
    from shem.testing.devnet import Devnet, DevnetRunning

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"{out} cannot be used: {error.strerror}", code="out_unusable", hint="choose another --out"
        ) from error
    net = Devnet(out / "network", providers=providers, driver=driver)
    try:
        net.reserve()  # from here on nobody else builds, wipes or runs in this directory
    except DevnetRunning:
        raise DemoRunning(
            f"a demo runs in {out} already", hint="wait until it has ended, or choose another --out"
        ) from None
    try:
        return await _perform(net, out, providers, console)
    finally:
        await net.stop()


async def _perform(net: Devnet, out: Path, providers: int, console: Console) -> dict[str, Any]:
    from shem.cli.demo_money import settlement_or_none, show_settlement
    from shem.testing.devnet import wipe
    from shem.testing.render_image import build_render_image

    def step(text: str) -> AbstractContextManager[object]:
        if console.is_terminal and not console.quiet:
            return console.status(text)
        console.print(text)
        return nullcontext()

    begun = time.monotonic()
    with step("building the image (the first time it takes a minute) …"):
        image = await asyncio.to_thread(
            build_render_image, out / "image", lambda line: console.print(line, style="dim")
        )
    console.print(f"image ready after {time.monotonic() - begun:.1f} s")
    begun = time.monotonic()
    wipe(net.root)
    with step(f"starting a chain, a requestor node and {providers} providers …"):
        await net.__aenter__()
    console.print(f"network ready after {time.monotonic() - begun:.1f} s")
    report = await _run_program(net.env, image, out, quiet=console.quiet)
    chain = await settlement_or_none(net, console)
    if chain is not None:
        show_settlement(chain, console)
        report["chain"] = chain
        (out / REPORT).write_text(json.dumps(report))
    channels = [channel for provider in report["by_provider"] for channel in provider["channels"]]
    return {
        **{key: report[key] for key in ("tasks", "providers", "seconds", "first_stdout_s", "cost", "paid", "settled")},
        "channels": channels,
        "chain": chain,
        "output": str(out / "animation.png"),
    }


async def _run_program(env: dict[str, str], image: Path, out: Path, *, quiet: bool) -> dict[str, Any]:
    """Run the program of the README as its user would: a process of its own with two variables set."""
    report = out / REPORT
    report.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(examples() / PROGRAM),
        str(image),
        str(out),
        env={**os.environ, **env, "SHEM_REPORT": str(report), "SHEM_PROGRESS": "auto" if quiet else "always"},
        stdout=sys.stderr,
        stderr=asyncio.subprocess.PIPE if quiet else None,
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        # Ctrl-C reached it as well: let it give back what it has rented
        await process.wait()
        raise
    if process.returncode:
        if said:
            sys.stderr.write(said.decode("utf-8", "replace"))
        raise DemoFailed(f"the requestor program ended with status {process.returncode}")
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def examples() -> Path:
    """The examples: inside an installed package, or at the top of a checkout."""
    import shem

    inside = Path(shem.__file__).parent / "examples"
    return inside if inside.exists() else Path(shem.__file__).parents[2] / "examples"
