"""How a mask becomes a picture: the domains of ``drawings``, each for many masks at once.

A brush takes masks [n, FINE, FINE] (1 where the thing is), the colours of thing and ground [n, 3], and a random stream, and gives
pictures [n, SIZE, SIZE, 3]; all are float32 within about 0 … 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

SIZE = 32  # pixels of a picture
FINE = 64  # pixels of the mask that it is made from

Brush = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def small(fine: np.ndarray) -> np.ndarray:
    """[n, FINE, FINE, …] to [n, SIZE, SIZE, …], by means."""
    step = fine.shape[1] // SIZE
    return np.asarray(fine.reshape(len(fine), SIZE, step, SIZE, step, *fine.shape[3:]).mean((2, 4)))


def over(mask: np.ndarray, thing: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Lay a thing on the ground: colours [n, 3] or pictures [n, SIZE, SIZE, 3], mask [n, SIZE, SIZE]."""
    thing, ground = (c[:, None, None] if c.ndim == 2 else c for c in (thing, ground))
    return np.asarray(ground + mask[..., None] * (thing - ground))


def rim(mask: np.ndarray, reach: int = 1) -> np.ndarray:
    """The line along the border of a mask, 2·reach fine pixels wide."""
    high = low = mask
    for _ in range(reach):
        for axis in (1, 2):
            moved = [np.roll(each, by, axis) for each, by in ((high, 1), (high, -1))]
            high = np.maximum(np.maximum(*moved), high)
            moved = [np.roll(each, by, axis) for each, by in ((low, 1), (low, -1))]
            low = np.minimum(np.minimum(*moved), low)
    return high - low


def noise(draw: np.random.Generator, *size: int) -> np.ndarray:
    return draw.standard_normal(size, dtype=np.float32)


def clouds(draw: np.random.Generator, n: int, cells: int, channels: int = 1) -> np.ndarray:
    """Smooth noise [n, SIZE, SIZE, channels] of standard deviation about 0.7: linear between ``cells`` + 1 values a side."""
    at = np.linspace(0, cells, SIZE, endpoint=False, dtype=np.float32)
    low = np.minimum(at.astype(int), cells - 1)
    weight = np.zeros((SIZE, cells + 1), np.float32)
    weight[np.arange(SIZE), low] = 1 - (at - low)
    weight[np.arange(SIZE), low + 1] = at - low
    return np.einsum("ya,nabc,xb->nyxc", weight, noise(draw, n, cells + 1, cells + 1, channels), weight, optimize=True)


def slope(draw: np.random.Generator, n: int) -> np.ndarray:
    """[n, SIZE, SIZE, 1]: rises from -1 to 1 in a random direction."""
    t = draw.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return (np.cos(t) * line + np.sin(t) * line[:, None])[..., None]


def blur(picture: np.ndarray, axes: tuple[int, ...] = (1, 2)) -> np.ndarray:
    for axis in axes:
        picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4
    return picture


def pattern(draw: np.random.Generator, kind: np.ndarray, n: int) -> np.ndarray:
    """0 or 1, [n, FINE, FINE]: stripes (kind 0), dots (1) or checks (2), of random direction and width."""
    kind = kind.reshape(n, 1, 1)
    t = draw.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
    wave = draw.uniform(10, 15, (n, 1, 1)).astype(np.float32)  # fine pixels
    phase = draw.uniform(0, 2 * np.pi, (2, n, 1, 1)).astype(np.float32)
    line = np.arange(FINE, dtype=np.float32)
    along, across = np.cos(t) * line + np.sin(t) * line[:, None], np.cos(t) * line[:, None] - np.sin(t) * line
    a, b = (np.sin(2 * np.pi * at / wave + p) for at, p in zip((along, across), phase, strict=True))
    return np.where(kind == 0, a > 0, np.where(kind == 1, a + b > 0.6, a * b > 0)).astype(np.float32)


def flat(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return over(small(mask), ink, ground) + 0.02 * noise(draw, len(mask), SIZE, SIZE, 3)


def filled(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Shaded, on a ground with clouds: the nearest to a photograph."""
    n = len(mask)
    thing = ink[:, None, None] + draw.uniform(0.05, 0.2, (n, 1, 1, 1)).astype(np.float32) * slope(draw, n)
    back = ground[:, None, None] + 0.12 * clouds(draw, n, 4) + 0.04 * clouds(draw, n, 8, 3)
    return over(small(mask), thing, back) + 0.03 * noise(draw, n, SIZE, SIZE, 3)


def sketch(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A dark line on paper, pressed on unevenly."""
    n = len(mask)
    paper = 0.85 + 0.15 * ground[:, None, None] + 0.03 * noise(draw, n, SIZE, SIZE, 1)
    pressed = np.clip(0.95 + 0.2 * clouds(draw, n, 6)[..., 0], 0.4, 1)
    return over(small(rim(mask)) * pressed, 0.45 * ink, paper)


def textured(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Stripes, dots or checks of a second colour."""
    n = len(mask)
    second = np.where((ink.mean(1, keepdims=True) < 0.5), 0.35 + 0.65 * ink, 0.5 * ink)
    marks = small(pattern(draw, draw.integers(3, size=n), n))
    thing = over(marks, second, ink)
    return over(small(mask), thing, ground) + 0.02 * noise(draw, n, SIZE, SIZE, 3)


def painting(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Soft borders and the strokes of a broad brush, which go across on half of the pictures and down on the others."""
    n = len(mask)
    canvas = over(blur(blur(small(mask))), ink, ground)
    strokes = noise(draw, n, SIZE, SIZE, 1) + 0.5 * noise(draw, n, SIZE, SIZE, 3)
    for _ in range(3):
        strokes = blur(strokes, (2,))
    down = (draw.random(n) < 0.5)[:, None, None, None]
    strokes = np.where(down, strokes.transpose(0, 2, 1, 3), strokes)
    return canvas + 0.17 * strokes + 0.08 * clouds(draw, n, 5, 3)


def neon(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A glowing line in the dark."""
    light = ink / ink.max(1, keepdims=True).clip(0.1)
    line = small(rim(mask))
    glow = blur(blur(blur(line)))
    lit = 0.12 * ground[:, None, None] + 0.7 * glow[..., None] * light[:, None, None]
    return lit + line[..., None] * (0.3 + 0.6 * light[:, None, None]) + 0.02 * noise(draw, len(mask), SIZE, SIZE, 3)


def noisy(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Pale, with the grain of a bad camera and some dead pixels."""
    n = len(mask)
    pale = 0.5 + 0.75 * (over(small(mask), ink, ground) - 0.5) + 0.15 * noise(draw, n, SIZE, SIZE, 3)
    dead = draw.random((n, SIZE, SIZE, 1), dtype=np.float32)
    return np.where(dead < 0.03, 0.0, np.where(dead > 0.97, 1.0, pale))


def mosaic(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Stones of 2×2 pixels, each of a shade of its own."""
    n, stones = len(mask), SIZE // 2
    coarse = mask.reshape(n, stones, FINE // stones, stones, FINE // stones).mean((2, 4))
    laid = over(coarse, ink, ground) + 0.13 * noise(draw, n, stones, stones, 1)
    return laid.repeat(2, 1).repeat(2, 2)


def picture(brush: Brush, mask: np.ndarray, ink: Any, ground: Any, draw: np.random.Generator) -> np.ndarray:
    """uint8 [n, SIZE, SIZE, 3]."""
    done = brush(mask, np.asarray(ink, np.float32), np.asarray(ground, np.float32), draw)
    return np.rint(np.clip(done, 0, 1) * 255).astype(np.uint8)
