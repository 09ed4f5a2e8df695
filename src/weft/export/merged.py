"""A whole model in which what was trained is part of the weights: a folder that transformers loads without PEFT.

An adapter is merged in float32, whole weights take the place of the base's. Either is compared, rounded once to the type that is
saved, and compared again as it lies on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from weft.adaptation.head import Head
from weft.adaptation.norm import Norm
from weft.adaptation.norm_statistics import Statistics
from weft.adaptation.weights import Weights
from weft.backbones import trace
from weft.backbones.pixels import picture_shape
from weft.errors import UserError, WeftError, nearest
from weft.export import language_card, peft_files, peft_prompts
from weft.export.about import About
from weft.export.card import card
from weft.export.predictor import Predictor, load
from weft.export.trained import Trained
from weft.export.write import TOLERANCE, ExportReport, notes
from weft.storage import files

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = {torch.float32: TOLERANCE, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of the saved model's logits from the adapter's, as a share of the largest logit (at least 1).

bfloat16 keeps 8 bits of a weight: what is lost is noise of 0.4 % of each that training has moved.
"""
ROWS, WIDTH = 4, 16  # of the rows that are compared


def merge(adapter: Path, folder: Path, precision: str = "auto") -> ExportReport:
    """Merge an exported model into its base, and save the result with tokenizer or image processor and README.

    Args:
        adapter: folder that :func:`weft.export.export` wrote. folder: an existing, empty one.
        precision: that is saved: ``auto`` (that of the base's files), ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        UserError: no such precision, a model with parts that no weights can stand for, or a base that is quantised or brings its
            own code.
        WeftError: the merged model predicts something else than the adapter.
    """
    if precision not in ("auto", *PRECISIONS):
        choices = ", ".join(["auto", *PRECISIONS])
        raise UserError(f'unknown precision "{precision}": use {choices}.{nearest(precision, PRECISIONS)}')
    about = About.read(adapter)
    if about.base.code:
        raise UserError(
            "the base of this model brings its own Python code, which a merged folder would lack: leave --merged out."
        )
    model = load(adapter, device="cpu", precision="float32")
    backbone = model.backbone
    by_peft = about.kind == "peft" and peft_prompts.alone(model.trained) is None
    if not by_peft and not whole_weights(model.trained):
        raise UserError(
            f"the model of {about.method['slug']} has parts that are not merged into the weights of its base: leave --merged out."
        )
    kind = peft_files.plain_class(backbone)
    if kind is None:
        raise UserError(
            f"the base of this model is loaded by a class of Weft's own ({type(backbone.model).__name__}), which transformers "
            "lacks: leave --merged out."
        )
    config = stored_config(backbone)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            "the base of this model is quantised, and what was learnt may be smaller than the steps of its weights: leave "
            "--merged out."
        )
    dtype = PRECISIONS.get(precision) or _of_files(config)
    inputs = rows(backbone)
    made = (_with_adapter if about.kind == "peft" else _with_weights)(adapter, model, about, inputs)
    whole, expected = made.model, made.expected
    difference, tolerance = _apart(expected, peft_files.logits_of(whole, backbone, inputs), TOLERANCE)
    if not difference <= tolerance:  # NaN is no agreement
        raise _other(folder, difference, tolerance)
    _save(whole.to(dtype), about, backbone, folder)
    again = _loaded(folder, kind)
    saved = again.state_dict()
    if odd := [n for n, t in whole.state_dict().items() if n not in saved or not torch.equal(t.float(), saved[n].float())]:
        raise WeftError(f"the model merged into {folder} has another {odd[0]} when it is loaded again: use the adapter.")
    difference, tolerance = _apart(expected, peft_files.logits_of(again, backbone, inputs), ROUNDING[dtype])
    if not difference <= tolerance:
        if dtype == torch.float32:
            raise _other(folder, difference, tolerance)
        raise UserError(
            f"rounded to {_name(dtype)}, this model predicts something else (logits move by {difference:.2g}, {tolerance:.2g} is "
            "allowed): save it with --precision float32, or leave --merged out."
        )
    said = replace(about, kind="merged")
    adapted = about.kind == "peft"
    how = "with the adapter merged into them" if adapted else "as they were trained"
    told = [*notes(about), f"Its weights are {_name(dtype)}, {how}."]
    if about.writes and dtype != torch.float32:
        told.append(
            f"Rounding moves its logits by {difference:.2g} at most, where {'the adapter' if adapted else 'training'} moves "
            f"those of the base by {made.learnt:.2g}: --precision float32 rounds nothing."
        )
    code = language_card.merged(about, backbone, kind) if about.writes else lines(kind)
    files.write(folder / "README.md", card(said, told, code, "transformers").encode())
    names = sorted(p.name for p in folder.iterdir())
    base = about.base
    return ExportReport(
        "merged", about.view, about.client, base.reference, base.sha256, ROWS, difference, tolerance, files=names, notes=told
    )


@dataclass(frozen=True)
class _Made:
    """A whole model in float32.

    Attributes:
        expected: logits of what it was made from. learnt: the largest difference to those of the base, of a model that writes.
    """

    model: Any
    expected: Tensor
    learnt: float


def _with_adapter(adapter: Path, model: Predictor, about: About, inputs: dict[str, Tensor]) -> _Made:
    """The base with a PEFT adapter merged into it, by PEFT."""
    backbone, learnt = model.backbone, 0.0
    plain = peft_files.plain_model(adapter, backbone, about)
    expected = peft_files.logits_of(plain, backbone, inputs)
    if about.writes:
        with plain.disable_adapter():
            learnt, _ = _apart(expected, peft_files.logits_of(plain, backbone, inputs), TOLERANCE)
    return _Made(plain.merge_and_unload(), expected, learnt)


def whole_weights(trained: Trained) -> bool:
    """Whether all of it can stand in the place of the base's own weights."""
    replaced = all(type(part) in (Weights, Norm, Head, Statistics) for part in trained.parts.values())
    return trained.rule is None and replaced and all(weight == 1.0 for weight in trained.use.values())


@torch.no_grad()
def _with_weights(adapter: Path, model: Predictor, about: About, inputs: dict[str, Tensor]) -> _Made:
    """The base with trained weights in the place of its own."""
    backbone, trained, learnt = model.backbone, model.trained, 0.0
    expected = trained.read(backbone, inputs)
    whole = peft_files.plain_base(adapter, backbone, about)
    if about.writes:
        learnt, _ = _apart(expected, peft_files.logits_of(whole, backbone, inputs), TOLERANCE)
    sites = {site.name: site for part in trained.parts.values() for site in part.sites(backbone)}
    norms: dict[tuple[str, str], dict[str, Tensor]] = {}  # what batch norms go by
    for name, value in trained.values.items():
        part, site, role = name.split("/")
        assert isinstance(value, Tensor)
        if isinstance(trained.parts[part], Statistics):
            norms.setdefault((part, site), {})[role] = value
        else:
            whole.get_parameter(sites[site].parameter(role)).copy_(value)
    for (part, site), values in norms.items():
        by = cast(Statistics, trained.parts[part]).held(values)
        for buffer, value in (("running_mean", by.mean), ("running_var", by.var)):
            whole.get_buffer(sites[site].parameter(buffer)).copy_(value)
    return _Made(whole, expected, learnt)


def lines(plain_class: str) -> str:
    """Of the README of what writes no text."""
    return f"from transformers import {plain_class}\n\nmodel = {plain_class}.from_pretrained(FOLDER).eval()\n"


def stored_config(backbone: Backbone) -> Any:
    """The configuration in the base's files."""
    from transformers import AutoConfig

    with peft_files.plainly(Path(backbone.path)):
        return AutoConfig.from_pretrained(backbone.path)


def _of_files(config: Any) -> torch.dtype:
    """What a base's files name as the type of their weights; float32 where that is none of those we save."""
    found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    found = found if isinstance(found, torch.dtype) else getattr(torch, str(found), None)
    return found if found in ROUNDING else torch.float32


def rows(backbone: Backbone) -> dict[str, Tensor]:
    """Inputs to compare on: rows of tokens drawn from the whole vocabulary, or pictures of noise."""
    pictures = {}
    if backbone.processor is not None:
        pictures = trace.pictures(*picture_shape(backbone.model.config, backbone.processor)[1:])
    if backbone.reads == "images":
        return pictures
    size = backbone.model.get_input_embeddings().num_embeddings
    width = min(WIDTH, backbone.max_length)
    ids = torch.randint(size, (ROWS, width), generator=torch.Generator().manual_seed(0))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | {n: t[:ROWS] for n, t in pictures.items()}
    return found | ({"decoder_input_ids": ids.flip(0)} if backbone.encoder_decoder else {})


def _apart(expected: Tensor, found: Tensor, share: float) -> tuple[float, float]:
    """The largest difference of logits, and what is allowed."""
    return float((found - expected).abs().max()), share * max(float(expected.abs().max()), 1.0)


def _other(folder: Path, difference: float, tolerance: float) -> WeftError:
    return WeftError(
        f"the model merged into {folder} predicts something else than its adapter (logits differ by {difference:.2g}, "
        f"{tolerance:.2g} would be rounding): use the adapter."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _save(whole: Any, about: About, backbone: Backbone, folder: Path) -> None:
    """Weights, configuration, and what reads rows."""
    from transformers import AutoImageProcessor, AutoTokenizer

    if about.writes:
        whole.generation_config = language_card.generation(about, backbone)
    with peft_files.plainly(folder):
        whole.save_pretrained(str(folder))
        if backbone.processor is not None:
            AutoImageProcessor.from_pretrained(backbone.path, backend="pil").save_pretrained(str(folder))
        if backbone.tokenizer is not None:
            tokenizer = AutoTokenizer.from_pretrained(backbone.path)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = backbone.tokenizer.pad_token
            tokenizer.save_pretrained(str(folder))


def _loaded(folder: Path, kind: str) -> Any:
    """The folder by transformers alone, in float32."""
    import transformers

    with peft_files.plainly(folder):
        return getattr(transformers, kind).from_pretrained(str(folder), dtype=torch.float32).eval()
