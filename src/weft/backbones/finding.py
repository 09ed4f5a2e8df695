"""Where the files of a backbone are: in a package, in a folder, or the hub's on this machine; and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from weft.backbones import gguf_file, quantised
from weft.backbones.reading import ADAPTER, with_adapter
from weft.backbones.short_names import KNOWN, Known
from weft.errors import UserError, nearest

OPEN_CLIP = "open_clip_config.json"
ARRAYS = ".npz"
SHIPPED, MADE = (Path(__file__).parent / name for name in ("shipped", "made"))


def packaged_weights(known: Known, say: Callable[[str], None] | None = None) -> Path | None:
    """Folder of weights carried by an installed package, found from its file list without importing it.

    Args:
        say: is told what takes long.

    Raises:
        UserError: they are a GGUF file that can't be converted.
    """
    if known.package is None:
        return None
    try:
        files = metadata.files(known.package) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
        if file.suffix == ".gguf":
            return gguf_file.converted(Path(str(file.locate())), known, say)
    return None


def find(name: str, say: Callable[[str], None] | None = None) -> tuple[str, Known | None, str]:
    """Resolve ``--model``: (path or hub id to load, entry of the short-name table, canonical hub id or "").

    The weights of a GGUF file are not those of the hub, so that a path to them comes with no hub id.

    Args:
        say: is told what takes long: the first time, that a GGUF file is converted.

    Raises:
        UserError: it stands for nothing, or for a packaged file that can't be read.
    """
    if name in KNOWN:
        known = KNOWN[name]
        own = SHIPPED if known.shipped else MADE if known.made else None
        packaged = own / known.name if own is not None else packaged_weights(known, say)
        if packaged is None:
            return known.hub_id, known, known.hub_id
        return str(packaged), known, "" if gguf_file.made(packaged) else known.hub_id
    if os.path.isdir(name):
        adapter = next((f for f in ADAPTER if (Path(name) / f).exists()), "")
        if not any((Path(name) / file).exists() for file in ("config.json", OPEN_CLIP)):
            what = "holds a PEFT adapter and no backbone" if adapter else "holds no config.json"
            raise UserError(f'the folder "{name}" {what}; give a folder saved by save_pretrained.')
        if adapter:
            raise with_adapter(name, adapter)
        return name, None, ""
    if name.endswith(ARRAYS):
        place = os.path.expanduser(name)
        if not os.path.isfile(place):
            raise UserError(f'there is no file "{name}" of the weights of a backbone.')
        return place, None, ""
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name, None, name
    raise UserError(
        f'unknown model "{name}": give a short name ({", ".join(KNOWN)}), a hub id (owner/name), a local folder or '
        f"a file of weights (*{ARRAYS})."
        f"{nearest(name, KNOWN)}"
    )


def hash_weights(path: str, model: Any) -> str:
    """sha256 over the weight files of a local folder or of a hub id's copy on this machine, else over the tensors."""
    h = hashlib.sha256()
    if files := [Path(path)] if is_arrays(path) else weight_files(path):
        for file in files:
            with open(file, "rb") as f:
                while chunk := f.read(1 << 22):
                    h.update(chunk)
    else:
        for name, tensor in model.base_model.state_dict().items():
            h.update(name.encode())
            for plain in quantised.inner(tensor):
                h.update(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def checked_hash(path: str, known: Known | None, model: Any) -> str:
    """:func:`hash_weights`, of weights that come with Weft or in a package the right one.

    Raises:
        UserError: they are damaged.
    """
    digest = hash_weights(path, model)
    made = gguf_file.made(Path(path))
    if made is not None:
        made.check(digest)
    elif known is not None and known.sha256 and os.path.isdir(path) and digest != known.sha256:
        raise known.damaged(digest)
    return digest


def is_arrays(path: str) -> bool:
    """Whether it is a file of NumPy arrays."""
    return path.endswith(ARRAYS) and os.path.isfile(path)


def weight_files(path: str) -> list[Path]:
    """Of a local folder or of a hub id's copy on this machine; of tensors as safetensors has them."""
    folder = path if os.path.isdir(path) else cached(path)
    return sorted(Path(folder).glob("*.safetensors")) if folder else []


def stored(path: str) -> dict[str, str]:
    """Name of each tensor in these files -> its type there, such as F32.

    Raises:
        UserError: one of them is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, str] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, "pt") as content:
                found |= {n: content.get_slice(n).get_dtype() for n in content.keys()}  # noqa: SIM118 - it is no mapping
        except SafetensorError as e:  # one that transformers did not ask for
            raise UserError(f"{file} is damaged ({e}): get it anew, or take it out of the folder of the backbone.") from e
    return found


def described(path: str) -> bool:
    """Whether a tokenizer's own settings lie in the folder."""
    folder = path if os.path.isdir(path) else cached(path)
    return folder is None or (Path(folder) / "tokenizer_config.json").exists()


def cached(hub_id: str) -> str | None:
    """Folder of a hub model's copy on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def config_of(where: str) -> dict[str, Any]:
    """What config.json says, as it stands there; nothing where there is none on this machine."""
    folder = where if os.path.isdir(where) else cached(where)
    file = Path(folder or "") / "config.json"
    try:
        found = json.loads(file.read_text()) if folder else {}
    except (OSError, ValueError):  # transformers says it better
        return {}
    return found if isinstance(found, dict) else {}


def open_clip_folder(where: str, task: str) -> Path | None:
    """Of a CLIP of open_clip, in a local folder or the hub's copy on this machine; None if it is to be read by transformers."""
    found = Path(where) if os.path.isdir(where) else Path(cached(where) or "-")
    if not (found / OPEN_CLIP).is_file():
        return None
    try:
        own = json.loads((found / "config.json").read_text())
    except OSError:
        return found
    except ValueError:
        return None
    return None if "model_type" in own or task not in ("auto", "similarity") else found  # timm's has no type
