"""A model of learned scales (IA³), and a head, as a PEFT adapter of type IA3, and back.

PEFT multiplies what a module gives by a vector [d_out, 1], or, where it is one of ``feedforward_modules``, what goes into it by
one [1, d_in]: see :class:`weft.adaptation.scale.Scale`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch as st
from torch import Tensor

from weft.adaptation.head import Head
from weft.adaptation.scale import Scale
from weft.export import peft_adapter, peft_files
from weft.export.about import damaged
from weft.export.trained import Trained
from weft.storage import files
from weft.tensors.forms import Value

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.export.about import Base

CONFIG, TENSORS = FILES = peft_adapter.FILES
ROOT, VECTOR = peft_adapter.ROOT, ".ia3_l"


def alone(trained: Trained) -> str | None:
    """The part of scales that is all there is beside a head; None if there is more, or none."""
    names = [name for name, part in trained.parts.items() if type(part) is not Head]
    if len(names) != 1 or type(trained.parts[names[0]]) is not Scale:
        return None
    return names[0] if trained.rule is None and trained.use[names[0]] == 1.0 else None


def against(trained: Trained, backbone: Backbone) -> str | None:
    """Why PEFT would not predict the same, None where nothing is known to stand against it.

    Args:
        trained: of a part that is :func:`alone`.
    """
    part = trained.parts[alone(trained) or ""]
    assert isinstance(part, Scale)
    if part.shift:
        return "PEFT scales what layers give and shifts nothing"
    if peft_files.plain_class(backbone) is None:
        return "its base is of a class of Weft's own, which nobody loads without Weft"
    return None if peft_files.whole(trained, backbone) else "the head of its base is no part of it"


def write(trained: Trained, backbone: Backbone, base: Base, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        trained: with nothing :func:`against` it.
    """
    from peft import IA3Config

    name, tensors, inner = alone(trained), dict[str, Tensor](), dict[str, bool]()
    for tensor, value in trained.values.items():
        part, site, role = tensor.split("/")
        assert isinstance(value, Tensor)
        if part == name:
            inner[site] = role == "inner"
            tensors[f"{ROOT}{site}{VECTOR}"] = value[None] if inner[site] else value[:, None].contiguous()
        else:
            tensors[f"{ROOT}{site}.{role}"] = value.contiguous()
    tops = peft_files.head_modules(backbone)
    targets = peft_files.endings(backbone, list(inner), tops)
    within = [t for t in targets if any(site.endswith(t) for site, inside in inner.items() if inside)]
    if any(site.endswith(t) for t in within for site, inside in inner.items() if not inside):  # as PEFT asks, without a dot
        targets, within = list(inner), [site for site, inside in inner.items() if inside]
    IA3Config(
        inference_mode=True,
        task_type=peft_files.WORDS.get(str(peft_files.plain_class(backbone))),
        base_model_name_or_path=base.reference,
        target_modules=targets,
        feedforward_modules=within,
        modules_to_save=tops or None,
        fan_in_fan_out=all(type(backbone.module(n)).__name__ == "Conv1D" for n in inner),
    ).save_pretrained(str(folder))
    files.write(folder / CONFIG, (folder / CONFIG).read_bytes())  # durably
    files.write(folder / TENSORS, st.save(tensors, {"format": "pt"}))


def wrote(folder: Path) -> bool:
    """Whether an adapter is one of scales."""
    return peft_adapter.type_in(folder) == "IA3"


def read(folder: Path, backbone: Backbone) -> Trained:
    """The model in an adapter that :func:`write` wrote.

    Raises:
        UserError: the files are damaged, or do not fit the backbone.
    """
    values = dict[str, Value]()
    try:
        targets = files.parsed(files.read(folder / CONFIG))["target_modules"]
        for name, value in st.load(files.read(folder / TENSORS)).items():
            inner = name.removeprefix(ROOT)
            site, role = inner.rsplit(".", 1)
            if inner.endswith(VECTOR):
                values[f"scale/{site}/{'inner' if len(value) == 1 else 'scale'}"] = value.flatten()
            else:
                values[f"head/{site}/{role}"] = value
        at = "names:" + ",".join(targets)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
        raise damaged(folder, e) from e
    trained = Trained({"scale": Scale(at), "head": Head()}, values, {"scale": 1.0})
    peft_files.check_names(trained, backbone, folder)
    return trained
