"""Load a backbone by short name, hub id or local folder: frozen, described, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from weft.backbones import gguf_file, hardware, quantised
from weft.backbones.backbone import Backbone
from weft.backbones.finding import checked_hash, config_of, described, find, is_arrays, open_clip_folder, stored
from weft.backbones.freeze import describe_model
from weft.backbones.options import FILL, GENERATION, LANGUAGE, NEXT_ITEM, VQ_REC, Options
from weft.backbones.prompts import spelt_out
from weft.backbones.reading import similar, transformers_model
from weft.backbones.short_names import encoders
from weft.checks import checkpoints
from weft.errors import UserError

UNDESCRIBED = "there is no tokenizer_config.json beside the backbone: its special tokens and longest row are guessed."


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
            target = hardware.pick_device(device)
            return _vault(several, name, many, target, hardware.pick_precision(precision, target), attention, options, say)
        side_by_side.check(name, options)
        given: dict[str, Any] = {"device": device, "precision": precision, "attention": attention, "task": task, "say": say}
        given |= {"classes": list(map(str, range(many))), "trust_remote_code": trust_remote_code}  # no encoder is told the names
        return side_by_side.joined(name, many, options, [load(one, **given) for one in several])
    where, known, hub_id = find(name, say)
    target = hardware.pick_device(device)
    dtype = hardware.pick_precision(precision, target)
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
    hardware.attend(model, attention, target, dtype, task)
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
    hardware.attend(read.model, attention, device, dtype, options.task)
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
