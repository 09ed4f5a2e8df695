"""A tokenizer against the model that reads its tokens, and rows against the tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from weft.errors import UserError

SMALL, FOREIGN = 0.5, 0.1  # of the embedding's rows: a tokenizer that uses fewer is said, or refused
FEW, MOST = 0.1, 0.5  # of tokens or rows that tell the model nothing: said, or refused


def vocabulary(name: str, ids: Mapping[str, int], special: Collection[str], rows: int) -> list[str]:
    """Every token has a row of the embedding, and the tokenizer is that of the model.

    Args:
        ids: token -> its id. special: tokens that stand for no text. rows: of the embedding.

    Raises:
        UserError: ids beyond the embedding, or a tokenizer without a vocabulary to speak of.
    """
    beyond = sorted((i, token) for token, i in ids.items() if i >= rows)
    if beyond:
        i, token = beyond[0]
        raise UserError(
            f'the tokenizer of "{name}" has ids up to {beyond[-1][0]:,}, but the embedding has only {rows:,} rows: "{token}" '
            f"({i:,}) has none; resize it (model.resize_token_embeddings(len(tokenizer))) and save both, or take the added "
            "tokens out of the tokenizer."
        )
    ordinary = len(ids.keys() - set(special))
    if ordinary < FOREIGN * rows:
        raise UserError(
            f'the tokenizer of "{name}" knows {ordinary:,} tokens, but the embedding has {rows:,} rows: its files are missing or '
            "another model's; put the model's own (tokenizer.json, tokenizer_config.json) beside its config.json."
        )
    if ordinary < SMALL * rows:
        return [f"the tokenizer knows {ordinary:,} tokens and the embedding has {rows:,} rows: is it this model's own?"]
    return []


@dataclass(frozen=True)
class Reading:
    """What a tokenizer made of a table of texts.

    Attributes:
        rows: how many. empty: of them, without any token but special ones. lost: those whose every token is unknown.
        tokens: special ones left out. unknown: of them.
    """

    rows: int = 0
    empty: int = 0
    lost: int = 0
    tokens: int = 0
    unknown: int = 0


def legible(name: str, found: Reading) -> None:
    """
    Raises:
        UserError: a tokenizer knows next to nothing of the texts.
    """
    if found.lost + found.empty > MOST * found.rows or found.unknown > MOST * found.tokens:
        raise UserError(
            f'the tokenizer of "{name}" makes nothing of these texts: {found.empty:,} of {found.rows:,} rows are empty, and '
            f"{found.unknown:,} of {found.tokens:,} tokens are unknown to it; choose another --model, or another column by "
            "--text."
        )


def known(found: Reading) -> list[str]:
    """What is said of texts that the tokenizer could not read."""
    notes = []
    if found.empty + found.lost:
        notes.append(f"{found.empty + found.lost:,} of {found.rows:,} texts hold no token that the backbone knows.")
    if found.unknown > FEW * found.tokens:
        notes.append(f"{found.unknown / found.tokens:.0%} of the tokens of these texts are unknown to the backbone.")
    return notes


def alike(names: Sequence[str], rows: Sequence[Sequence[int]]) -> list[str]:
    """Names of classes that a tokenizer makes the same tokens of: nothing tells them apart in a text tower.

    Args:
        rows: token ids of each name.
    """
    first: dict[tuple[int, ...], str] = {}
    notes = []
    for name, row in zip(names, rows, strict=True):
        other = first.setdefault(tuple(row), name)
        if other is not name:
            notes.append(f'the classes "{other}" and "{name}" are the same tokens to the text tower: it can\'t tell them apart.')
    return notes


def padding(tokenizer: int, model: int | None) -> list[str]:
    """Rows are padded with the id that the model takes for padding.

    Args:
        tokenizer: id that rows are padded with. model: what its configuration says; None = nothing.
    """
    if model in (None, -1, tokenizer):
        return []
    return [f"the tokenizer pads with the id {tokenizer}, and config.json says {model}: the tokenizer's is used."]


def length(name: str, longest: int, framing: int) -> None:
    """A row has room for text.

    Args:
        longest: tokens of a row. framing: special tokens of a pair.

    Raises:
        UserError: it has not.
    """
    if longest <= framing:
        raise UserError(
            f'backbone "{name}" takes rows of {longest} tokens at most, which leaves no room for text: correct '
            "max_position_embeddings in its config.json or model_max_length in its tokenizer_config.json."
        )
