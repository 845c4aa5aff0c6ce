"""Render an animation on rented machines and join its frames into one picture."""

import sys
from pathlib import Path

from shem import Golem
from shem.testing.contact_sheet import join_pngs

SCENE = Path(__file__).with_name("scene.pov")
FRAMES = 24


def prepare(machine):
    machine.upload(SCENE, "/work/scene.pov")


def render(machine, frame):
    machine.run("povray", "scene.pov", "+Oframe.png", "+W320", "+H240", f"+K{frame / FRAMES}", "-D", cwd="/work")
    return machine.download("/work/frame.png", out / f"frame-{frame:02}.png")


if __name__ == "__main__":
    image, out = sys.argv[1], Path(sys.argv[2])
    with Golem(budget="1") as golem:
        frames = list(golem.map(render, range(FRAMES), image=image, workers=3, setup=prepare, ordered=True))
    join_pngs(frames, out / "animation.png", columns=6)
