"""Several frozen encoders of pictures as one backbone: a head reads what the heads of all of them would read, side by side.

Each encoder gets a picture as its own image processor makes it. None of them has a place for parts, so that nothing below the
head changes in a run, unless their own weights are trained: what they make of a picture is computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from weft.backbones import trace as tracing
from weft.backbones.backbone import TEXT_TOWER, Backbone
from weft.backbones.model_site import Site
from weft.backbones.options import Options
from weft.backbones.pixels import picture_shape, values_of
from weft.errors import UserError

TASKS = ("auto", "classification", "regression")
"""Tasks of a linear head over rows."""


class SideBySideConfig(PretrainedConfig):
    model_type = "side-by-side"


class SideBySide(PreTrainedModel):
    """
    Attributes:
        encoders: their models, each without its head, and without a text tower. read: of each, the module whose input is what is
            read of it; "" = it embeds pictures.

    Args:
        backbones: of the encoders, whose models are taken apart. classes: how many the head tells apart.
    """

    config_class = SideBySideConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, backbones: Sequence[Backbone], classes: int):
        config = SideBySideConfig()
        config.num_labels = classes
        super().__init__(config)
        self.encoders = nn.ModuleList(b.model for b in backbones)
        self.read = ["" if b.names is not None else b.heads[0].name for b in backbones]
        for b in backbones:
            for site in b.heads:
                b.model.set_submodule(site.name, nn.Identity())
            for name in TEXT_TOWER if b.names is not None else ():
                if hasattr(b.model, name):
                    setattr(b.model, name, None)
        self.classifier = nn.Linear(sum(b.features for b in backbones), classes)

    def forward(
        self, pixel_values: Tensor | None = None, image_embeds: Tensor | None = None, **others: Tensor
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values, others: of :meth:`embed_images`, or image_embeds: [n, d], what that gives.
        """
        if image_embeds is None:
            assert pixel_values is not None
            image_embeds = self.embed_images(pixel_values, **others)
        return ImageClassifierOutput(logits=self.classifier(image_embeds))

    def embed_images(self, pixel_values: Tensor, **others: Tensor) -> Tensor:
        """[n, d] what the heads of all encoders would read, in their order.

        Args:
            pixel_values: [n, 3, H, W] of the first encoder; others: of the further ones, by
                :func:`weft.backbones.pixels.values_of`.
        """
        inputs = {values_of(0): pixel_values} | others
        found = []
        for i, (encoder, place) in enumerate(zip(self.encoders, self.read, strict=True)):
            own = inputs[values_of(i)]
            found.append(head_input(encoder, place, own) if place else encoder.embed_images(own))  # type: ignore[operator]
        return torch.cat(found, -1)


def head_input(encoder: nn.Module, place: str, pixel_values: Tensor) -> Tensor:
    """What goes into the module at a place of an encoder."""
    caught: list[Tensor] = []

    def catch(_m: nn.Module, args: Any, _out: Any) -> None:
        caught.append(args[0])

    with tracing.hooked({encoder.get_submodule(place): catch}):
        encoder(pixel_values)
    return caught[-1]


def check(name: str, options: Options) -> None:
    """
    Raises:
        UserError: these options are not for several encoders.
    """
    if options.task not in TASKS:
        raise UserError(
            f'backbone "{name}" is several encoders under one head, which does nothing else than --task classification or '
            "regression: leave --task out, or give a single --model."
        )
    if options.blocks or options.roles or options.head:
        raise UserError("blocks, roles and head correct the description of one backbone: give a single --model with them.")


def joined(name: str, classes: int, options: Options, encoders: Sequence[Backbone]) -> Backbone:
    """One backbone of several.

    Args:
        name: what sentences call it. options: that its encoders were loaded with. encoders: they are taken apart.

    Raises:
        UserError: one of them reads no pictures, or not one vector of each.
    """
    for encoder in encoders:
        if encoder.reads != "images":
            raise UserError(
                f'backbone "{encoder.name}" reads {encoder.reads}, and only encoders of pictures go side by side: leave it out '
                f'of "{name}", or use it alone.'
            )
    model: Any = SideBySide(encoders, classes)
    model.eval().requires_grad_(False)
    model.classifier.to(device=encoders[0].device, dtype=encoders[0].dtype)  # the encoders are where and as they should be
    for encoder, place in zip(encoders, model.read, strict=True):
        tried = tracing.pictures(*picture_shape(encoder.model.config, encoder.processor)[1:])["pixel_values"]
        tried = tried.to(encoder.device, encoder.dtype)
        with torch.no_grad():
            read = head_input(encoder.model, place, tried) if place else encoder.model.embed_images(tried)
        if read.shape != (len(tried), encoder.features):
            raise UserError(
                f'the head of backbone "{encoder.name}" reads more than one vector of a picture, so that it can\'t stand beside '
                f'others: leave it out of "{name}", or use it alone.'
            )
    d = model.classifier.in_features
    below = [f"encoders.{i}." for i in range(len(encoders))]
    heads = [{s.name for s in e.heads} for e in encoders]
    return Backbone(
        name=name,
        hub_id=None,
        path="+".join(e.path for e in encoders) if all(e.path for e in encoders) else "",
        weight_hash=hashlib.sha256("".join(e.weight_hash for e in encoders).encode()).hexdigest(),
        model=model,
        tokenizer=None,
        blocks=[],
        shared_blocks=False,
        tuple_blocks=0,
        row_arguments=frozenset(),
        linears=[],
        norms=[],
        heads=[Site("classifier", "head", d, classes, block=None, bias=True)],
        bottlenecks=[],
        d=d,
        pools="all",
        originals={
            at + n: v
            for at, e, own in zip(below, encoders, heads, strict=True)
            for n, v in e.originals.items()
            if n.rpartition(".")[0] not in own
        },
        max_length=0,
        notes=tuple(dict.fromkeys(n for e in encoders for n in e.notes)),
        reads="images",
        picture_tokens=sum(e.picture_tokens for e in encoders),
        embedding=Site("encoders", "embedding", d, d, block=None),
        options=options,
        fresh=frozenset(at + n for at, e in zip(below, encoders, strict=True) for n in e.fresh),
        encoders=tuple(encoders),
    )
