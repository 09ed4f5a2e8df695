"""A model of soft words or a prefix, and a head, as a PEFT adapter for prompt learning, and back.

PEFT keeps what its encoders make: the vectors [m, d] of PROMPT_TUNING and P_TUNING, and the keys and values of all blocks side by
side [p, blocks · 2 · heads · d] of PREFIX_TUNING. It puts vectors before the first token of a row. A prefix lies in its cache,
and positions of a row begin behind it: where they are rotary, the row sees keys that are turned by p as it sees Weft's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch as st
import torch
from torch import Tensor

from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.adaptation.soft_words import SoftWords
from weft.backbones import rotary
from weft.export import peft_adapter, peft_files
from weft.export.about import damaged
from weft.export.trained import Trained
from weft.storage import files
from weft.tasks.kinds import MASKED
from weft.tensors.forms import Value

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site
    from weft.export.about import Base

CONFIG, TENSORS = FILES = peft_adapter.FILES
ROOT, MADE = "base_model.", "prompt_embeddings"
KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Settings of transformers beyond whose number of tokens a token sees nothing."""


def alone(trained: Trained) -> str | None:
    """The part of soft words, or the prefix, that is all there is beside a head; None if there is more, or none."""
    names = [name for name, part in trained.parts.items() if type(part) is not Head]
    if len(names) != 1 or type(trained.parts[names[0]]) not in (SoftWords, Prefix):
        return None
    return names[0] if trained.rule is None and trained.use[names[0]] == 1.0 else None


def against(trained: Trained, backbone: Backbone) -> str | None:
    """Why PEFT would not predict the same, None where nothing is known to stand against it.

    Args:
        trained: of a part that is :func:`alone`.
    """
    name = alone(trained)
    assert name is not None
    part = trained.parts[name]
    if peft_files.plain_class(backbone) is None:
        return "its base is of a class of Weft's own, which nobody loads without Weft"
    if not peft_files.whole(trained, backbone):
        return "the head of its base is no part of it"
    if isinstance(part, SoftWords):
        if part.behind(backbone):
            return "PEFT puts soft words before a row's first token, and these stand behind it"
        if backbone.pools == "last":
            return "PEFT hands on vectors and no tokens, in which the head finds no end of a shorter row: it would read padding"
        return None
    if backbone.options.task == MASKED or backbone.reads != "texts" or backbone.encoder_decoder:
        return "PEFT has prefixes for no such model"
    return _against_prefix(part, backbone)  # type: ignore[arg-type]


def _against_prefix(part: Prefix, backbone: Backbone) -> str | None:
    sites, config = backbone.attentions, backbone.model.config
    if [s.block for s in sites] != list(range(len(backbone.blocks))) or any(
        s.d_in != s.d_out or s.d_in % _heads(backbone) for s in sites
    ):
        return "PEFT knows one attention in each block, with keys as wide as values"
    reach = min((n for n in (getattr(config, w, None) for w in WINDOWS) if n), default=None)
    if reach is not None and reach < backbone.max_length + part.tokens:
        return f"this model's attention reaches {reach} tokens back, which hides a prefix from the end of a longer row in PEFT"
    if rotary.turned(backbone, {s.name: torch.zeros(_heads(backbone), 1, s.d_in // _heads(backbone)) for s in sites}, 1) is None:
        return (
            "PEFT moves the positions of a row behind the prefix, and this model's are not those that can be turned back (rotary)"
        )
    return None


def _heads(backbone: Backbone) -> int:
    """Of keys, as PEFT counts them."""
    config = backbone.model.config
    found: Any = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
    return int(found)


def write(trained: Trained, backbone: Backbone, base: Base, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        trained: with nothing :func:`against` it.
    """
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    name = alone(trained)
    assert name is not None
    part, config = trained.parts[name], dict[str, Any]()
    if isinstance(part, SoftWords):
        made, heads = _words(trained, name, part, backbone), getattr(backbone.model.config, "num_attention_heads", None)
        network = part.encoder == "mlp"
        kind: Any = PromptEncoderConfig if network else PromptTuningConfig
        config = {"token_dim": made.shape[1]} | ({"encoder_hidden_size": part.hidden} if network else {})
    else:
        assert isinstance(part, Prefix)
        made, heads, kind = _prefix(trained, name, part, backbone), _heads(backbone), PrefixTuningConfig
        config = {"token_dim": backbone.attentions[0].d_in}
        if part.hidden is not None:
            config |= {"prefix_projection": True, "encoder_hidden_size": part.hidden}
    kind(
        inference_mode=True,
        task_type=peft_files.WORDS.get(str(peft_files.plain_class(backbone))),
        base_model_name_or_path=base.reference,
        modules_to_save=peft_files.head_modules(backbone) or None,
        num_virtual_tokens=part.tokens,
        num_transformer_submodules=1,
        num_attention_heads=heads,
        num_layers=len(backbone.blocks),
        **config,
    ).save_pretrained(str(folder))
    files.write(folder / CONFIG, (folder / CONFIG).read_bytes())  # durably
    tensors = {MADE: made.float().contiguous()}
    for tensor, value in trained.values.items():
        owner, site, role = tensor.split("/")
        if owner != name:
            assert isinstance(value, Tensor)
            tensors[f"{ROOT}{site}.{role}"] = value.contiguous()
    files.write(folder / TENSORS, st.save(tensors, {"format": "pt"}))


def _made(trained: Trained, name: str, part: Part, backbone: Backbone, site: Site, x: Any, out: Any) -> Tensor:
    """What a part makes at a site, in float64."""
    at = {**{role: f"{site.called}/{role}" for role in part.tensors(backbone, site)}, **part.elsewhere(backbone, site)}
    w = {role: trained.values[f"{name}/{place}"] for role, place in at.items()}
    return part.apply(backbone.module(site.name), {r: v.double()[None] for r, v in w.items()}, x, out)  # type: ignore[union-attr]


def _words(trained: Trained, name: str, part: SoftWords, backbone: Backbone) -> Tensor:
    """[m, d]."""
    (site,) = part.sites(backbone)
    ids = torch.arange(-1, -1 - part.tokens, -1)[None, None]
    return _made(trained, name, part, backbone, site, ids, torch.zeros(*ids.shape, site.d_out, dtype=torch.float64))[0, 0]


def _prefix(trained: Trained, name: str, part: Prefix, backbone: Backbone) -> Tensor:
    """[p, blocks · 2 · H · d]."""
    sites, heads = backbone.attentions, _heads(backbone)
    pairs = {s.name: _made(trained, name, part, backbone, s, None, None)[0].split([s.d_in, s.d_out], -1) for s in sites}
    keys = {site: key.unflatten(-1, (heads, -1)).transpose(0, 1) for site, (key, _) in pairs.items()}
    turned = rotary.turned(backbone, keys, part.tokens)
    assert turned is not None
    return torch.cat([t for s in sites for t in (turned[s.name].transpose(0, 1).flatten(1), pairs[s.name][1])], -1)


def wrote(folder: Path) -> bool:
    """Whether an adapter is one for prompt learning."""
    return peft_adapter.type_in(folder) in KINDS


def read(folder: Path, backbone: Backbone) -> Trained:
    """The model in an adapter that :func:`write` wrote: plain soft words or a prefix of its own for each block, and a head.

    Raises:
        UserError: the files are damaged, or do not fit the backbone.
    """
    values = dict[str, Value]()
    try:
        prefix = files.parsed(files.read(folder / CONFIG))["peft_type"] == "PREFIX_TUNING"
        tensors = st.load(files.read(folder / TENSORS))
        made = tensors.pop(MADE)
        for name, whole in tensors.items():
            site, role = name.removeprefix(ROOT).rsplit(".", 1)
            values[f"head/{site}/{role}"] = whole
        if prefix:
            part: Part = Prefix(len(made))
            values |= _of_blocks(made, part.sites(backbone), backbone)
        else:
            part = SoftWords(len(made), "front")
            values |= {f"prompt/{s.called}/words": made for s in part.sites(backbone)}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise damaged(folder, e) from e
    trained = Trained({"prompt": part, "head": Head()}, values, {"prompt": 1.0})
    peft_files.check_names(trained, backbone, folder)
    return trained


def _of_blocks(made: Tensor, sites: list[Site], backbone: Backbone) -> dict[str, Value]:
    """Undo :func:`_prefix`.

    Raises:
        ValueError: the backbone has other positions.
    """
    widths = [width for s in sites for width in (s.d_in, s.d_out)]
    parts = made.split(widths, -1)
    keys = {s.name: key.unflatten(-1, (_heads(backbone), -1)).transpose(0, 1) for s, key in zip(sites, parts[::2], strict=True)}
    turned = rotary.turned(backbone, keys, -len(made))
    if turned is None:
        raise ValueError("its base has no rotary positions")
    found: dict[str, Value] = {f"prompt/{n}/key": k.transpose(0, 1).flatten(1).float() for n, k in turned.items()}
    return found | {f"prompt/{s.name}/value": value.contiguous() for s, value in zip(sites, parts[1::2], strict=True)}
