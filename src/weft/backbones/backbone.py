"""A frozen foundation model, its tokenizer and a description of where parts can sit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from weft.backbones import site_choice
from weft.backbones.model_site import Site
from weft.backbones.options import Options
from weft.backbones.vocabulary import Vocabulary
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.clip import ClassNames
    from weft.backbones.cut import Cut
    from weft.backbones.flops import Flops


Embedding = Literal["image", "patches"]
"""What a tower makes of a picture: one vector, or one of each patch."""

TEXT_TOWER = ("text_model", "text_projection")
"""Modules of a backbone with two towers that read class names."""


@dataclass(frozen=True)
class Piece:
    """One of the checkpoints that a backbone is put together of: its name, id, place and hash, as of :class:`Backbone`."""

    name: str
    hub_id: str | None
    path: str
    weight_hash: str


@dataclass
class Backbone:
    """A frozen model ready for parts; see :func:`weft.backbones.load`.

    Attributes:
        name: what the user typed. hub_id: canonical Hugging Face id or None. path: folder or id it was loaded from.
        weight_hash: sha256 over the weight files (over the tensors if there are no files).
        model: Hugging Face model whose output has logits, eval mode, nothing requires a gradient.
        reads: ``texts`` or ``images``. tokenizer, processor: for either; None where there is none.
        blocks: paths of the transformer blocks in order. shared_blocks: one block is called several times (ALBERT).
        chained_blocks: blocks hand on more than their hidden states, so that none can be left out.
        staged_blocks: tokens are merged between some of them, so that hidden states are of several shapes (Swin).
        maps: of a network of convolutions, (features, height, width) of what enters each block, and of what leaves the last.
        map_starts: a pass can start at any block of such a network. convolutions: all but the one that reads pictures.
        spread: numbers of a hidden state, in the mean over the blocks, for each of the last block's.
        more_tokens: of pictures, its blocks take tokens beside those of the patches.
        tuple_blocks: size of the tuple in which blocks return their hidden state; 0 = on its own.
        row_arguments: a block's arguments with an entry per row, or per row and head.
        linears, norms, heads, bottlenecks: sites by kind; outer: linear layers outside the blocks and the head.
        d: hidden size of the last block.
        reader: the token embedding (d_in = size of the vocabulary), or the convolution over patches.
        pools: which tokens the head reads: ``first``, ``last`` or ``all``; of maps ``mean`` (of all places) or ``all``.
        originals: float32 copies of all pretrained biases, of the weights of norms, and of a head that the checkpoint holds (the
            model itself may be in bfloat16).
        max_length: tokens of the longest row that it takes. segments: it tells the two texts of a pair apart by ids of their own.
        own_padding: padding id that its configuration names, before its tokenizer's took its place.
        own_head: its checkpoint has a head for another number of classes.
        picture_tokens: that a block sees of one picture, or of as many numbers as its maps have. options: it was loaded with.
        names: the class names as the text tower reads them, and text_linears, words: sites in that tower. Only of a backbone with
            two towers.
        embedding: of a whole image, from which a pass may begin: of a backbone with two towers, or of several encoders. encoders:
            these, side by side; their models are without heads. pieces: the checkpoints that the model is put together of, if
            these are several. in_front: path of a frozen language model in front of the blocks, which nothing changes; "" = none.
        connector: what brings pictures to the width of the words of a language model that reads them; None elsewhere.
        vocabulary: the output layer of a language model, None elsewhere. encoder_decoder: it is one; its blocks are those of the
            encoder, then those of the decoder. quantised: how its weights are, "" = not.
        fresh: parameters that the checkpoint lacks.
    """

    name: str
    hub_id: str | None
    path: str
    weight_hash: str
    model: Any
    tokenizer: Any
    blocks: list[str]
    shared_blocks: bool
    tuple_blocks: int
    row_arguments: frozenset[str]
    linears: list[Site]
    norms: list[Site]
    heads: list[Site]
    bottlenecks: list[Site]
    d: int
    pools: str
    originals: dict[str, Tensor]
    max_length: int
    notes: tuple[str, ...] = ()
    outer: list[Site] = field(default_factory=list)
    reader: Site | None = None
    reads: str = "texts"
    processor: Any = None
    picture_tokens: int = 0
    names: ClassNames | None = None
    text_linears: list[Site] = field(default_factory=list)
    words: Site | None = None
    embedding: Site | None = None
    chained_blocks: bool = False
    staged_blocks: bool = False
    maps: tuple[tuple[int, int, int], ...] = ()
    map_starts: bool = False
    convolutions: list[Site] = field(default_factory=list)
    spread: float = 1.0
    more_tokens: bool = False
    segments: bool = False
    own_padding: int | None = None
    own_head: bool = False
    options: Options = field(default_factory=Options)
    vocabulary: Vocabulary | None = None
    encoder_decoder: bool = False
    quantised: str = ""
    fresh: frozenset[str] = frozenset()
    encoders: tuple[Backbone, ...] = ()
    connector: Site | None = None
    pieces: tuple[Piece, ...] = ()
    in_front: str = ""
    _text_embeds: Tensor | None = field(default=None, init=False, repr=False)
    _attentions: list[Site] | None = field(default=None, init=False, repr=False)
    _flops: Flops | None = field(default=None, init=False, repr=False)
    _cut: Cut | None = field(default=None, init=False, repr=False)
    _modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._modules = dict(self.model.named_modules())

    def module(self, name: str) -> nn.Module:
        return self._modules[name]

    def weight(self, site: Site) -> Tensor:
        """The matrix [d_out, d_in] of a linear layer of whatever kind, quantised ones too, at least float32 and on the CPU."""
        module = self.module(site.name)
        own = getattr(module, "weight", None)
        if type(own) is nn.Parameter and type(module) is nn.Linear and own.is_floating_point():
            return own.detach().to("cpu", torch.promote_types(own.dtype, torch.float32))
        with torch.no_grad():  # what it makes of each unit vector
            unit = torch.eye(site.d_in, dtype=self.dtype, device=self.device)
            found: Tensor = module(unit) - module(torch.zeros_like(unit[:1]))
        return found.mT.to("cpu", torch.promote_types(found.dtype, torch.float32))

    def check_separate(self) -> None:
        """
        Raises:
            UserError: blocks can't be left out.
        """
        self.check_blocks()
        if not self.separate_blocks:
            staged = "merges patches between its blocks" if self.staged_blocks else ""
            staged = "has maps of other sizes from block to block" if self.maps else staged
            why = (
                "calls one block many times"
                if self.shared_blocks
                else staged or "hands more than hidden states from block to block"
            )
            raise UserError(
                f'backbone "{self.name}" {why}, so that clients cannot hold subsets of its blocks: choose another --model, such '
                "as minilm."
            )

    def joint_embedding(self) -> Site:
        """Where parts sit that change the embedding of a whole image, before it is normalised.

        Raises:
            UserError: images are compared with no texts.
        """
        if self.embedding is None or self.names is None:
            raise UserError(
                f'backbone "{self.name}" has no joint embedding of images and texts: use a CLIP, such as --model glyph-clip, '
                "with --task similarity."
            )
        return self.embedding

    def check_connector(self) -> Site:
        """Where parts sit that stand between a tower of pictures and a language model.

        Raises:
            UserError: there is no such place.
        """
        if self.connector is None:
            raise UserError(
                f'backbone "{self.name}" has no connector between a tower of pictures and a language model: use a LLaVA, such as '
                "--model glyph-llava, with --task generation and questions about pictures."
            )
        return self.connector

    def check_blocks(self) -> None:
        """
        Raises:
            UserError: there are none that parts could sit in.
        """
        if self.blocks:
            return
        if self.encoders:
            raise UserError(
                f'the encoders of backbone "{self.name}" are taken as they are, with no place for parts inside: use a method '
                "that trains a head on what they make of a picture, such as fedpcl, or one of them alone as --model."
            )
        raise UserError(
            f'the tower of pictures of backbone "{self.name}" is taken as a whole, with no place for parts inside: use a '
            "method of prompts for class names, such as promptfl, or another --model."
        )

    def check_linears(self) -> None:
        """
        Raises:
            UserError: no block has a linear layer.
        """
        if not (self.linears or self.text_linears):
            self.check_blocks()
            convolutions = len(self.convolutions) + len(self.patches)
            raise UserError(
                f'backbone "{self.name}" has no linear layers in its blocks, but {convolutions} convolutions, {len(self.norms)} '
                f"norms and {'a' if self.heads else 'no'} head: tune something else (--method fedavg --set "
                "method.tune.kind=norm, ssf, bottleneck, weights or head), or choose another --model."
            )

    def check_more_tokens(self) -> None:
        """
        Raises:
            UserError: nothing can be put among the tokens of its rows.
        """
        self.check_blocks()
        if self.reads != "images" or self.shared_blocks:
            raise UserError(
                f'backbone "{self.name}" has no picture patches to put tokens among: use an image transformer, such as '
                "--model glyph-vit."
            )
        if self.maps:
            raise UserError(
                f'backbone "{self.name}" has maps of convolutions and no tokens: use an image transformer such as --model '
                "glyph-vit, or a method that adds no tokens."
            )
        if not self.more_tokens:
            raise UserError(
                f'the blocks of backbone "{self.name}" take the patches of a picture, each in its place, and no tokens beside '
                "them: use an image transformer such as --model glyph-vit, or a method that adds no tokens."
            )

    @property
    def entries(self) -> list[Site]:
        """What goes into each block."""
        return [
            Site(name, "entry", s.d_in, s.d_in, block=i)
            for i, (name, s) in enumerate(zip(self.blocks, self.bottlenecks, strict=True))
        ]

    @property
    def patches(self) -> list[Site]:
        """The convolution over the patches of a picture, if there is one."""
        return [] if self.reader is None or self.reader.role != "patches" else [self.reader]

    @property
    def attentions(self) -> list[Site]:
        """Attention modules that take keys and values beside those of their tokens, see :mod:`weft.backbones.attending`."""
        if self._attentions is None:
            from weft.backbones import attending

            self._attentions = attending.of(self)
        return self._attentions

    @property
    def features(self) -> int:
        """How many numbers of a row its head reads, or class names are compared with."""
        return self.heads[0].d_in if self.embedding is None else self.embedding.d_in

    @property
    def flops(self) -> Flops:
        """What its blocks compute of a row; counted when it is first asked for."""
        if self._flops is None:
            from weft.backbones import flops

            self._flops = flops.flops(self)
        return self._flops

    @property
    def cut(self) -> Cut:
        """Its parameters before, in and behind its blocks; found when it is first asked for.

        Raises:
            UserError: blocks can't be cut off.
        """
        if self._cut is None:
            from weft.backbones import cut

            self._cut = cut.cut(self)
        return self._cut

    @property
    def separate_blocks(self) -> bool:
        """Whether a pass can leave blocks out, or start at any of them from its hidden states."""
        return not (self.shared_blocks or self.chained_blocks or self.staged_blocks)

    @property
    def starts_anywhere(self) -> bool:
        """Whether a pass can start at any block, from what enters it."""
        return self.separate_blocks or self.map_starts

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def precision(self) -> str:
        """What it computes in, and how its weights are quantised: ``bfloat16, int8 by torchao``."""
        return ", ".join(filter(None, (str(self.dtype).removeprefix("torch."), self.quantised)))

    @property
    def kind(self) -> str:
        return str(self.model.config.model_type)

    def own_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """[n, T] of all that blocks see of rows, 0 where it is padding, by the model's inputs; None = nothing is.

        Behind the tokens of a text are those of the picture that it is about.
        """
        mask = inputs.get("attention_mask")
        if mask is None or "pixel_values" not in inputs:
            return mask
        return torch.cat([mask, mask.new_ones(len(mask), self.picture_tokens)], 1)

    def to_model(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A table's inputs on the model's device, pictures in its precision."""
        return {n: t.to(self.device, self.dtype if t.is_floating_point() else None) for n, t in inputs.items()}

    @torch.no_grad()
    def embed(self, inputs: dict[str, Tensor], what: Embedding) -> Tensor:
        """Embeddings of pictures, not normalised: [n, 1, e]; where there are two towers [n, V, e] of their patches too."""
        if what == "patches":
            return self.model.embed_patches(**inputs)
        return self.model.embed_images(**inputs).unsqueeze(1)

    def class_inputs(self) -> dict[str, Tensor]:
        """What the model takes beside the rows of a batch: the frozen embeddings of the class names, [C, e]."""
        if self.names is None:
            return {}
        if self._text_embeds is None or self._text_embeds.device != self.device:
            with torch.no_grad():
                self._text_embeds = self.model.embed_texts(self.names.ids().to(self.device))
        return {"text_embeds": self._text_embeds}

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def own(self) -> dict[str, tuple[str, ...]]:
        """Pretrained parameters outside the head and what is in front, by the first of their names -> all the names of each:
        several if it is tied.
        """
        names: dict[int, list[str]] = {}
        for name, p in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(p), []).append(name)
        apart = {h.name for h in self.heads}
        return {
            some[0]: tuple(some)
            for some in names.values()
            if not self.fresh.issuperset(some) and apart.isdisjoint(n.rpartition(".")[0] for n in some)
            if not (self.in_front and some[0].startswith(f"{self.in_front}."))
        }

    def sites(self, spec: str, blocks: Iterable[int] | None = None) -> list[Site]:
        """Linear sites that ``spec`` names, see :func:`weft.backbones.site_choice.chosen`."""
        return site_choice.chosen(self, spec, blocks)


def frozen_fingerprint(backbone: Backbone) -> str:
    """A hash of every frozen tensor: tests compare it before and after training."""
    import hashlib

    from weft.backbones.quantised import inner

    h = hashlib.sha256()
    for name, p in backbone.model.state_dict().items():
        h.update(name.encode())
        for plain in inner(p):
            h.update(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
