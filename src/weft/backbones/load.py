"""Load a backbone by short name, hub id or local folder: frozen, described, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.backbones import describe, gguf_file, quantised, timm_model
from weft.backbones import trace as tracing
from weft.backbones.backbone import TEXT_TOWER, Backbone, Piece, Site
from weft.backbones.fill_table import of_nothing
from weft.backbones.finding import checked_hash, config_of, described, find, hash_weights, is_arrays, open_clip_folder, stored
from weft.backbones.options import FILL, GENERATION, LANGUAGE, NEXT_ITEM, VQ_REC, Options
from weft.backbones.pixels import picture_shape
from weft.backbones.prompts import spelt_out
from weft.backbones.quantised import Quantisation
from weft.backbones.reading import similar, transformers_model
from weft.backbones.short_names import encoders
from weft.backbones.translators import shifting
from weft.backbones.vocabulary import vocabulary
from weft.checks import checkpoints, tokenizers
from weft.checks.checkpoints import Shape
from weft.data.rows import BOTH
from weft.errors import UserError, nearest

if TYPE_CHECKING:
    from weft.backbones.clip import ClassNames

USUAL_LENGTH = 512  # tokens of a row, where a configuration names no limit
TRIED_LENGTH = 8192  # what takes longer rows has no table of positions to run out of
UNDESCRIBED = "there is no tokenizer_config.json beside the backbone: its special tokens and longest row are guessed."
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: a device that this machine lacks.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if have["cuda"] else "mps" if have["mps"] else "cpu"
    kind = name.split(":")[0]
    if kind not in have:
        raise UserError(f'unknown device "{name}": use auto, cpu, cuda or mps.{nearest(name, have)}')
    if not have[kind]:
        raise UserError(f"this machine has no {kind} device that PyTorch can use; use --device cpu.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` = bfloat16 where the processor computes in it, else float32."""
    if name != "auto":
        if name not in PRECISIONS:
            raise UserError(f'unknown precision "{name}": use auto, {", ".join(PRECISIONS)}.{nearest(name, PRECISIONS)}')
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    caps = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(caps.get("avx512_bf16") or caps.get("amx_bf16") or caps.get("amx_tile"))


def load(
    name: str = "minilm",
    *,
    classes: int | Sequence[str] = 2,
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
    task: str = "auto",
    template: str = "",
    blocks: str = "",
    roles: str = "",
    head: str = "",
    trust_remote_code: bool = False,
    quantise: str = "none",
    device_map: str = "none",
    label_words: str = "",
    calibrate: bool = False,
    say: Callable[[str], None] | None = None,
) -> Backbone:
    """Load a frozen backbone that tells ``classes`` apart.

    Args:
        name: short name (``minilm``), Hugging Face hub id, a local folder written by ``save_pretrained``, or a file of arrays
            (``.npz``), see :mod:`weft.backbones.cifar_resnet`; of pictures, several side by side, joined by plus signs, see
            :mod:`weft.backbones.side_by_side`; so is a ViLT with a language model, see :mod:`weft.backbones.vault`.
        classes: how many, or their names (which a backbone with a text tower needs).
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: of the frozen weights and activations: ``auto``, ``float32``, ``bfloat16`` (``float64`` for tests).
        attention: attention kernel of transformers; ``auto`` = ``eager`` on a CPU (its fused kernel's backward pass is
            several times slower in bfloat16, measured, but for the long rows of language models), the model's own default
            elsewhere.
        task: what tells classes apart: ``classification``, a linear head; ``similarity``, the text tower of a CLIP and the
            names of the classes in ``template``; ``fill``, the words that a masked language model fills in; ``tokens``, a linear
            head for each token; ``auto``: similarity where there is a text tower; ``generation``: the tokens of an answer;
            ``next-item``: the network of :mod:`weft.backbones.vq_rec` for the items that the classes are.
        template, label_words, calibrate: see :class:`weft.backbones.options.Options`.
        blocks, roles, head: corrections where the description is wrong, see :class:`weft.backbones.options.Options`.
        quantise: ``int8`` or ``int4``, see :mod:`weft.backbones.quantised`; language models only.
        device_map: ``auto`` spreads the modules of a language model over all GPUs, see Accelerate.
        say: is told what takes long, see :func:`find`.

    Raises:
        UserError: unknown name, weights that can't be had, a corrupt packaged file, an architecture without blocks or head.
    """
    options = Options(task, spelt_out(template) if task == GENERATION else template, blocks, roles, head, label_words, calibrate)
    if task not in LANGUAGE and (quantise, device_map) != ("none", "none"):
        raise UserError("--quantise and --device-map are for language models: leave them out, or use --task generation.")
    if len(several := encoders(name)) > 1:
        from weft.backbones import side_by_side, vault  # with transformers, which takes seconds to import

        many = classes if isinstance(classes, int) else len(classes)
        if vault.meant(several):
            target = pick_device(device)
            return _vault(several, name, many, target, pick_precision(precision, target), attention, options, say)
        side_by_side.check(name, options)
        given: dict[str, Any] = {"device": device, "precision": precision, "attention": attention, "task": task, "say": say}
        given |= {"classes": list(map(str, range(many))), "trust_remote_code": trust_remote_code}  # no encoder is told the names
        return side_by_side.joined(name, many, options, [load(one, **given) for one in several])
    where, known, hub_id = find(name, say)
    target = pick_device(device)
    dtype = pick_precision(precision, target)
    names = None if isinstance(classes, int) else tuple(classes)
    if config_of(where).get("model_type") == VQ_REC:
        from weft.backbones import vq_rec  # with transformers, which takes seconds to import

        if task not in ("auto", NEXT_ITEM) or names is None:
            raise UserError(f'backbone "{name}" ranks what comes next in a sequence of items: use it with --task next-item.')
        return vq_rec.made(where, name, names, target, dtype, options, say)
    if task == NEXT_ITEM:
        raise UserError(
            f'backbone "{name}" knows no items: for --task next-item use vq-rec, vq-rec-small or a folder like theirs.'
        )
    by = quantised.quantisation(quantise, target)
    # a large one is never held in another precision; nor is one of float16, which overflows, tried out in it
    more: dict[str, Any] = {"dtype": dtype} if task in LANGUAGE else {}
    if by is not None:
        if config_of(where).get("quantization_config"):
            raise UserError(f'the checkpoint of "{name}" is quantised already: leave --quantise out.')
        more |= {"quantization_config": by.config(dtype), "device_map": {"": str(target)}}
    if device_map != "none":
        more |= {"device_map": device_map}
    if folder := open_clip_folder(where, task):
        from weft.backbones import open_clip_model  # with transformers, which takes seconds to import

        read = open_clip_model.read(folder, name, task)
    elif is_arrays(where):
        from weft.backbones import cifar_resnet  # with transformers, which takes seconds to import

        if task not in ("auto", "classification"):
            raise UserError(f'backbone "{name}" gives classes to pictures and nothing else: leave --task out.')
        read = cifar_resnet.read(Path(where), name, classes if isinstance(classes, int) else len(classes))
    else:
        read = transformers_model(
            where, name, classes if isinstance(classes, int) else len(classes), task, trust_remote_code, more=more
        )
    model = read.model
    quantised.differentiable(model)
    if any(p.is_meta for p in model.parameters()):
        raise UserError(f'backbone "{name}" does not fit into the memory of the devices: try --quantise, or a smaller one.')
    digest = checked_hash(where, known, model)
    checkpoints.numbers(name, stored(where), quantised=by is None and hasattr(model.config, "quantization_config"))
    notes = [] if read.tokenizer is None or folder or described(where) else [UNDESCRIBED]
    if (made := gguf_file.made(Path(where))) is not None:
        notes.append(made.note)
    attend(model, attention, target, dtype, task)
    class_names = None
    if similar(model):
        from weft.backbones.clip import ClassNames

        if names is None:
            raise UserError(f'backbone "{name}" compares images with the names of the classes: give them instead of a number.')
        longest = int(model.config.text_config.max_position_embeddings)
        class_names = ClassNames(read.tokenizer, names, options.sentence, longest, model.padded)
    if task == FILL and names is None:
        raise UserError(f'backbone "{name}" tells the classes apart by words: give their names instead of a number.')
    return describe_model(
        model,
        read.tokenizer,
        read.missing,
        resized=read.resized,
        unread=read.unread,
        notes=notes,
        processor=read.processor,
        names=class_names,
        classes=names if task == FILL else None,
        name=name,
        hub_id=hub_id or None,
        path=where,
        digest=digest,
        device=target,
        dtype=dtype,
        options=options,
        by=by,
    )


def _vault(
    several: Sequence[str],
    name: str,
    classes: int,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    options: Options,
    say: Callable[[str], None] | None,
) -> Backbone:
    """A ViLT with a language model in front, see :mod:`weft.backbones.vault`."""
    from weft.backbones import vault  # with transformers, which takes seconds to import

    read, pieces, notes = vault.read(several, name, classes, options.task, say)
    attend(read.model, attention, device, dtype, options.task)
    return describe_model(
        read.model,
        read.tokenizer,
        read.missing,
        resized=read.resized,
        unread=read.unread,
        notes=notes if described(pieces[1].path) else [*notes, UNDESCRIBED],
        processor=read.processor,
        name=name,
        path="+".join(piece.path for piece in pieces),
        digest=hashlib.sha256("".join(piece.weight_hash for piece in pieces).encode()).hexdigest(),
        device=device,
        dtype=dtype,
        options=options,
        pieces=pieces,
    )


def attend(model: Any, attention: str, device: torch.device, dtype: torch.dtype, task: str) -> None:
    """Have it attend by a kernel, as of :func:`load`."""
    if attention == "auto":  # the eager kernel takes its softmax in float32, too coarse for float64
        attention = "eager" if device.type == "cpu" and dtype != torch.float64 and task not in LANGUAGE else ""
    if attention:
        model.set_attn_implementation(attention)


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
        notes += fitting(name, tokenizer, model if names is None else model.text_model)
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
        starts(name, model)
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
    longest = 0 if processor is not None and not both else longest_row(name, model, tokenizer, blocks[0], inputs)
    segments = longest > 0 and "token_type_ids" in tokenizer.model_input_names
    if segments and not tracing.takes(model, blocks[0], inputs | {"token_type_ids": inputs["attention_mask"]}):
        segments = False
        notes.append("the backbone knows one kind of segment: both texts of a pair are read as the same kind.")
    if by is not None:
        quantised.check(name, model, blocks, by)
    placed = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    if not (placed or quantised.is_quantised(model)):  # where they are, and as they are: neither can be moved
        move(model, device or torch.device("cpu"), dtype)
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


def starts(name: str, model: Any) -> None:
    """
    Raises:
        UserError: nobody knows which token its decoder begins with.
    """
    try:
        shifting(model)(torch.zeros(1, 1, dtype=torch.long))
    except Exception as e:  # of whatever it lacks
        raise UserError(
            f'the configuration of backbone "{name}" names no token that its decoder begins with: set decoder_start_token_id '
            "in its config.json."
        ) from e


def fitting(name: str, tokenizer: Any, model: Any) -> list[str]:
    """Compare a tokenizer with the embedding that its tokens go to; notes."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return []
    if not isinstance(embedding, torch.nn.Embedding):  # CANINE hashes its characters
        return []
    own = tokenizer.init_kwargs.get("pad_token") is not None  # else the end of a text was taken for it
    told = getattr(model.config.get_text_config(), "pad_token_id", None)  # of a LLaVA its language model may say it alone
    notes = tokenizers.padding(tokenizer.pad_token_id, told) if own else []
    return notes + tokenizers.vocabulary(name, tokenizer.get_vocab(), tokenizer.all_special_tokens, embedding.num_embeddings)


def move(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Onto a device and into a precision, but for the frequencies of rotary positions: rounded to half precision they turn far
    tokens by other angles, and transformers keeps them in single precision too.
    """
    exact = {name: value for name, value in model.named_buffers() if name.endswith("inv_freq")}
    model.to(device=device, dtype=dtype)
    for name, value in exact.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, value.to(device, torch.promote_types(value.dtype, dtype)))


def longest_row(name: str, model: Any, tokenizer: Any, block: str, inputs: Mapping[str, Tensor]) -> int:
    """Tokens of the longest row that the model takes: as its configuration and tokenizer say, if that is true.

    A RoBERTa counts positions from behind its padding id, so that it takes fewer than it has.
    """
    config = getattr(model.config, "text_config", None) or model.config
    limit, named = int(getattr(config, "max_position_embeddings", 0) or USUAL_LENGTH), tokenizer.model_max_length
    limit = min(limit, int(min(named, 1 << 20)))
    if limit <= TRIED_LENGTH:
        limit = tracing.longest(model, block, inputs, limit)
    tokenizers.length(name, limit, tokenizer.num_special_tokens_to_add(pair=True))
    return limit
