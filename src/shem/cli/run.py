"""``shem run IMAGE -- CMD``: one command on one rented machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from shem.cli.common import ApiUrl, AppKey, credentials
from shem.errors import ShemError

WORK = PurePosixPath("/work")
BROKEN_PIPE = 128 + 13
"""What a shell shows for a program whose reader went away."""


def run(
    image: Annotated[
        str, typer.Argument(help="A docker image: a reference, or the path of an OCI layout or docker save tar.")
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The command and its arguments, after --. Without: the image's ENTRYPOINT and CMD."),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="A file or directory to bring along, as LOCAL or LOCAL:REMOTE.")
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", help="What to bring back, as REMOTE or REMOTE:LOCAL (a directory ends with /)."),
    ] = None,
    budget: Annotated[str, typer.Option(help="The most to spend, such as '5 GLM' or '2.50 USD'.")] = "1",
    timeout: Annotated[float, typer.Option(help="Seconds that the command may take.")] = 600.0,
    memory_gib: Annotated[float, typer.Option(help="Memory to ask for.")] = 0.5,
    threads: Annotated[int, typer.Option(help="Threads to ask for.")] = 1,
    retries: Annotated[int, typer.Option(help="How often to try elsewhere when it fails.")] = 0,
    platform: Annotated[str | None, typer.Option(help="Payment platform.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Rent nothing: only say what it would cost at the offers there are now.")
    ] = False,
    tasks: Annotated[int, typer.Option(help="With --estimate: how many such runs, on machines of their own.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(help="With --estimate: what one run will take (else the most: --timeout).")
    ] = None,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line instead of the bill.")] = False,
) -> None:
    """Rent a machine, run one command in a docker image, bring files there and back, pay.

    The command's output is yours: stdout on stdout, stderr on stderr. A relative REMOTE lies in /work.
    """
    url, key = credentials(api_url, app_key)
    if estimate:
        expected = timeout if seconds is None else seconds
        asyncio.run(_estimate(url, key, platform, budget, (memory_gib, threads), tasks, expected, as_json))
        return
    code = asyncio.run(
        _run(
            image,
            command or [],
            [(_local(i), _remote(i)) for i in inputs or ()],
            [_pair(o) for o in outputs or ()],
            {"budget": budget, "platform": platform, "api_url": url, "app_key": key},
            {"timeout": timeout, "retries": retries},
            (memory_gib, threads),
            as_json,
        )
    )
    raise typer.Exit(code)


async def _run(
    image: str,
    command: list[str],
    inputs: list[tuple[str, str]],
    outputs: list[tuple[str, str]],
    session: dict[str, Any],
    options: dict[str, Any],
    size: tuple[float, int],
    as_json: bool,
) -> int:
    from shem.sdk import CommandFailed, Golem, Need
    from shem.sdk.events import Event, OutputReceived

    work = asyncio.current_task()
    unread: list[int] = []

    def show(event: Event) -> None:
        if isinstance(event, OutputReceived) and not unread:
            out = sys.stdout if event.stream == 1 else sys.stderr
            try:
                out.buffer.write(event.data)
                out.flush()
            except BrokenPipeError:
                # as with `| head`: nobody wants more, so nothing more is paid for
                unread.append(event.stream)
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
                if work is not None:
                    work.cancel()

    golem = Golem(progress=False, listener=show, **session)
    code, failure = 0, None
    try:
        async with golem:
            try:
                need = Need(memory_gib=size[0], cpu_threads=size[1])
                await golem.run(image, command, inputs=inputs, outputs=outputs, need=need, **options)
            except CommandFailed as error:
                if error.code != "nonzero_exit":
                    raise
                failure, code = error, error.result.exit_code
    except asyncio.CancelledError:
        if not unread:
            raise
        return BROKEN_PIPE
    except ShemError as error:
        if as_json:
            print(json.dumps(golem.report.as_dict() | {"exit_code": None, "error": error.as_dict()}))
        raise
    if as_json:
        report = golem.report.as_dict() | {"exit_code": code, "message": failure.message if failure else None}
        print(json.dumps(report))
    else:
        from rich.console import Console

        from shem.sdk.progress import show_bill

        show_bill(golem.report, Console(stderr=True))
    return code


async def _estimate(
    url: str,
    key: str,
    platform: str | None,
    budget: str,
    size: tuple[float, int],
    tasks: int,
    seconds: float,
    as_json: bool,
) -> None:
    from shem.client.http import ApiClient
    from shem.client.market import MarketApi
    from shem.client.payment import PaymentApi
    from shem.sdk import Need
    from shem.sdk.estimate import Terms, estimate
    from shem.sdk.golem import sending_account
    from shem.sdk.prices import Prices
    from shem.terms.budgets import parse_sum, to_units

    written = parse_sum(budget)
    async with ApiClient(url, key) as http:
        account = await sending_account(PaymentApi(http), platform)
        price = await Prices().price(account.token) if written.in_usd else None
        subnet = os.environ.get("YAGNA_SUBNET") or "public"
        terms = Terms(subnet, account.platform, account.token, to_units(written, account.token, price))
        need = Need(memory_gib=size[0], cpu_threads=size[1])
        found = await estimate(MarketApi(http), terms, need, tasks, seconds, workers=tasks)
    if as_json:
        print(json.dumps(found.as_dict() | {"price": None if price is None else str(price)}))
        return
    from rich.console import Console

    from shem.sdk.progress import show_estimate

    show_estimate(found, Console())
    if price is not None:
        print(f"{written} at {price}")


def _remote_path(text: str) -> str:
    return text if text.startswith("/") else str(WORK / text) + ("/" if text.endswith("/") else "")


def _local(spec: str) -> str:
    return spec.split(":", 1)[0]


def _remote(spec: str) -> str:
    local, _, remote = spec.partition(":")
    return _remote_path(remote or Path(local).resolve().name)


def _pair(spec: str) -> tuple[str, str]:
    remote, _, local = spec.partition(":")
    return _remote_path(remote), local or PurePosixPath(remote).name
