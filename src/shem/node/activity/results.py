"""From events to what the requestor asked to see: results of commands, and the stream. Pure.

A command shows the output that its ``capture`` asks for and nothing else; commands without captures (deploy, start,
transfer) show what they wrote. Text that a piece of output cuts through the middle of a character is held back until
its rest arrives, so the pieces of a stream are the text; what is not UTF-8 is given as the values of its bytes. Pieces of a
stream are small once they are JSON: clients read them as lines, and some take none longer than 128 KiB.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from shem.node.activity.events import STDERR, STDOUT, Event, Finished, Output, Progress, Started
from shem.terms.script import AtEndCapture, CaptureMode, Command, Run, name_of, parse_with_source

_WHOLE = CaptureMode(at_end=AtEndCapture())
MAX_LINE = 48 << 10
_BYTES_OF_LINE = MAX_LINE // 4
_SHORT = MAX_LINE // 12
"""Characters that fit into a line whatever they are."""
_LONGEST_TAIL = 3
"""How many bytes of an unfinished UTF-8 character there can be."""

_utf8 = codecs.getincrementaldecoder("utf-8")

Shown = str | bytes | None
"""Output as the requestor asked for it: text, bytes, or nothing."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One finished command."""

    index: int
    at_us: int
    ok: bool
    stdout: Shown
    stderr: Shown
    message: str | None
    last: bool


class StreamItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell a reader of the stream: exactly one of the later fields is set.

    The last of those that one event leads to has part 0; :func:`place_of` orders them all.
    """

    no: int
    part: int = 0
    index: int
    at_us: int
    command: dict[str, Any] | None = None
    stdout: Shown = None
    stderr: Shown = None
    progress: Progress | None = None
    finished: Finished | None = None


class Script:
    """A batch's commands, parsed once."""

    def __init__(self, text: str) -> None:
        parsed = parse_with_source(text)
        self.commands: list[Command] = [command for command, _ in parsed]
        self.sources: list[dict[str, Any]] = [source for _, source in parsed]

    def __len__(self) -> int:
        return len(self.commands)

    def mode(self, index: int, stream: int) -> CaptureMode | None:
        """How the output of a command is captured; ``None``: not at all."""
        command = self.commands[index]
        if not isinstance(command, Run):
            return _WHOLE
        if command.capture is None:
            return None
        return command.capture.stdout if stream == STDOUT else command.capture.stderr

    def describe(self, index: int) -> tuple[str, list[str]]:
        """A command's name and, for ``run``, its words."""
        command = self.commands[index]
        return name_of(command), [command.entry_point, *command.args] if isinstance(command, Run) else []


def show(mode: CaptureMode | None, output: bytes, *, wrote: bool) -> Shown:
    """Captured output. ``wrote``: a command without a capture of its own shows nothing unless it wrote something."""
    if mode is None or (mode is _WHOLE and not wrote):
        return None
    return as_text(mode, mode.cut(output))


def as_text(mode: CaptureMode, output: bytes) -> str | bytes:
    """Text where text is asked for and the bytes are text."""
    if mode.binary:
        return output
    try:
        return output.decode()
    except UnicodeDecodeError:
        return output


def default_message(return_code: int) -> str | None:
    """What a failed command says when its unit said nothing."""
    return None if return_code == 0 else f"ExeScript command exited with code {return_code}"


def results(script: Script, events: Iterable[Event]) -> list[Result]:
    """Every finished command, from the first."""
    done: list[Result] = []
    written: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    current = 0
    for event in events:
        if event.index != current:
            current = event.index
            written = {STDOUT: [], STDERR: []}
        match event.kind:
            case Output(stream=stream, data=data):
                written[stream].append(data)
            case Finished(return_code=code, message=message):
                stdout, stderr = written[STDOUT], written[STDERR]
                done.append(
                    Result(
                        index=event.index,
                        at_us=event.at_us,
                        ok=code == 0,
                        stdout=show(script.mode(event.index, STDOUT), b"".join(stdout), wrote=bool(stdout)),
                        stderr=show(script.mode(event.index, STDERR), b"".join(stderr), wrote=bool(stderr)),
                        message=message or default_message(code),
                        last=code != 0 or event.index == len(script) - 1,
                    )
                )
            case _:
                pass
    return done


class Streamer:
    """Turns events into stream items, keeping only the few bytes of an unfinished character per stream."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tails: dict[int, bytes] = {STDOUT: b"", STDERR: b""}
        self._shown: dict[int, int] = {STDOUT: 0, STDERR: 0}

    def needs_output(self, event: Event) -> bool:
        """Whether :meth:`items` wants the command's whole output with this event (captured at its end)."""
        return isinstance(event.kind, Finished) and any(
            (mode := self._script.mode(event.index, stream)) is not None and not mode.streams
            for stream in (STDOUT, STDERR)
        )

    def items(self, event: Event, output: Sequence[Event] = ()) -> list[StreamItem]:
        """What to tell. ``output``: all events of this command, when :meth:`needs_output`."""
        found = self._items(event, output)
        return [*(replace(item, part=part) for part, item in enumerate(found[:-1], start=1)), *found[-1:]]

    def _items(self, event: Event, output: Sequence[Event]) -> list[StreamItem]:
        match event.kind:
            case Started():
                self._tails = {STDOUT: b"", STDERR: b""}
                self._shown = {STDOUT: 0, STDERR: 0}
                return [self._item(event, command=self._script.sources[event.index])]
            case Output(stream=stream, data=data):
                return self._piece(event, stream, data)
            case Progress() as progress:
                return [self._item(event, progress=progress)]
            case Finished() as finished:
                tails = [item for stream in (STDOUT, STDERR) for item in self._rest(event, stream, output)]
                message = finished.message or default_message(finished.return_code)
                return [*tails, self._item(event, finished=Finished(finished.return_code, message))]
            case _:
                return []

    def _piece(self, event: Event, stream: int, data: bytes) -> list[StreamItem]:
        mode = self._script.mode(event.index, stream)
        if mode is None or mode.stream is None:
            return []
        if mode.stream.limit is not None:
            data = data[: max(0, mode.stream.limit - self._shown[stream])]
        self._shown[stream] += len(data)
        if not mode.binary:
            data, self._tails[stream] = split_text(self._tails[stream] + data)
        return self._output(event, stream, as_text(mode, data))

    def _rest(self, event: Event, stream: int, output: Sequence[Event]) -> list[StreamItem]:
        mode = self._script.mode(event.index, stream)
        if mode is None:
            return []
        if mode.streams:
            tail, self._tails[stream] = self._tails[stream], b""
            return self._output(event, stream, tail)
        pieces = [kind.data for e in output if isinstance(kind := e.kind, Output) and kind.stream == stream]
        whole = mode.cut(b"".join(pieces))
        return self._output(event, stream, as_text(mode, whole))

    def _output(self, event: Event, stream: int, shown: str | bytes) -> list[StreamItem]:
        name = "stdout" if stream == STDOUT else "stderr"
        return [self._item(event, **{name: part}) for part in short_parts(shown)]

    def _item(self, event: Event, **what: Any) -> StreamItem:
        return StreamItem(no=event.no, index=event.index, at_us=event.at_us, **what)


def short_parts(shown: str | bytes) -> Iterator[str | bytes]:
    """Cut output so that each part is at most :data:`MAX_LINE` bytes of JSON; nothing of nothing."""
    if isinstance(shown, bytes):
        for start in range(0, len(shown), _BYTES_OF_LINE):
            yield shown[start : start + _BYTES_OF_LINE]
        return
    for start in range(0, len(shown), MAX_LINE):
        yield from _halved(shown[start : start + MAX_LINE])


def _halved(text: str) -> Iterator[str]:
    if len(text) <= _SHORT or len(msgspec.json.encode(text)) <= MAX_LINE:
        yield text
    else:
        yield from _halved(text[: len(text) // 2])
        yield from _halved(text[len(text) // 2 :])


def place_of(item: StreamItem) -> tuple[int, float]:
    """Where an item stands in its batch's stream; orders all of them."""
    return item.no, item.part or math.inf


def split_text(data: bytes) -> tuple[bytes, bytes]:
    """Split off the beginning of a UTF-8 character whose rest may still come."""
    decoder = _utf8("ignore")
    decoder.decode(data[-_LONGEST_TAIL:])
    tail = decoder.getstate()[0]
    return data[: len(data) - len(tail)], tail
