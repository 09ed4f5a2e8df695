"""A PEFT LoRA adapter as values, whoever wrote it: low-rank changes by module, and modules that were saved whole.

PEFT's ΔW of a module is scale · B A, with scale = α/r, or α/√r with rsLoRA (Kalajdzievski, arXiv 2312.03732). ``rank_pattern``
and ``alpha_pattern`` give modules whose names end in a key another r and α.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch as st
import torch
from torch import Tensor

from weft.errors import UserError
from weft.export.about import NAME, About, check_hashes
from weft.storage import files
from weft.tensors.lowrank import LowRank

CONFIG, TENSORS = FILES = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", "lora_magnitude_vector"
MORE = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow's routing",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "lora_bias": "biases of LoRA",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "LoRA of bare parameters",
}
"""Settings of PEFT under which an adapter is more than scale · B A, and what they stand for."""
MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Start values of PEFT that are taken out of the base, which is another one then."""


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Attributes:
        folder: it was read from. config: contents of ``adapter_config.json``.
        low_rank: ΔW by the path of its module in the base, its factors as they are stored.
        saved: tensors of ``modules_to_save``, by their names in the base. about: what Weft wrote of it; None: it is PEFT's own.
    """

    folder: Path
    config: Mapping[str, Any]
    low_rank: Mapping[str, LowRank]
    saved: Mapping[str, Tensor]
    about: About | None

    @property
    def base(self) -> str:
        """The base as the adapter names it, ``""`` if it does not."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def sha256(self) -> str:
        """Of both its files, one after the other."""
        return files.sha256(b"".join(files.read(self.folder / name) for name in FILES))


def load(folder: str | os.PathLike[str]) -> Adapter:
    """The adapter in a folder that Weft exported or that PEFT saved, or of a finished run.

    Raises:
        UserError: there is none, it is damaged, or it is no plain LoRA.
    """
    from weft.export.predictor import model_folder

    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"{place} does not exist: give the folder of a PEFT adapter, or of a finished run.")
    place = model_folder(place)
    about = About.read(place) if (place / NAME).is_file() else None
    if about is not None and about.kind != "peft":
        raise UserError(f"{place} holds a model with parts that are no LoRA: give the folder of a PEFT LoRA adapter.")
    for name in FILES:
        if not (place / name).is_file():
            raise UserError(f"{place} has no {name}: give a folder that save_pretrained of PEFT or weft export wrote.")
    if about is not None:
        check_hashes(place, about)
    try:
        config = files.parsed(files.read(place / CONFIG))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} holds no object")
        _check_plain(place, config)
        low_rank, saved = parsed(config, st.load(files.read(place / TENSORS)))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{place} is damaged ({e}): save the adapter again with PEFT, or fetch it anew.") from e
    return Adapter(place, config, low_rank, saved, about)


def type_in(folder: Path) -> str | None:
    """What PEFT calls the kind of an adapter; None where its configuration is damaged: whoever reads it says what is wrong."""
    try:
        found = files.parsed(files.read(folder / CONFIG))["peft_type"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: it is more than, or something else than, scale · B A beside the weights of its base.
    """
    kind = config.get("peft_type")
    what = "" if kind == "LORA" else f"of PEFT's type {kind}"
    what = what or next((f"with {words}" for name, words in MORE.items() if config.get(name)), "")
    if not what and config.get("bias", "none") != "none":
        what = "with trained biases of the base"
    start = config.get("init_lora_weights")
    if not what and isinstance(start, str) and start.lower().startswith(MOVED):
        what = f"on a base that its start values ({start}) have changed"
    if what:
        raise UserError(f"{folder} is an adapter {what}, and not LoRA alone: give one of plain LoRA.")


def parsed(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """ΔW by module, and the tensors that were saved whole.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: these are none.
    """
    low_rank: dict[str, LowRank] = {}
    saved: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} is not finite")
        inner = name.removeprefix(ROOT)
        if inner.endswith(A):
            module = inner.removesuffix(A)
            low_rank[module] = _low_rank(config, module, value, tensors[name.removesuffix(A) + B])
        elif inner.endswith(B):
            if name.removesuffix(B) + A not in tensors:
                raise ValueError(f"{name} has no A")
        elif ".lora_" in inner and not (config.get("use_dora") and inner.endswith(f".{MAGNITUDE}")):
            raise ValueError(f"{name} is not LoRA of a linear layer")
        else:
            saved[inner] = value
    return low_rank, saved


def _low_rank(config: Mapping[str, Any], module: str, a: Tensor, b: Tensor) -> LowRank:
    rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = float(_of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"LoRA of {module} has {a.dim()} axes, and is not that of a linear layer")
    if rank != len(a) or not rank:
        raise ValueError(f"{CONFIG} says rank {rank} and {module} has {len(a)}")
    return LowRank(B=b, A=a, scale=alpha / _divisor(rank, bool(config.get("use_rslora"))))


def _divisor(rank: int, rslora: bool) -> float:
    """What PEFT divides α by."""
    return math.sqrt(rank) if rslora else float(rank)


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """What PEFT takes for a module: the value of the first key that its name ends in, as a regular expression."""
    for key, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as e:
            raise ValueError(f"{CONFIG} has a pattern {key} that is none ({e})") from e
    return usual


def write(
    folder: Path, low_rank: Mapping[str, LowRank], saved: Mapping[str, Tensor], use_rslora: bool = False, **config: Any
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, with patterns where modules differ in r or α.

    Args:
        low_rank: by module. saved: by name in the base. use_rslora, config: of ``peft.LoraConfig``, but for ranks and α.
    """
    from peft import LoraConfig

    tensors: dict[str, Tensor] = {}
    for name, one in low_rank.items():
        tensors[f"{ROOT}{name}{A}"] = one.A.contiguous()
        tensors[f"{ROOT}{name}{B}"] = one.B.contiguous()
    tensors |= {f"{ROOT}{name}": value.contiguous() for name, value in saved.items()}
    ranks = {name: value.rank for name, value in low_rank.items()}
    alphas = {name: value.scale * _divisor(value.rank, use_rslora) for name, value in low_rank.items()}
    rank, alpha = Counter(zip(ranks.values(), alphas.values(), strict=True)).most_common(1)[0][0]
    made = LoraConfig(
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it by r or √r: a float does
        use_rslora=use_rslora,
        rank_pattern={n: r for n, r in ranks.items() if r != rank},
        alpha_pattern={n: a for n, a in alphas.items() if a != alpha},
        lora_dropout=0.0,
        **config,
    )
    made.save_pretrained(str(folder))
    files.write(folder / CONFIG, (folder / CONFIG).read_bytes())  # durably
    files.write(folder / TENSORS, st.save(tensors, {"format": "pt"}))
