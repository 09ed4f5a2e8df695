"""The table of a run: its rows in the form that the backbone takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.backbones.fill_table import filled
from weft.backbones.item_table import items
from weft.backbones.masked_table import masked
from weft.backbones.options import FILL, MASKED
from weft.backbones.picture_reader import FAMILIES
from weft.backbones.pictured_replies import pictured_replies
from weft.backbones.pictured_table import pictured
from weft.backbones.pixels import Pixels, pixels
from weft.backbones.preference_table import preferences
from weft.backbones.reply_table import replies
from weft.backbones.several_table import several
from weft.backbones.token_table import Tokens, tokenize
from weft.data.rows import BOTH
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.views import Views
    from weft.data.rows import Rows

Table = Tokens | Pixels


def tabulate(backbone: Backbone, rows: Rows, max_length: int = 128, views: Views | None = None) -> Table:
    """Tokenise texts (cut to ``max_length`` tokens), bring pictures to size, or count items.

    Args:
        views: of pictures, to be trained on in their place.

    Raises:
        UserError: a backbone for texts was given pictures or sequences of items, or the other way round.
    """
    have = rows.read_as
    if backbone.reads != have:
        fitting = {
            "texts": "minilm",
            "images": "glyph-clip or glyph-vit",
            BOTH: "glyph-vilt or vilt-b32" if rows.answers is None else FAMILIES,
            "items": "vq-rec or vq-rec-small",
        }
        raise UserError(
            f'the data are {have}, but backbone "{backbone.name}" reads {backbone.reads}: choose another --model, such as '
            f"{fitting[have]}, or other --data."
        )
    if have == "images":
        return pixels(backbone, rows, views)
    if views is not None:
        raise UserError("views are crops of pictures, and the data are not pictures: leave --views out.")
    if have == BOTH and rows.answers is not None:
        return pictured_replies(backbone, rows, max_length)
    if have == BOTH:
        return pictured(backbone, rows, max_length)
    if rows.items is not None:
        return items(backbone, rows, max_length)
    if backbone.options.task == FILL:
        return filled(backbone, rows, max_length)
    if backbone.options.task == MASKED:
        return masked(backbone, rows, max_length)
    if rows.tasks is not None:
        return several(backbone, rows, max_length)
    if rows.rejected is not None:
        return preferences(backbone, rows, max_length)
    return tokenize(backbone, rows, max_length) if rows.answers is None else replies(backbone, rows, max_length)
