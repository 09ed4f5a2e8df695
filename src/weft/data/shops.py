"""``shops``: what the customers of two shops take, one thing after the other, drawn without a download.

A thing is called by what it is made like, what it is for, and what it is, such as "vintage baking tray" or "vintage baking
stickers". The shops have no thing and no customer in common, but words: whoever takes something for one purpose often takes
something for the purpose that follows it next, in both shops alike, and customers have purposes and looks that they like. So
what titles tell in the large shop is worth something in the small one, whose sequences are few and short.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from weft.data.rows import Source, fingerprint
from weft.data.sequences import Event, source

LOOKS = ("blue", "red", "wooden", "steel", "ceramic", "travel", "vintage", "mini")
PURPOSES = (
    "coffee", "tea", "baking", "grilling", "painting", "knitting", "gardening", "writing", "camping", "cleaning", "lighting",
    "storage",
)  # fmt: skip
SHOPS = {  # what there is, how many different things, how many customers, and how many items they take on average
    "household": (("mug", "tray", "jar", "towel", "stand"), 240, 300, 9.0),
    "stationery": (("notebook", "stickers", "poster", "stamp", "kit"), 160, 120, 6.0),
}
FOLLOWING = 0.5
"""How often the next purpose is the one that follows; else the customer's own tastes tell."""
FEWEST = 5


@cache
def shops() -> Source:
    """The rows of both, with the shop as natural key."""
    from weft.tensors.keyed import numpy_generator

    events: list[Event] = []
    titles: dict[tuple[str, str], str] = {}
    follows = numpy_generator(0, "shops", "follows").permutation(len(PURPOSES))
    for shop, (kinds, things, customers, taken) in SHOPS.items():
        draw = numpy_generator(0, "shops", shop)
        every = [(a, b, c) for a in range(len(LOOKS)) for b in range(len(PURPOSES)) for c in range(len(kinds))]
        chosen = [every[i] for i in np.sort(draw.choice(len(every), things, replace=False))]
        look, purpose = (np.array([thing[i] for thing in chosen]) for i in (0, 1))
        sold = draw.gamma(1.0, size=things)  # some things are taken more often than others
        for i, (a, b, c) in enumerate(chosen):
            titles[shop, f"{i:03d}"] = f"{LOOKS[a]} {PURPOSES[b]} {kinds[c]}"
        for customer in range(customers):
            tastes = draw.dirichlet(np.full(len(PURPOSES), 0.3))
            liked = np.isin(look, draw.choice(len(LOOKS), 2, replace=False))
            wanted, last = int(draw.choice(len(PURPOSES), p=tastes)), -1
            for step in range(FEWEST + int(draw.poisson(taken - FEWEST))):
                weight = sold * np.where(liked, 4.0, 1.0) * np.where(purpose == wanted, 1.0, 0.002)
                weight[last if last >= 0 else slice(0, 0)] = 0.0
                last = int(draw.choice(things, p=weight / weight.sum()))
                events.append(Event(shop, f"{customer:03d}", f"{last:03d}", float(step)))
                own = int(draw.choice(len(PURPOSES), p=tastes))
                wanted = int(follows[wanted]) if draw.random() < FOLLOWING else own
    found = source("shops", events, titles, notes=("shops: what customers of two shops take, drawn by Weft.",))
    splits = {"train": found.train, "test": found.test, "validation": found.validation}
    return replace(found, fingerprint=fingerprint(found.classes, splits))
