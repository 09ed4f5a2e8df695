"""The README of an exported model: what it is, and the lines that load it."""

from __future__ import annotations

from collections.abc import Sequence

from weft.backbones.options import spoken
from weft.export.about import About


def card(about: About, notes: Sequence[str], plain_class: str | None) -> str:
    """
    Args:
        notes: sentences for people. plain_class: class of transformers that loads the base, if the kind is ``peft``.
    """
    base = about.base
    whose = "the federation" if about.client is None else f"client {about.client}"
    head = f"---\nlibrary_name: {about.kind}\nbase_model: {base.reference}\ntags: [federated-learning, weft]\n---\n"
    rows = f"texts are cut to {about.max_length} tokens" if base.reads == "texts" else "pictures go through its image processor"
    code = plain(about, plain_class) if about.kind == "peft" and plain_class else ours(about)
    lines = [
        f"The model of {whose}, trained with Weft by {about.method['title']} ({about.method['paper']}).",
        f"It sits on `{base.reference}` (weights sha256 `{base.sha256}`); {rows}.",
        *notes,
        f"```python\n{code}```",
    ]
    return head + "\n".join(["# " + (about.run or about.method["slug"]), "", *lines]) + "\n"


def ours(about: About) -> str:
    row = "a text" if about.base.reads == "texts" else "a-picture.png"
    return f"from weft.export import load\n\nload(FOLDER).predict([{row!r}])\n"


def plain(about: About, plain_class: str) -> str:
    """Without Weft; only a base that comes with Weft is looked up in it."""
    base, labels = about.base, list(about.classes)
    where, imports = repr(base.reference), "from peft import PeftModel\n"
    if base.hub_id is None and base.path is None:
        where, imports = f"find({base.reference!r})[0]", f"{imports}from weft.backbones.load import find\n"
    imports += f"from transformers import {plain_class}"
    if plain_class == "CLIPModel":
        texts = [base.options.template.format(spoken(name)) for name in labels]
        return (
            f"{imports}, AutoImageProcessor, AutoTokenizer\n\n"
            f"labels = {labels!r}\ntexts = {texts!r}\nwhere = {where}\n"
            "model = PeftModel.from_pretrained(CLIPModel.from_pretrained(where), FOLDER)\n"
            'inputs = AutoTokenizer.from_pretrained(where)(texts, padding=True, return_tensors="pt")\n'
            'inputs |= AutoImageProcessor.from_pretrained(where)(IMAGES, return_tensors="pt")\n'
            "logits = model(**inputs).logits_per_image\n"
        )
    padding = "" if base.pad_token_id in (0, None) else f"base.config.pad_token_id = {base.pad_token_id}\n"
    return (
        f"{imports}\n\n"
        f"labels = {labels!r}\nbase = {plain_class}.from_pretrained(\n"
        f"    {where}, num_labels={len(labels)}, id2label=dict(enumerate(labels))\n)\n{padding}"
        "model = PeftModel.from_pretrained(base, FOLDER)\n"
    )
