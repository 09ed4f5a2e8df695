"""Load a backbone by short name, hub id or local folder: frozen, described, hashed."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from weft.backbones import describe
from weft.backbones.backbone import Backbone
from weft.backbones.names import KNOWN, Known
from weft.errors import UserError, nearest

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


def packaged_weights(known: Known) -> Path | None:
    """Folder of weights carried by an installed package, found from its file list without importing it."""
    if known.package is None:
        return None
    try:
        files = metadata.files(known.package) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    return None


def find(name: str) -> tuple[str, Known | None, str]:
    """Resolve ``--model``: (path or hub id to load, entry of the short-name table, canonical hub id or "")."""
    if name in KNOWN:
        known = KNOWN[name]
        packaged = packaged_weights(known)
        return (str(packaged) if packaged else known.hub_id), known, known.hub_id
    if os.path.isdir(name):
        if not (Path(name) / "config.json").exists():
            raise UserError(f'the folder "{name}" holds no config.json; give a folder saved by save_pretrained.')
        return name, None, ""
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name, None, name
    raise UserError(
        f'unknown model "{name}": give a short name ({", ".join(KNOWN)}), a hub id (owner/name) or a local folder.'
        f"{nearest(name, KNOWN)}"
    )


def hash_weights(path: str, model: Any) -> str:
    """sha256 over the weight files of a local folder or of a hub id's copy on this machine, else over the tensors."""
    h = hashlib.sha256()
    folder = path if os.path.isdir(path) else _cached(path)
    files = sorted(Path(folder).glob("*.safetensors")) if folder else []
    if files:
        for file in files:
            with open(file, "rb") as f:
                while chunk := f.read(1 << 22):
                    h.update(chunk)
    else:
        for name, tensor in model.base_model.state_dict().items():
            h.update(name.encode())
            h.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _cached(hub_id: str) -> str | None:
    """Folder of a hub model's copy on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def load(
    name: str = "minilm",
    *,
    classes: int = 2,
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a frozen backbone with a classification head of ``classes`` outputs.

    Args:
        name: short name (``minilm``), Hugging Face hub id, or a local folder written by ``save_pretrained``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: of the frozen weights and activations: ``auto``, ``float32``, ``bfloat16`` (``float64`` for tests).
        attention: attention kernel of transformers; ``auto`` = ``eager`` on a CPU (its fused kernel's backward pass is
            several times slower in bfloat16, measured), the model's own default elsewhere.

    Raises:
        UserError: unknown name, weights that can't be had, a corrupt packaged file, an architecture without blocks or head.
    """
    where, known, hub_id = find(name)
    target = pick_device(device)
    dtype = pick_precision(precision, target)
    model, tokenizer, fresh = _from_transformers(where, name, classes, trust_remote_code)
    digest = hash_weights(where, model)
    if known is not None and known.sha256 and os.path.isdir(where) and digest != known.sha256:
        raise UserError(
            f'the weights of "{name}" in package {known.package} are damaged (sha256 {digest[:12]}…, expected '
            f"{known.sha256[:12]}…); reinstall it with pip install --force-reinstall {known.package}."
        )
    if attention == "auto":  # the eager kernel takes its softmax in float32, too coarse for float64
        attention = "eager" if target.type == "cpu" and dtype != torch.float64 else ""
    if attention:
        model.set_attn_implementation(attention)
    return describe_model(
        model, tokenizer, fresh, name=name, hub_id=hub_id or None, path=where, digest=digest, device=target, dtype=dtype
    )


def describe_model(
    model: Any,
    tokenizer: Any,
    fresh: set[str],
    *,
    name: str,
    hub_id: str | None = None,
    path: str = "",
    digest: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Freeze and describe a Hugging Face sequence-classification model that is already in memory."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f'backbone "{name}" is an encoder-decoder; choose an encoder (BERT …) or a decoder (LLaMA …).')
    model.eval()
    model.requires_grad_(False)
    if getattr(config, "use_cache", False):
        config.use_cache = False
    # a decoder's head finds the last token of a row by the padding id, which must be the one that rows are padded with
    config.pad_token_id = tokenizer.pad_token_id
    prefix = model.base_model_prefix
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    blocks = describe.find_blocks(model.base_model, prefix, layers)
    lost = sorted(n for n in fresh if describe.block_index(n, blocks) is not None)
    if lost:
        raise UserError(
            f'the checkpoint of "{name}" lacks {len(lost)} tensors of its blocks, such as {lost[0]}: it is damaged, or of '
            "another architecture than its config.json says; get it anew."
        )
    heads = describe.head_sites(model, prefix, fresh)
    if not heads:
        raise UserError(f'backbone "{name}" has no classification head that Weft can train.')
    d = int(config.hidden_size)
    own = {h.name for h in heads}
    originals = {
        n: p.detach().float().clone()
        for n, p in model.named_parameters()
        if n not in fresh and (n.endswith("bias") or n.rsplit(".", 1)[0] in own)
    }
    seen = describe.trace(model, blocks, d)
    norms = describe.norm_sites(model, blocks, own)
    common = [s.name for s in norms if s.bias and s.name in seen.common]
    notes = tuple(f"the bias of {n} is common to all rows of a batch, so it stays frozen." for n in common)
    model.to(device=device or torch.device("cpu"), dtype=dtype)
    limit = int(getattr(config, "max_position_embeddings", 0) or 512)
    return Backbone(
        name=name,
        hub_id=hub_id,
        path=path,
        weight_hash=digest or hash_weights("", model),
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        shared_blocks=len(blocks) < layers,
        tuple_blocks=seen.tuple_blocks,
        row_arguments=seen.row_arguments,
        linears=describe.linear_sites(model, blocks, seen.common),
        norms=[s for s in norms if s.name not in seen.common],
        heads=heads,
        bottlenecks=seen.bottlenecks,
        d=d,
        pools=seen.pools,
        originals=originals,
        max_length=min(limit, int(min(getattr(tokenizer, "model_max_length", limit), 1 << 20))),
        notes=notes,
        outer=describe.outer_sites(model, blocks, own | seen.common),
    )


def _from_transformers(where: str, name: str, classes: int, trust: bool) -> tuple[Any, Any, set[str]]:
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        # transformers draws what a checkpoint lacks from the global stream: give it a fixed one and put ours back
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                where,
                num_labels=classes,
                output_loading_info=True,
                trust_remote_code=trust,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        if not os.path.isdir(where) and (offline or "connect" in str(e).lower() or "couldn't" in str(e).lower()):
            raise UserError(
                f'the weights of "{name}" ({where}) are neither on this machine nor can the hub be reached; '
                "download them once with a network, give a local folder, or use --model minilm with "
                "pip install weft[offline]."
            ) from e
        raise UserError(f'backbone "{name}" could not be loaded: {reason}') from e
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    missing = {m[0] if isinstance(m, tuple) else m for m in info["missing_keys"] | _mismatched(info)}
    return model, tokenizer, missing


def _mismatched(info: dict[str, Any]) -> set[str]:
    return {m[0] if isinstance(m, (tuple, list)) else m for m in info.get("mismatched_keys", ())}
