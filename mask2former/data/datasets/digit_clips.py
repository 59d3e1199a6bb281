"""Clips of moving digit discs: a scene whose discs cross, cover one another, leave the picture and come into it.

Every disc moves evenly along a line through the middle of the picture. Later discs cover earlier ones in all frames:
what has passed behind another comes out again on the other side, still the same object.
"""

# T frames, (x, y) positions in pixels, as in digits.py.

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mask2former.data.datasets.digits import SPLITS, Material, Scene, sample_scene

__all__ = ["Clip", "clip_random", "sample_clip"]

# Way of one frame as a share of the picture's side: the slowest disc stays, the fastest crosses it in ten frames.
_SPEED = (0.02, 0.1)
# Discs go through this part of the picture, in the middle of the clip: there they meet.
_MIDDLE = (0.25, 0.75)


@dataclass(frozen=True)
class Clip:
    """A scene at its first frame, and how its discs move."""

    scene: Scene
    velocities: tuple[tuple[float, float], ...]  # of each disc, (x, y) in pixels per frame
    num_frames: int  # T

    def frame(self, number: int) -> Scene:
        """The scene of frame 0..T-1: textures and line stand still, every frame has its own noise."""
        discs = tuple(
            replace(disc, center=(disc.center[0] + number * vx, disc.center[1] + number * vy))
            for disc, (vx, vy) in zip(self.scene.discs, self.velocities, strict=True)
        )
        return replace(self.scene, discs=discs, noise_seed=self.scene.noise_seed + number)


def sample_clip(material: Material, *, size: int, num_frames: int, random: np.random.Generator) -> Clip:
    """Draws a random clip of size x size pixels with two to four discs."""
    scene = sample_scene(material, size=size, random=random, min_discs=2)
    discs, velocities = [], []
    for disc in scene.discs:
        x, y = random.uniform(*_MIDDLE, 2) * size
        time = random.uniform(*_MIDDLE) * (num_frames - 1)
        speed, direction = random.uniform(*_SPEED) * size, random.uniform(0, 2 * np.pi)
        vx, vy = speed * np.cos(direction), speed * np.sin(direction)
        discs.append(replace(disc, center=(float(x - time * vx), float(y - time * vy))))
        velocities.append((float(vx), float(vy)))
    return Clip(replace(scene, discs=tuple(discs)), tuple(velocities), num_frames)


def clip_random(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one clip: they depend on nothing but these values, and are not those of a scene."""
    return np.random.default_rng((seed, SPLITS.index(split), index, 1))
