"""Rows that a method is not for are told before its backbone is loaded, with other data and no other backbone to choose."""

from __future__ import annotations

import pytest

from weft.backbones.short_names import usual
from weft.data.rows import BOTH
from weft.errors import UserError
from weft.methods import registry
from weft.runs import fitting_rows

INFOS = registry.infos()
HOME = {"minilm": "texts", "docs-mlm": "texts", "glyph-vit": "images", "glyph-clip": "images", "glyph-llava": BOTH}
HOME["vq-rec-small"] = "items"


@pytest.mark.parametrize("slug", sorted(INFOS))
def test_what_a_method_s_usual_backbone_reads_fits(slug: str) -> None:
    fitting_rows.check(slug, INFOS[slug].needs, HOME[usual(INFOS[slug].needs)])


@pytest.mark.parametrize(
    ("slug", "have", "sentence"),
    [
        (
            "pilot",
            "texts",
            "the data are texts, and pilot is for questions about pictures with answers to write: choose other --data",
        ),
        ("fedclip", "texts", "fedclip is for pictures: choose other --data, such as glyphs, or another --method"),
        ("pfcr", "texts", "pfcr is for sequences of items"),
        ("fedprompt", "images", "the data are images, and fedprompt is for texts"),
    ],
)
def test_other_data_or_another_method_are_proposed(slug: str, have: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        fitting_rows.check(slug, INFOS[slug].needs, have)
    assert "--model" not in str(caught.value)
