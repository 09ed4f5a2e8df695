"""A model that is already in memory becomes a backbone: frozen, compared with its checkpoint, and described by what it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.backbones import describe, hardware, quantised, timm_model, tokenizer_fit
from weft.backbones import trace as tracing
from weft.backbones.backbone import TEXT_TOWER, Backbone, Piece
from weft.backbones.fill_table import of_nothing
from weft.backbones.finding import hash_weights
from weft.backbones.model_site import Site
from weft.backbones.options import FILL, LANGUAGE, Options
from weft.backbones.pixels import picture_shape
from weft.backbones.quantised import Quantisation
from weft.backbones.vocabulary import vocabulary
from weft.checks import checkpoints
from weft.checks.checkpoints import Shape
from weft.data.rows import BOTH
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.clip import ClassNames


def describe_model(
    model: Any,
    tokenizer: Any,
    missing: Collection[str],
    *,
    resized: Mapping[str, tuple[Shape, Shape]] = MappingProxyType({}),
    unread: Collection[str] = (),
    notes: Sequence[str] = (),
    processor: Any = None,
    names: ClassNames | None = None,
    classes: Sequence[str] | None = None,
    name: str,
    hub_id: str | None = None,
    path: str = "",
    digest: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    options: Options | None = None,
    by: Quantisation | None = None,
    pieces: tuple[Piece, ...] = (),
) -> Backbone:
    """Freeze and describe a Hugging Face classification model that is already in memory.

    Args:
        missing, resized, unread: of its checkpoint, see :class:`weft.backbones.reading.Read`. notes: on its files. by: what has
            quantised it. classes: their names, where they are told apart by words for them. pieces: of several checkpoints.

    Raises:
        UserError: the checkpoint or the tokenizer does not belong to the model, or its structure can't be told.
    """
    options = options or Options()
    endings = options.endings
    config = model.config
    language, filling = options.task in LANGUAGE, options.task == FILL
    headless = language or filling or names is not None
    apart = bool(getattr(config, "is_encoder_decoder", False))
    if apart and not language:
        raise UserError(
            f'backbone "{name}" is an encoder-decoder: use it with --task generation, or choose an encoder (BERT …) or a decoder '
            "(LLaMA …)."
        )
    model.eval()
    model.requires_grad_(False)
    fresh = {*missing, *resized}  # transformers leaves whatever the memory held in some of them
    checkpoints.finite(name, [(n, p) for n, t in model.state_dict().items() if n not in fresh for p in quantised.inner(t)])
    notes = list(notes)
    if tokenizer is not None:
        notes += tokenizer_fit.fitting(name, tokenizer, model if names is None else model.text_model)
    for each in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        if getattr(each, "use_cache", False):  # T5's decoder has a configuration of its own
            each.use_cache = False
    own_padding = getattr(config, "pad_token_id", None)
    if tokenizer is not None and names is None:
        # a decoder's head finds the last token of a row by the padding id, which must be the one that rows are padded with
        config.pad_token_id = tokenizer.pad_token_id
        if language and getattr(model, "generation_config", None) is not None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    seeing = language and processor is not None  # a tower of pictures in front of a language model
    sizes = getattr(config, "text_config" if seeing else "vision_config", config)  # those of the tower that reads the rows
    base = model.base_model if names is None else model.vision_model
    if seeing:
        base = model.model.language_model
        options = replace(options, template=options.prompt or model.TEMPLATE)
    in_front: str = getattr(model, "in_front", "")
    text: tuple[str, ...] = model.TOWER if seeing else (in_front,) if in_front else () if names is None else TEXT_TOWER
    prefix = next(n for n, m in model.named_modules() if m is base)
    layers = int(getattr(sizes, "num_hidden_layers", 0) or 0)
    if apart and options.blocks:
        raise UserError("an encoder-decoder has two lists of blocks, which are found by themselves: leave --blocks out.")
    stacks = describe.stacks(model) if apart else {}
    if apart:
        tokenizer_fit.starts(name, model)
    blocks = [b for stack in stacks.values() for b in stack]
    whole = names is not None and model.whole
    if not (blocks or whole):
        blocks = describe.find_blocks(base, prefix, layers, options.blocks, getattr(sizes, "depths", ()))
    other = (*text, prefix) if whole else text  # modules that are no places for parts, or those of the text tower
    describe.check_endings(model, blocks, endings)
    notes += checkpoints.unread(describe.stack(blocks), len(blocks), unread)
    wanted = options.heads
    if not wanted and config.model_type == timm_model.KIND:
        wanted = tuple(f"{prefix}.{n}" for n in timm_model.head(base))
    heads = [] if headless else describe.head_sites(model, prefix, fresh, wanted, text)
    own = {h.name for h in heads}
    both = processor is not None and names is None and tokenizer is not None
    inputs = {} if processor is None or seeing else tracing.pictures(*picture_shape(config, processor)[1:])
    if processor is None or both:
        inputs = {n: t[: tracing.ROWS] for n, t in inputs.items()} | tracing.words(model)
    lost = {n for n in fresh if n.rsplit(".", 1)[0] not in own}
    outside = {n for n in lost if describe.block_index(n, blocks) is None}
    if outside:
        lost -= tracing.idle(model, inputs if names is None else inputs | {"input_ids": names.ids()}, outside)
    if filling and any(not n.startswith(prefix + ".") for n in lost):
        raise UserError(
            f'the checkpoint of "{name}" has no masked-language head, which fills in words: choose another --model, such as '
            "docs-mlm or roberta-base."
        )
    checkpoints.whole(name, lost & set(missing), {n: sizes for n, sizes in resized.items() if n in lost})
    if not heads and not headless:
        raise UserError(f'backbone "{name}" has no classification head that Weft can train: name its modules with --head.')
    norms = describe.norm_sites(model, blocks, own, other)
    kept = own | {s.name for s in norms}
    originals = {
        n: p.detach().float().clone()
        for n, p in model.named_parameters()
        if n not in fresh and (n.endswith("bias") or n.rsplit(".", 1)[0] in kept)
    }
    reads_out = vocabulary(name, model, inputs) if language or filling else None
    if filling:
        from weft.backbones import fill  # with transformers, which takes seconds to import

        inputs = fill.prepared(name, model, tokenizer, options.label_words, classes or (), reads_out, inputs)
    extra = {} if names is None else {"text_embeds": model.embed_texts(names.ids()).detach()}
    seen = tracing.untraced(model, inputs | extra) if whole else tracing.trace(model, blocks, inputs | extra, text)
    common = [s.name for s in norms if s.bias and s.name in seen.common]
    notes += [f"the bias of {n} is common to all rows of a batch, so it stays frozen." for n in common]
    longest = 0 if processor is not None and not both else tokenizer_fit.longest_row(name, model, tokenizer, blocks[0], inputs)
    segments = longest > 0 and "token_type_ids" in tokenizer.model_input_names
    if segments and not tracing.takes(model, blocks[0], inputs | {"token_type_ids": inputs["attention_mask"]}):
        segments = False
        notes.append("the backbone knows one kind of segment: both texts of a pair are read as the same kind.")
    if by is not None:
        quantised.check(name, model, blocks, by)
    placed = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    if not (placed or quantised.is_quantised(model)):  # where they are, and as they are: neither can be moved
        hardware.move(model, device or torch.device("cpu"), dtype)
    found = Backbone(
        name=name,
        hub_id=hub_id,
        path=path,
        weight_hash=digest or hash_weights("", model),
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        shared_blocks=seen.shared,
        chained_blocks=seen.chained,
        staged_blocks=seen.staged,
        maps=seen.maps,
        map_starts=seen.starts,
        convolutions=describe.convolution_sites(model, blocks, seen.reader) if seen.maps else [],
        spread=seen.spread,
        more_tokens=seen.longer,
        tuple_blocks=seen.tuple_blocks,
        row_arguments=seen.row_arguments | (tracing.row_arguments(model, blocks, inputs) if language else frozenset()),
        linears=describe.linear_sites(model, blocks, seen.common, endings, stacks),
        norms=[s for s in norms if s.name not in seen.common],
        reader=Site(in_front, "words", model.get_input_embeddings().num_embeddings, seen.d, None) if in_front else seen.reader,
        heads=heads,
        bottlenecks=seen.bottlenecks,
        d=seen.d,
        pools=seen.pools,
        originals=originals,
        max_length=longest,
        segments=segments,
        own_padding=own_padding,
        own_head=bool(resized),
        notes=tuple(notes),
        outer=describe.outer_sites(
            model, blocks, own | seen.common | seen.idle | ({reads_out.name} if reads_out else set()), other
        ),
        reads=BOTH if both else "texts" if processor is None else "images",
        processor=processor,
        picture_tokens=0 if processor is None else model.features(_one(model, processor)).shape[1] if seeing else seen.tokens,
        names=names,
        options=options,
        vocabulary=reads_out if language else None,
        encoder_decoder=apart,
        quantised="" if by is None else str(by),
        fresh=frozenset(fresh),
        connector=model.connector() if seeing else None,
        pieces=pieces,
        in_front=in_front,
    )
    if names is not None:
        describe.text_tower(found, endings)
    if filling and options.calibrate:
        with torch.no_grad():
            found.model.base_logits = model(**found.to_model(of_nothing(found).collate(np.zeros(1, np.int64)))).logits[0]
    return found


def _one(model: Any, processor: Any) -> Tensor:
    """A picture that is all of one colour, as the model takes it."""
    shape = picture_shape(model.config, processor)
    return torch.zeros(1, *shape, dtype=model.dtype, device=model.device)
