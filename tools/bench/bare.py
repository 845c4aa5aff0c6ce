"""The bare tools that Shem stands on, doing the same no-op in the same run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path


def bare_exec(root: Path, image: Path, runs: int) -> dict[str, float | str]:
    """``runc exec`` and ``crun exec`` of ``true``, per second, as root where they are; else why not."""
    if os.geteuid() != 0:
        return {"skipped": "runc and crun need root here"}
    results: dict[str, float | str] = {}
    for tool in ("runc", "crun"):
        path = shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if path is None:
            results[tool] = "not installed"
            continue
        try:
            results[f"{tool}_exec_per_s"] = round(_measure(_command(path), root / tool, image, runs), 1)
        except subprocess.CalledProcessError as error:
            results[tool] = f"does not work here: {(error.stderr or b'').decode(errors='replace').strip()[:120]}"
    return results


def _command(path: str) -> list[str]:
    hybrid = Path("/sys/fs/cgroup/unified").exists()
    if path.endswith("crun") and hybrid:
        # crun refuses machines with both generations of cgroups mounted; it does not look further than the mount
        script = 'umount /sys/fs/cgroup/unified; exec "$@"'
        return ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, "sh", path]
    return [path]


def _measure(tool: list[str], bundle: Path, image: Path, runs: int) -> float:
    rootfs = bundle / "rootfs"
    rootfs.mkdir(parents=True)
    layer = max((image / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    subprocess.run(["tar", "-xf", str(layer), "-C", str(rootfs)], check=True)
    runc = shutil.which("runc", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or tool[-1]
    subprocess.run([runc, "spec"], cwd=bundle, check=True, capture_output=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"]["args"] = ["sleep", "1000"]
    (bundle / "config.json").write_text(json.dumps(config))
    state = [*tool, "--root", str(bundle / "state")]
    name = f"bench-{os.getpid()}"
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*state, "run", "-d", "-b", str(bundle), name], check=True, **quiet)  # type: ignore[call-overload]
    try:
        begun = time.perf_counter()
        for _ in range(runs):
            subprocess.run([*state, "exec", name, "true"], check=True, **quiet)  # type: ignore[call-overload]
        return runs / (time.perf_counter() - begun)
    finally:
        subprocess.run([*state, "delete", "-f", name], check=False, **quiet)  # type: ignore[call-overload]
