"""``shem devnet``: a whole network on this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from shem.cli.common import Driver, write_secret

app = typer.Typer(help="A whole network on this machine, for tests and tutorials.", no_args_is_help=True)


@app.command()
def run(
    providers: Annotated[int, typer.Option(min=1, max=32, help="How many providers.")] = 3,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep everybody's data here; default: a temporary directory.")
    ] = None,
    driver: Driver = "auto",
    env_file: Annotated[
        Path | None, typer.Option(help="Write YAGNA_API_URL and YAGNA_APPKEY lines for programs to read.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready.")] = False,
) -> None:
    """Run a chain, a requestor node and providers, until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="shem-devnet-") as scratch:
        asyncio.run(_serve((data_dir or Path(scratch)).absolute(), providers, driver, env_file, as_json))


async def _serve(root: Path, providers: int, driver: str, env_file: Path | None, as_json: bool) -> None:
    from shem.testing.devnet import Devnet

    serving, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert serving is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):  # the signal that ends it, also while it still starts
        async with Devnet(root, providers=providers, driver=driver) as net:
            _tell(net.env, env_file, json.dumps(net.as_dict()) if as_json else "")
            await asyncio.Event().wait()


def _tell(env: dict[str, str], env_file: Path | None, line: str) -> None:
    if env_file is not None:
        write_secret(env_file, "".join(f"{name}={value}\n" for name, value in env.items()))
    if line:
        print(line, flush=True)
        return
    typer.echo("the network runs; point programs at it with:")
    for name, value in env.items():
        typer.echo(f"  export {name}={value}")
    typer.echo("Ctrl-C ends it.")
