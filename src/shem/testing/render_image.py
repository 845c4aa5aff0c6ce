"""Build the image of the rendering example, once.

Two ways, tried in this order: a container engine (docker, podman, buildah) with the example's Dockerfile, where one works,
which is found out by building; else Debian packages. The second way needs no root and no engine: ``apt-get`` downloads
POV-Ray with all it needs, by the machine's own configuration, as if for an empty system, and checks the signatures;
``dpkg-deb`` opens the packages, and what is in them is put into one layer, without documentation, and without running any
of their scripts. The same packages give the same image, to the bit.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

import shem
from shem.cogs.ociarchive import copy_layout, read_image, write_layout
from shem.cogs.ociformat import host_architecture
from shem.errors import Misconfigured, ShemError

Log = Callable[[str], None]

PACKAGES = ("povray", "povray-includes", "busybox-static")
NAME = "render"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MADE_FROM = "made-from.json"
_ENGINES = ("docker", "podman", "buildah")
_TIMEOUT_S = 600
_ASKING_S = 10

# What a renderer can do without; a third of the bytes.
_LEFT_OUT = (
    *(f"usr/share/{name}/" for name in ("doc", "man", "locale", "info", "lintian", "bug", "gcc", "zoneinfo")),
    "usr/share/X11/locale/",
)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DIRECTORIES = {"dev": 0o755, "proc": 0o755, "root": 0o700, "sys": 0o755, "tmp": 0o1777, "work": 0o777, "etc": 0o755}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
_TOOLS = (
    *("sh", "ash", "[", "test", "env", "echo", "printf", "true", "false", "sleep", "seq", "yes", "date", "expr", "id"),
    *(
        "ls",
        "cat",
        "cp",
        "mv",
        "rm",
        "ln",
        "mkdir",
        "rmdir",
        "touch",
        "chmod",
        "chown",
        "stat",
        "du",
        "df",
        "pwd",
        "find",
    ),
    *("head", "tail", "sort", "uniq", "wc", "tr", "cut", "tee", "grep", "sed", "awk", "xargs", "dd", "od", "hexdump"),
    *("tar", "gzip", "gunzip", "zcat", "md5sum", "sha256sum", "ps", "kill", "free", "nproc", "uname", "which", "time"),
)


class ImageNotBuilt(Misconfigured):
    """The machine lacks what it takes to build the image."""

    default_code = "render_image_not_built"


class _MadeFrom(msgspec.Struct):
    inputs: str
    digest: str
    how: str


def build_render_image(out: Path, log: Log) -> Path:
    """Make the OCI layout directory ``out``, or find it made from the same inputs before. Returns ``out``.

    ``log`` hears a line now and then. Raises :class:`ImageNotBuilt` with what is missing.
    """
    dockerfile = examples() / "render" / "Dockerfile"
    inputs = hashlib.sha256(
        b"\0".join([dockerfile.read_bytes(), Path(__file__).read_bytes(), host_architecture().encode()])
    ).hexdigest()
    if _is_made(out, inputs):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as directory:
        draft = Path(directory) / "layout"
        draft.mkdir()
        how, digest = _build(dockerfile, draft, log)
        made = _MadeFrom(inputs=inputs, digest=digest, how=how)
        (draft / _MADE_FROM).write_bytes(msgspec.json.encode(made))
        if out.exists():
            out.rename(Path(directory) / "old")
        draft.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    log(f"made {out} with {how}: {size / 1e6:.0f} MB, {digest[:19]}…")
    return out


def examples() -> Path:
    """The examples: inside an installed package, or at the top of a checkout."""
    inside = Path(shem.__file__).parent / "examples"
    return inside if inside.exists() else Path(shem.__file__).parents[2] / "examples"


def _is_made(out: Path, inputs: str) -> bool:
    try:
        made = msgspec.json.decode((out / _MADE_FROM).read_bytes(), type=_MadeFrom)
        return made.inputs == inputs and read_image(out).digest == made.digest
    except (OSError, msgspec.MsgspecError, ShemError):
        return False


def _build(dockerfile: Path, draft: Path, log: Log) -> tuple[str, str]:
    for engine in _ENGINES:
        if shutil.which(engine) is None:
            continue
        log(f"trying {engine} …")
        try:
            return engine, _with_engine(engine, dockerfile, draft)
        except (_CommandFailed, ShemError) as error:
            log(f"{engine} does not work here: {str(error)[:200]}")
            shutil.rmtree(draft)
            draft.mkdir()
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise ImageNotBuilt(
            "the example's image needs docker, podman or buildah, or a Debian or Ubuntu system with apt-get and dpkg-deb",
            hint="install one of the engines, or give any image with POV-Ray in it",
        )
    log(f"fetching {', '.join(PACKAGES)} and what they need …")
    try:
        return "Debian packages", _with_packages(draft)
    except _CommandFailed as error:
        raise ImageNotBuilt(
            f"the packages of the example's image cannot be had: {error}",
            hint="check that `apt-get update` works here, or install docker, podman or buildah",
        ) from None


class _CommandFailed(Exception):
    pass


def _run(*argv: str, timeout_s: float = _TIMEOUT_S, env: dict[str, str] | None = None) -> None:
    """Raises :class:`_CommandFailed` with the last thing the command said."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _CommandFailed(f"{argv[0]} did not answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise _CommandFailed(f"{argv[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
        raise _CommandFailed(lines[-1] if lines else f"{argv[0]} ended with status {done.returncode}")


# -- with an engine ----------------------------------------------------------------------------------------------------


def _with_engine(engine: str, dockerfile: Path, draft: Path) -> str:
    _run(engine, "info", timeout_s=_ASKING_S)
    tag = f"localhost/shem-{NAME}:latest"
    with tempfile.TemporaryDirectory(prefix="shem-image-") as directory:
        context, saved = Path(directory) / "context", Path(directory) / "image.tar"
        context.mkdir()
        shutil.copy(dockerfile, context / "Dockerfile")
        _run(engine, "build", "-t", tag, str(context))
        if engine == "buildah":
            _run(engine, "push", tag, f"oci-archive:{saved}")
        else:
            _run(engine, "save", "-o", str(saved), tag)
        return copy_layout(read_image(saved), draft, name=NAME)


# -- from packages -----------------------------------------------------------------------------------------------------


def _with_packages(draft: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="shem-image-") as directory:
        base = Path(directory)
        base.chmod(0o755)  # apt downloads as a user of its own
        packages = _download(base)
        layer = base / "layer.tar.gz"
        with layer.open("wb") as file:
            diff_id = _write_layer(packages, file)
        config = {
            "architecture": host_architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
                "WorkingDir": "/work",
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
        moved = draft / "layer"
        shutil.move(layer, moved)
        return write_layout(draft, msgspec.json.encode(config, order="sorted"), [(moved, _LAYER)], name=NAME)


def _download(base: Path) -> list[Path]:
    """All packages that an empty system needs for ``PACKAGES``."""
    archives = base / "archives"
    for directory in (archives / "partial", base / "state", base / "lists" / "partial", base / "log"):
        directory.mkdir(parents=True)
    (base / "status").touch()
    ours = {
        "Dir::State": str(base / "state"),
        "Dir::State::status": str(base / "status"),
        "Dir::Cache": str(base),
        "Dir::Cache::archives": str(archives),
        "Dir::Log": str(base / "log"),
        "APT::Install-Recommends": "false",
        "Acquire::Retries": "2",
    }

    def apt(lists: Path, *command: str) -> None:
        options = [f"-o{name}={value}" for name, value in {**ours, "Dir::State::lists": str(lists)}.items()]
        _run("apt-get", "-y", "-qq", *options, *command, env={"DEBIAN_FRONTEND": "noninteractive"})

    get = ("install", "--download-only", *PACKAGES)
    try:
        apt(Path("/var/lib/apt/lists"), *get)
    except _CommandFailed:  # the machine's lists are absent or old
        apt(base / "lists", "update")
        apt(base / "lists", *get)
    found = sorted(archives.glob("*.deb"))
    if not found:
        raise _CommandFailed("apt-get downloaded nothing")
    return found


class _Tree:
    """Entries of a layer by path; added in any order, written sorted, owned by root, without times."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def add(self, path: str, kind: bytes, mode: int, *, data: bytes = b"", link: str = "") -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(data)
        self._entries[path] = (entry, data)

    def copy(self, path: str, to: str) -> None:
        if path in self._entries:
            entry, data = self._entries[path]
            self.add(to, entry.type, entry.mode, data=data, link=entry.linkname)

    def below(self, directory: str) -> bool:
        return any(path.startswith(f"{directory}/") for path in self._entries)

    def write(self, tar: tarfile.TarFile) -> None:
        parents = {str(above) for path in self._entries for above in list(Path(path).parents)[:-1]}
        for path in parents - self._entries.keys():
            self.add(path, tarfile.DIRTYPE, 0o755)
        for _, (entry, data) in sorted(self._entries.items()):
            tar.addfile(entry, io.BytesIO(data) if data else None)


def _write_layer(packages: Sequence[Path], out: io.BufferedWriter) -> str:
    """Returns the digest of the unpacked tar."""
    tree = _Tree()
    for path in _MERGED[:3]:
        tree.add(path, tarfile.SYMTYPE, 0o777, link=f"usr/{path}")
    for path, mode in _DIRECTORIES.items():
        tree.add(path, tarfile.DIRTYPE, mode)
    for package in packages:
        with _opened(package) as tar:
            for entry in tar:
                _take(tree, tar, entry)
    for path, text in _FILES.items():
        tree.add(path, tarfile.REGTYPE, 0o644, data=text.encode())
    for path in _MERGED[3:]:
        if tree.below(f"usr/{path}"):
            tree.add(path, tarfile.SYMTYPE, 0o777, link=f"usr/{path}")
    for tool in _TOOLS:
        if f"usr/bin/{tool}" not in tree:
            tree.add(f"usr/bin/{tool}", tarfile.SYMTYPE, 0o777, link="busybox")
    with tempfile.TemporaryFile() as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tree.write(tar)
        raw.seek(0)
        sha = hashlib.sha256()
        with gzip.GzipFile(filename="", fileobj=out, mode="wb", compresslevel=4, mtime=0) as packed:
            while piece := raw.read(1 << 20):
                sha.update(piece)
                packed.write(piece)
    return f"sha256:{sha.hexdigest()}"


def _take(tree: _Tree, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    path = _placed(entry.name)
    wanted = entry.isreg() or entry.issym() or entry.islnk()
    if not path or not wanted or path.startswith(_LEFT_OUT) or "/gconv/" in path:
        return  # directories come with what is in them
    if entry.islnk():
        tree.copy(_placed(entry.linkname), path)  # sorted, a link might come before what it links to
        return
    content = tar.extractfile(entry) if entry.isreg() else None
    data = content.read() if content is not None else b""
    tree.add(path, entry.type, entry.mode & 0o755, data=data, link=entry.linkname)


def _placed(name: str) -> str:
    """Where a file of a package goes: what is for ``/lib`` goes to ``/usr/lib``, and so on."""
    path = name.removeprefix("./").strip("/")
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


@contextmanager
def _opened(package: Path) -> Iterator[tarfile.TarFile]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        if process.stdout is None:
            raise _CommandFailed("dpkg-deb has no output")
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
        process.stdout.read()
    if process.returncode:
        raise _CommandFailed(f"{package.name} cannot be opened")
