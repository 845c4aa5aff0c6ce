"""A Golem image file, from its bytes to a command that runs in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from shem.runtimes.images.store import ImageStore
from shem.terms.images import GvmiImage
from shem.testing.small_image import make_small_gvmi


async def test_a_command_in_an_image_file(make, tmp_path: Path) -> None:
    file = tmp_path / "small.gvmi"
    digest = make_small_gvmi(file, volumes=("/golem/work",), config={"User": "1000:1000"})

    async def fetch(url: str) -> AsyncIterator[bytes]:
        yield file.read_bytes()

    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "given").write_text("from outside")
    async with ImageStore(tmp_path / "store") as store:
        rootfs = await store.ensure(GvmiImage(sha3=digest, url="http://images.example/x"), fetch=fetch)
        box = await make(image=rootfs, volumes={rootfs.config.volumes[0]: volume})
        said = await box.sh("cat /etc/passwd /golem/work/given; ls -l /bin/sh; echo x > /golem/work/made && echo ok")
        assert said.code == 0, said.err
        assert "worker:x:1000:1000" in said.out
        assert "from outside" in said.out
        assert "/bin/busybox" in said.out
        assert said.out.endswith("ok\n")
        assert (volume / "made").read_text() == "x\n"
        without = await make(image=rootfs)
        assert (await without.sh("ls /golem")).code != 0
