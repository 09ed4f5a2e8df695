"""Outlines of things, as polygons: what the pictures of ``drawings`` are made of.

A drawing is a list of strokes in the order in which they are laid down: a polygon, float [k, 2] within about -1 … 1 (x to the
right, y down), and whether it is filled (True) or cut out of what lies there. Proportions are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Strokes = list[tuple[np.ndarray, bool]]
Outline = Callable[[np.random.Generator], Strokes]


def points(*xy: float) -> np.ndarray:
    return np.array(xy, float).reshape(-1, 2)


def ellipse(x: float, y: float, rx: float, ry: float, first: float = 0.0, last: float = 2 * np.pi) -> np.ndarray:
    """An ellipse, or its piece between two angles, which run clockwise from the right."""
    t = np.linspace(first, last, 33)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return points(left, top, right, top, right, bottom, left, bottom)


def regular(corners: int, radius: float = 1.0, inner: float | None = None) -> np.ndarray:
    """A regular polygon with a corner on top; with ``inner``, a star whose dents have that radius."""
    n = corners if inner is None else 2 * corners
    t = -np.pi / 2 + 2 * np.pi * np.arange(n) / n
    r = np.full(n, radius)
    if inner is not None:
        r[1::2] = inner
    return np.stack([r * np.cos(t), r * np.sin(t)], 1)


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A straight line of some width."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    a, b = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([a + across, b + across, b - across, a - across])


def circle(draw: np.random.Generator) -> Strokes:
    return [(ellipse(0, 0, 1, 1), True)]


def square(draw: np.random.Generator) -> Strokes:
    return [(rectangle(-0.85, -0.85, 0.85, 0.85), True)]


def triangle(draw: np.random.Generator) -> Strokes:
    tip = draw.uniform(-0.25, 0.25)
    return [(points(tip, -0.95, 0.95, 0.8, -0.95, 0.8), True)]


def star(draw: np.random.Generator) -> Strokes:
    return [(regular(5, 1.05, draw.uniform(0.38, 0.5)), True)]


def cross(draw: np.random.Generator) -> Strokes:
    w = draw.uniform(0.4, 0.6)
    return [(bar(0, -0.95, 0, 0.95, w), True), (bar(-0.95, 0, 0.95, 0, w), True)]


def ring(draw: np.random.Generator) -> Strokes:
    r = draw.uniform(0.5, 0.65)
    return [(ellipse(0, 0, 1, 1), True), (ellipse(0, 0, r, r), False)]


def arrow(draw: np.random.Generator) -> Strokes:
    w, neck, head = draw.uniform(0.3, 0.45), draw.uniform(-0.05, 0.25), draw.uniform(0.6, 0.8)
    return [(bar(-1, 0, neck + 0.05, 0, w), True), (points(neck, -head, 1.05, 0, neck, head), True)]


def heart(draw: np.random.Generator) -> Strokes:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    return [(np.stack([x, y + 0.1], 1), True)]


def moon(draw: np.random.Generator) -> Strokes:
    away = draw.uniform(0.45, 0.6)
    return [(ellipse(0, 0, 1, 1), True), (ellipse(away, -0.1, 0.8, 0.85), False)]


def diamond(draw: np.random.Generator) -> Strokes:
    w = draw.uniform(0.55, 0.75)
    return [(points(0, -1.1, w, 0, 0, 1.1, -w, 0), True)]


def house(draw: np.random.Generator) -> Strokes:
    door = draw.uniform(-0.35, 0.1)
    return [
        (rectangle(-0.75, -0.1, 0.75, 0.95), True),
        (points(0, -1.05, 1.05, -0.05, -1.05, -0.05), True),
        (rectangle(door, 0.3, door + 0.35, 0.95), False),
    ]


def tree(draw: np.random.Generator) -> Strokes:
    trunk = draw.uniform(0.12, 0.18)
    wide = draw.uniform(0.7, 0.85)
    return [
        (rectangle(-trunk, 0.4, trunk, 1.05), True),
        (points(0, -1.1, 0.7 * wide, -0.25, -0.7 * wide, -0.25), True),
        (points(0, -0.65, wide, 0.55, -wide, 0.55), True),
    ]


def fish(draw: np.random.Generator) -> Strokes:
    fat = draw.uniform(0.45, 0.6)
    return [
        (ellipse(0.2, 0, 0.85, fat), True),
        (points(-0.45, 0, -1.1, -0.6, -0.95, 0, -1.1, 0.6), True),
        (ellipse(0.65, -0.12, 0.13, 0.13), False),
    ]


def flower(draw: np.random.Generator) -> Strokes:
    petals = int(draw.integers(5, 7))
    turned = 2 * np.pi * np.arange(petals) / petals - np.pi / 2
    found: Strokes = [(ellipse(0.68 * np.cos(t), 0.68 * np.sin(t), 0.37, 0.37), True) for t in turned]
    return [*found, (ellipse(0, 0, 0.5, 0.5), True), (ellipse(0, 0, 0.25, 0.25), False)]


def cup(draw: np.random.Generator) -> Strokes:
    low = draw.uniform(0.45, 0.6)
    return [
        (ellipse(0.5, -0.1, 0.55, 0.5), True),
        (ellipse(0.5, -0.1, 0.32, 0.27), False),
        (points(-0.95, -0.75, 0.6, -0.75, low - 0.15, 0.85, -low - 0.2, 0.85), True),
    ]


def umbrella(draw: np.random.Generator) -> Strokes:
    dent = [(ellipse(x, 0.05, 0.34, 0.2), False) for x in (-0.68, 0.0, 0.68)]
    top = (ellipse(0, 0.05, 1.05, draw.uniform(0.9, 1.1), np.pi, 2 * np.pi), True)
    hook = [(ellipse(0.2, 0.75, 0.28, 0.3, 0, np.pi), True), (ellipse(0.2, 0.72, 0.1, 0.12, 0, np.pi), False)]
    return [top, *dent, *hook, (bar(0, -0.2, 0, 0.8, 0.17), True)]


def crown(draw: np.random.Generator) -> Strokes:
    dent = draw.uniform(-0.1, 0.15)
    zigzag = points(-0.95, 0.8, -1.05, -0.7, -0.5, dent, 0, -0.9, 0.5, dent, 1.05, -0.7, 0.95, 0.8)
    return [(zigzag, True), (rectangle(-0.95, 0.4, 0.95, 0.52), False)]


def key(draw: np.random.Generator) -> Strokes:
    tooth = draw.uniform(0.3, 0.45)
    return [
        (ellipse(-0.6, 0, 0.48, 0.48), True),
        (ellipse(-0.6, 0, 0.22, 0.22), False),
        (bar(-0.2, 0, 1.05, 0, 0.22), True),
        (rectangle(0.85, 0, 1.05, tooth + 0.1), True),
        (rectangle(0.45, 0, 0.65, tooth), True),
    ]


def boat(draw: np.random.Generator) -> Strokes:
    sail = draw.uniform(0.75, 0.95)
    return [
        (points(-1.05, 0.35, 1.05, 0.35, 0.65, 0.95, -0.65, 0.95), True),
        (points(0.05, -1.05, sail, 0.2, 0.05, 0.2), True),
        (points(-0.08, -0.8, -0.08, 0.2, -0.75 * sail, 0.2), True),
    ]


def mushroom(draw: np.random.Generator) -> Strokes:
    stalk = draw.uniform(0.25, 0.38)
    return [
        (ellipse(0, 0.05, 1.05, 1.0, np.pi, 2 * np.pi), True),
        (points(-stalk, 0, stalk, 0, stalk + 0.1, 0.95, -stalk - 0.1, 0.95), True),
        (ellipse(-0.4, -0.4, 0.17, 0.15), False),
        (ellipse(0.35, -0.5, 0.2, 0.17), False),
    ]


OUTLINES: dict[str, Outline] = {
    f.__name__: f
    for f in (
        circle, square, triangle, star, cross, ring, arrow, heart, moon, diamond,
        house, tree, fish, flower, cup, umbrella, crown, key, boat, mushroom,
    )
}  # fmt: skip
