"""Exe scripts: what a requestor may ask an exe unit to do, and in which order.

A script is a JSON array of commands, each an object with one key: ``[{"deploy": {}}, {"start": {}}, {"run":
{"entry_point": "/bin/ls", "args": []}}]``. Names are camelCase except ``entry_point``; unknown keys inside a command
are ignored, because existing clients send some. One function each says whether a command may come in a state and which
state it leads to; the exe unit and the node both use them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from shem.errors import Refused

MAX_SCRIPT_BYTES = 1 << 20
MAX_COMMANDS = 1024
_LONG = msgspec.Meta(max_length=512 << 10)
_SHORT = msgspec.Meta(max_length=4096)

Short = Annotated[str, _SHORT]
Argument = Annotated[str, _LONG]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class BadScript(Refused):
    """The script cannot be run: it is not what scripts look like, or it is too large."""

    default_code = "bad_script"


class _Part(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """A piece of a command; unknown keys are ignored, ``null`` is as good as absent where a default exists."""


Format = Literal["str", "string", "bin", "binary"]


class StreamCapture(_Part, kw_only=True, frozen=True):
    """Send output as it comes; at most ``limit`` bytes of it."""

    limit: Size | None = None
    format: Format | None = None


class AtEndCapture(_Part, kw_only=True, frozen=True):
    """Give output with the result: all of it, or its first, last, or first and last bytes."""

    head: Size | None = None
    tail: Size | None = None
    head_tail: Size | None = None
    format: Format | None = None


class CaptureMode(_Part, kw_only=True, frozen=True):
    """One of both."""

    stream: StreamCapture | None = None
    at_end: AtEndCapture | None = None

    @property
    def streams(self) -> bool:
        """Whether output is shown as it comes."""
        return self.stream is not None

    @property
    def binary(self) -> bool:
        """Whether output is asked for as bytes rather than text."""
        part = self.stream if self.stream is not None else self.at_end
        return part is not None and part.format in {"bin", "binary"}

    def cut(self, output: bytes) -> bytes:
        """The part of the whole output that was asked for."""
        if self.stream is not None:
            return output if self.stream.limit is None else output[: self.stream.limit]
        part = self.at_end
        if part is None:
            return output
        if part.head is not None:
            return output[: part.head]
        if part.tail is not None:
            return output[max(0, len(output) - part.tail) :]
        if part.head_tail is not None and len(output) > part.head_tail:
            first = (part.head_tail + 1) // 2
            last = part.head_tail - first
            return output[:first] + output[len(output) - last :]
        return output


class Capture(_Part, kw_only=True, frozen=True):
    """What becomes of a command's output. A stream without a mode is dropped."""

    stdout: CaptureMode | None = None
    stderr: CaptureMode | None = None


class ProgressOption(_Part, kw_only=True, frozen=True):
    """How often progress is reported: at most every ``update_interval`` (``"300ms"``), or every so many bytes."""

    update_interval: Short | None = None
    update_step: Size | None = None


class Network(_Part, kw_only=True, frozen=True):
    """A private network the sandbox joins as ``node_ip``; ``nodes`` maps addresses to node ids."""

    id: Short
    ip: Short
    mask: Short | None = None
    gateway: Short | None = None
    node_ip: Short
    nodes: dict[Short, Short] = msgspec.field(default_factory=dict)


class Fileset(_Part, kw_only=True, frozen=True):
    """Which files of a directory: glob patterns."""

    desc: Short | None = None
    includes: list[Short] | Short | None = None
    excludes: list[Short] | Short | None = None


class Deploy(_Part, kw_only=True, frozen=True):
    """Prepare the image. ``volumes`` is a list of paths, or path → ``{"host"|"ram"|"storage": {…}}``."""

    net: list[Network] | None = None
    hosts: dict[Short, Short] | None = None
    hostname: Short | None = None
    volumes: list[Short] | dict[Short, dict[str, Any]] | None = None
    env: dict[Short, Argument] | None = None
    progress: ProgressOption | None = None


class Start(_Part, kw_only=True, frozen=True):
    """Start the sandbox."""

    args: list[Argument] = msgspec.field(default_factory=list)


class Run(_Part, kw_only=True, frozen=True):
    """Run a program to its end.

    An empty ``entry_point`` is our extension: run what the image itself says, as ``docker run IMAGE ARGS`` does. That is
    its ENTRYPOINT followed by ``args``, or by its CMD when there are none; ``no_entrypoint`` when nothing is to be run.
    """

    entry_point: Argument = msgspec.field(name="entry_point")
    args: list[Argument] = msgspec.field(default_factory=list)
    capture: Capture | None = None


class Transfer(_Part, kw_only=True, frozen=True):
    """Bring a file or directory in or out: ``container:<path>``, ``gftp://…``, ``http(s)://…``."""

    source: Argument = msgspec.field(name="from")
    to: Argument
    format: Short | None = None
    depth: Size | None = None
    fileset: Fileset | list[Fileset | Short] | Short | None = None
    progress: ProgressOption | None = None


class Terminate(_Part, kw_only=True, frozen=True):
    """Cancel other batches, destroy the sandbox, and be Initialized again."""


class Sign(_Part, kw_only=True, frozen=True):
    """Ask for a signature over the results (no runtime of ours offers it)."""


Command = Deploy | Start | Run | Transfer | Terminate | Sign

_COMMANDS: dict[str, type[Command]] = {
    "deploy": Deploy,
    "start": Start,
    "run": Run,
    "transfer": Transfer,
    "terminate": Terminate,
    "sign": Sign,
}
_NAMES = {kind: name for name, kind in _COMMANDS.items()}


def parse_script(text: str) -> list[Command]:
    """The commands of a script. Raises :class:`BadScript` with the number of the command that is wrong."""
    return [command for command, _ in parse_with_source(text)]


def parse_with_source(text: str) -> list[tuple[Command, dict[str, Any]]]:
    """Each command beside the JSON object it came from (what events and exe units are shown)."""
    if len(text) > MAX_SCRIPT_BYTES or len(text.encode("utf-8", "replace")) > MAX_SCRIPT_BYTES:
        raise BadScript(f"the script is larger than {MAX_SCRIPT_BYTES} bytes", hint="transfer large inputs as files")
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadScript(f"the script is not JSON: {error}") from None
    return parse_commands(raw)


def parse_commands(raw: object) -> list[tuple[Command, dict[str, Any]]]:
    """As :func:`parse_with_source`, from decoded JSON."""
    if not isinstance(raw, list) or not raw:
        raise BadScript("a script is a JSON array of at least one command")
    if len(raw) > MAX_COMMANDS:
        raise BadScript(f"the script has {len(raw)} commands; at most {MAX_COMMANDS} are taken")
    return [(_command(number, one), one) for number, one in enumerate(raw)]


def _command(number: int, raw: object) -> Command:
    if not isinstance(raw, dict) or len(raw) != 1:
        raise BadScript(f"command {number} must be an object with one key, the command's name")
    ((name, arguments),) = raw.items()
    kind = _COMMANDS.get(name)
    if kind is None:
        raise BadScript(f"command {number} is {str(name)[:40]!r}; known are {', '.join(_COMMANDS)}")
    try:
        command: Command = msgspec.convert({} if arguments is None else _without_nulls(arguments), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadScript(f"command {number} ({name}): {error}") from None
    _check_capture(number, command)
    return command


def _without_nulls(arguments: object) -> object:
    """Clients send ``null`` for what they leave out, also where an empty list is meant."""
    if not isinstance(arguments, dict):
        return arguments
    return {key: value for key, value in arguments.items() if value is not None}


def _check_capture(number: int, command: Command) -> None:
    if not isinstance(command, Run) or command.capture is None:
        return
    for mode in (command.capture.stdout, command.capture.stderr):
        if mode is not None and (mode.stream is None) == (mode.at_end is None):
            raise BadScript(f"command {number} (run): a capture is either stream or atEnd")


def name_of(command: Command) -> str:
    """``"run"`` and so on."""
    return _NAMES[type(command)]


def order_error(state: str, command: Command) -> str | None:
    """Why this command may not come now, in the words that clients know; ``None`` when it may."""
    expected: str | None = None
    match command:
        case Terminate() | Sign():
            expected = "Activity is terminated" if state == "Terminated" else None
        case Deploy() if state == "Initialized":
            pass
        case Start() if state == "Deployed":
            pass
        case Transfer() if state in {"Deployed", "Ready"}:
            pass
        case Run() if state == "Ready":
            pass
        case _:
            expected = _EXPECTED.get(state, f"Activity is {state.lower()}")
    return None if expected is None else f"Local service error: State error: {expected}"


_EXPECTED = {
    "New": "Activity is new - it must be initialized first",
    "Initialized": "Activity is initialized - deploy() command is expected now",
    "Deployed": "Activity is deployed - start() command is expected now",
    "Ready": "Cannot send command after a successful start()",
}


def state_after(state: str, command: Command) -> str:
    """The state once this command has succeeded."""
    match command:
        case Deploy():
            return "Deployed"
        case Start():
            return "Ready"
        case Terminate():
            return "Initialized"
        case _:
            return state
