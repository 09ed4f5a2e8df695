"""Letters to find on pictures: the pictures of glyph_questions, and the box of one letter on each."""

from __future__ import annotations

import numpy as np

from weft.data import load
from weft.data.glyph_boxes import glyph_boxes
from weft.data.glyph_questions import COLOURS, EACH, TESTED, scenes
from weft.data.glyphs import LEFT_OUT, STYLES
from weft.experiment.layers import resolve
from weft.tasks.boxes import box_of


def test_each_box_is_that_of_the_letter_or_the_colour_that_is_asked_for() -> None:
    source = load("glyph_boxes")
    every = scenes()
    parts = [rows for rows in (source.train, source.test, source.unseen[LEFT_OUT]) if rows is not None]
    assert sorted(i for rows in parts for i in rows.ids.tolist()) == list(range(len(every)))
    named = set()
    for rows in parts:
        assert rows.texts is not None
        assert rows.answers is not None
        assert rows.keys is not None
        assert rows.images is not None
        for at, (text, answer, style) in enumerate(zip(rows.texts, rows.answers, rows.keys, strict=True)):
            scene, what = every[rows.ids[at]], text.removeprefix("find the ").removesuffix(".").split()[0]
            (glyph,) = (g for g in scene.glyphs if what in (g.letter, g.colour))
            assert box_of(answer) == tuple(map(round, glyph.box))
            assert scene.style == style
            named.add(what in COLOURS)
            if at % 50 == 0:
                assert np.array_equal(np.asarray(rows.images[at]), scene.picture)
    assert named == {True, False}


def test_the_pictures_of_tests_are_those_of_the_questions() -> None:
    source, asked = glyph_boxes(), load("glyph_questions")
    assert source.test is not None
    assert asked.test is not None
    assert {i // 4 for i in asked.test.ids.tolist()} == set(source.test.ids.tolist())
    assert len(source.train) == (len(STYLES) - 1) * (EACH - TESTED)


def test_its_backbone_is_chosen_by_itself() -> None:
    assert resolve({"data": "glyph_boxes"}).experiment.model == "glyph-llava"
    assert resolve({"data": "glyph_questions", "task": "generation"}).experiment.model == "glyph-llava"
    assert resolve({"data": "glyph_questions"}).experiment.model == "glyph-vilt"
