"""``shem image``: docker images to Golem image files and back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from shem.cli.common import Json
from shem.errors import Conflict, Misconfigured, NotFound, Refused, WorkFailed

if TYPE_CHECKING:
    from shem.cogs.ociarchive import ImageArchive

app = typer.Typer(help="Images: docker's, and the image files of Golem's VM runtime (GVMI).", no_args_is_help=True)

Volumes = Annotated[
    list[str] | None, typer.Option("--volume", help="A directory that tasks may write to and files go to; repeatable.")
]
Compress = Annotated[Literal["gzip", "zstd", "xz", "lzo", "lz4"], typer.Option(help="Compression of the file tree.")]
Name = Annotated[str, typer.Option(help="Which image, when the source holds several.")]
Registry = Annotated[str, typer.Option(help="Registry for names without one, such as python:3.12.")]
Insecure = Annotated[
    list[str] | None,
    typer.Option("--insecure-registry", help="host:port to speak to without TLS; repeatable."),
]
Architecture = Annotated[str, typer.Option(help="Of the image, such as amd64.", show_default="this machine's")]

BUILDERS = ("buildah", "docker", "podman")


@app.command("to-gvmi")
def to_gvmi(
    source: Annotated[str, typer.Argument(help="An OCI layout, an OCI or docker save tar, or a name in a registry.")],
    out: Annotated[Path, typer.Argument(help="The image file to make.")],
    volumes: Volumes = None,
    compress: Compress = "gzip",
    name: Name = "",
    registry: Registry = "",
    insecure_registry: Insecure = None,
    architecture: Architecture = "",
    as_json: Json = False,
) -> None:
    """Make a Golem image file of a docker image. The same image gives the same file, and so the same hash."""
    _check_out(out)
    with _scratch(out) as scratch, _bar(as_json) as show:
        if Path(source).exists():
            image = _read(Path(source), name, architecture)
        else:
            image = _fetch(source, scratch, registry, insecure_registry or [], architecture, show)
        done = _make_gvmi(image, out, volumes or [], compress, show)
    _say(done, as_json)


@app.command("to-oci")
def to_oci(
    source: Annotated[Path, typer.Argument(help="A Golem image file.")],
    out: Annotated[Path, typer.Argument(help="The OCI layout directory to make; a tar of one when it ends with .tar.")],
    name: Annotated[str, typer.Option(help="Name for the image.", show_default="the file's")] = "",
    architecture: Architecture = "",
    as_json: Json = False,
) -> None:
    """Make a docker image of a Golem image file: for docker load, podman load, skopeo, or shem run."""
    from shem.runtimes.images.convert import pack_layout, to_layout

    _check_out(out, directory=out.suffix != ".tar")
    _must_exist(source)
    with _scratch(out) as scratch, _bar(as_json) as show:
        layout = scratch / "layout"
        layout.mkdir()
        made = to_layout(source, layout, name=name or _tag(source), architecture=architecture, progress=show)
        if out.suffix == ".tar":
            pack_layout(layout, scratch / "tar")
            (scratch / "tar").replace(out)
        else:
            layout.replace(out)
    _say(_result(out, "oci", made.digest, made.size, made.left_out), as_json)


@app.command()
def show(
    source: Annotated[Path, typer.Argument(help="A Golem image file, an OCI layout, or an OCI or docker save tar.")],
    name: Name = "",
    architecture: Architecture = "",
    as_json: Json = False,
) -> None:
    """Say what an image is: its sizes, its hash, and how it wants to be run."""
    _must_exist(source)
    facts = _gvmi_facts(source) if _is_squashfs(source) else _oci_facts(source, name, architecture)
    if as_json:
        print(json.dumps(facts))
        return
    from shem.sdk.plain import plain

    for key, value in _rows(facts):
        print(f"{key:<13}{plain(value, 2000)}")


@app.command()
def build(
    directory: Annotated[Path, typer.Argument(help="The build context: what the Dockerfile's COPY sees.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="NAME.gvmi, NAME.tar (OCI), or a directory (OCI layout).")
    ],
    dockerfile: Annotated[
        Path | None, typer.Option("--file", "-f", help="The Dockerfile.", show_default="DIRECTORY/Dockerfile")
    ] = None,
    volumes: Volumes = None,
    compress: Compress = "gzip",
    with_program: Annotated[
        Literal["buildah", "docker", "podman"] | None, typer.Option("--with", help="What builds; else the first found.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build an image from a Dockerfile, with the buildah, docker or podman of this machine."""
    from shem.runtimes.images.convert import pack_layout

    if volumes and out.suffix != ".gvmi":
        raise Refused("--volume is for image files: OUT must end with .gvmi", hint="write VOLUME into the Dockerfile")
    _check_out(out, directory=out.suffix not in (".gvmi", ".tar"))
    _must_exist(directory)
    program = _builder(with_program)
    with _scratch(out) as scratch, _bar(as_json) as show:
        saved = scratch / "saved.tar"
        _build(program, directory, dockerfile, saved)
        image = _read(saved, "", "")
        if out.suffix == ".gvmi":
            done = _make_gvmi(image, out, volumes or [], compress, show)
        else:
            from shem.cogs.ociarchive import copy_layout

            layout = scratch / "layout"
            layout.mkdir()
            copy_layout(image, layout, name=_tag(out))
            if out.suffix == ".tar":
                pack_layout(layout, scratch / "tar")
                (scratch / "tar").replace(out)
            else:
                layout.replace(out)
            done = _result(out, "oci", image.digest, image.size, {})
    _say(done, as_json)


# -- sources -----------------------------------------------------------------------------------------------------


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise NotFound(f"there is no {path}", code="no_such_file")


def _is_squashfs(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"hsqs"


def _read(path: Path, name: str, architecture: str) -> ImageArchive:
    from shem.cogs.ociarchive import read_image

    if _is_squashfs(path):
        raise Refused(
            f"{path} is an image file already", code="image_bad", hint="shem image to-oci makes a docker image"
        )
    return read_image(path, name=name, architecture=architecture)


def _fetch(
    reference: str, scratch: Path, registry: str, insecure: list[str], architecture: str, show: Progress
) -> ImageArchive:
    from shem.cogs.ociformat import host_architecture
    from shem.runtimes.images.local import fetch_image
    from shem.runtimes.images.registry import RegistryConfig
    from shem.terms.images import parse_reference

    image = parse_reference(reference)
    if not image.host and not registry:
        raise Refused(
            f"there is no file {reference}, and as the name of an image it says no registry",
            code="no_default_registry",
            hint="write it as host/name:tag, or pass --registry HOST",
        )
    config = RegistryConfig(
        default_registry=registry,
        insecure_hosts=frozenset(insecure),
        architecture=architecture or host_architecture(),
    )
    return asyncio.run(
        fetch_image(image, scratch, config, progress=lambda done, total: show("downloading", done, total))
    )


# -- results -----------------------------------------------------------------------------------------------------


def _make_gvmi(image: ImageArchive, out: Path, volumes: list[str], compress: Any, show: Progress) -> dict[str, Any]:
    from shem.runtimes.images.convert import to_gvmi as convert

    for volume in volumes:
        if not volume.startswith("/") or volume.strip("/") == "" or ".." in volume.split("/"):
            raise Refused(f"{volume!r} is no place for a volume", hint="an absolute path, such as /golem/work")
    made = convert(image, out, volumes=volumes, compressor=compress, progress=show)
    return _result(out, "gvmi", made.digest, made.size, made.left_out)


def _result(out: Path, kind: str, digest: str, size: int, left_out: dict[str, int]) -> dict[str, Any]:
    return {"path": str(out), "kind": kind, "digest": digest, "size": size, "left_out": left_out}


def _say(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    print(f"{done['path']}  {_megabytes(done['size'])}\n{done['digest']}")
    for what, count in done["left_out"].items():
        typer.echo(f"left out: {count} {what}", err=True)


def _gvmi_facts(path: Path) -> dict[str, Any]:
    from shem.runtimes.images.convert import describe
    from shem.runtimes.images.gvmi import read_gvmi, sha3_of

    outside = read_gvmi(path)
    return {
        "path": str(path),
        "kind": "gvmi",
        "digest": f"sha3:{sha3_of(path)}",
        "size": outside.size,
        "squashfs": {"size": outside.squashfs_bytes, "compression": outside.compressor},
        "config": describe(outside),
    }


def _oci_facts(path: Path, name: str, architecture: str) -> dict[str, Any]:
    from shem.cogs.ociarchive import read_image
    from shem.runtimes.images.convert import describe_image

    image = read_image(path, name=name, architecture=architecture)
    machine, config = describe_image(image)
    return {
        "path": str(path),
        "kind": "oci",
        "digest": image.digest,
        "size": image.size,
        "layers": [{"digest": layer.digest, "size": layer.size} for layer in image.manifest.layers],
        "architecture": machine,
        "config": config,
    }


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "kind", {"gvmi": "Golem image file", "oci": "docker image"}[facts["kind"]]
    yield "hash", facts["digest"]
    yield "size", _megabytes(facts["size"])
    if "squashfs" in facts:
        yield "squashfs", f"{_megabytes(facts['squashfs']['size'])}, {facts['squashfs']['compression']}"
    for number, layer in enumerate(facts.get("layers", ()), 1):
        yield f"layer {number}", f"{_megabytes(layer['size'])}  {layer['digest']}"
    if facts.get("architecture"):
        yield "architecture", str(facts["architecture"])
    config = facts["config"]
    for key in ("User", "WorkingDir"):
        if config.get(key):
            yield key, str(config[key])
    for key in ("Entrypoint", "Cmd"):
        if config.get(key):
            yield key, json.dumps(config[key])
    for key in ("Env", "Volumes"):
        for entry in config.get(key) or ():
            yield key, str(entry)


def _megabytes(size: int) -> str:
    return f"{size:,} bytes" if size < 100_000 else f"{size / 1e6:,.1f} MB"


def _tag(path: Path) -> str:
    """A name that docker takes, after a file's."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem.lower()).strip("-")
    return f"{plain or 'image'}:latest"


# -- building ----------------------------------------------------------------------------------------------------


def _builder(wanted: str | None) -> str:
    for program in (wanted,) if wanted else BUILDERS:
        if shutil.which(program):
            return program
    missing = wanted or "buildah, docker or podman"
    raise Misconfigured(
        f"there is no {missing} on this machine, and building needs one",
        code="no_builder",
        hint="apt-get install buildah, or build elsewhere: docker save IMAGE > x.tar, then shem image to-gvmi x.tar",
    )


def _build(program: str, directory: Path, dockerfile: Path | None, saved: Path) -> None:
    """Leaves an OCI or docker tar at ``saved``, and nothing in the program's own store."""
    tag = f"localhost/shem-build:{saved.parent.name.rpartition('-')[2].lower()}"
    save = {
        "buildah": ["push", "--quiet", tag, f"oci-archive:{saved}"],
        "docker": ["save", "--output", str(saved), tag],
        "podman": ["save", "--quiet", "--format", "oci-archive", "--output", str(saved), tag],
    }[program]
    chosen = ["--file", str(dockerfile)] if dockerfile is not None else []
    _call([program, "build", "--tag", tag, *chosen, str(directory)])
    try:
        _call([program, *save])
    finally:
        subprocess.run([program, "rmi", tag], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _call(command: list[str]) -> None:
    """What the program says is for people: stdout stays ours."""
    status = subprocess.run(command, stdout=sys.stderr.fileno(), check=False).returncode
    if status:
        raise WorkFailed(
            f"{command[0]} {command[1]} ended with status {status}", code="build_failed", hint="it says above why"
        )


# -- manners -----------------------------------------------------------------------------------------------------


Progress = Callable[[str, int, int], None]


def _check_out(out: Path, *, directory: bool = False) -> None:
    if not out.parent.is_dir():
        raise NotFound(f"there is no directory {out.parent}", code="no_such_file")
    if out.is_dir() or (directory and out.exists()):
        raise Conflict(f"{out} exists", code="exists", hint="remove it, or choose another name")


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A directory beside the result, so that what is whole can be moved into place; gone in the end, whatever that is."""

    def end(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            yield Path(name)
    except OSError as error:
        raise Misconfigured(f"{error.filename or out}: {error.strerror or error}", code="cannot_write") from error
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _bar(as_json: bool) -> Iterator[Progress]:
    """A progress bar for whoever watches a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield lambda what, done, total: None
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield show
