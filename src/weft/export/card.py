"""The README of an exported model: what it is, and the lines that load it."""

from __future__ import annotations

from collections.abc import Sequence

from weft.backbones.options import sentence
from weft.data.rows import BOTH
from weft.export.about import About
from weft.export.peft_files import loading
from weft.tasks.kinds import MASKED, NUMBERS, TOKENS

IMPORTS = {"peft": "from peft import PeftModel\n", "adapters": "import adapters\n"}
ONTO_BASE = {
    "peft": "model = PeftModel.from_pretrained(base, FOLDER).eval()\n",
    "adapters": (
        "adapters.init(base)\nbase.load_adapter(str(FOLDER), set_active=True, use_safetensors=True)\nmodel = base.eval()\n"
    ),
}
"""Kind of an export -> lines that put it onto its ``base``, and what they import."""


def card(about: About, notes: Sequence[str], code: str, library: str) -> str:
    """
    Args:
        notes: sentences for people. code: lines of Python that load it. library: that they need.
    """
    base = about.base
    whose = "the federation" if about.client is None else f"client {about.client}"
    head = f"---\nlibrary_name: {library}\nbase_model: {base.reference}\ntags: [federated-learning, weft]\n---\n"
    texts = "pairs of texts" if about.pairs else "texts"
    rows = f"{texts} are cut to {about.max_length} tokens"
    if base.reads != "texts":
        rows = "pictures go through its image processor"
    if base.reads == BOTH:
        rows = f"questions are cut to {about.max_length} tokens, and pictures are brought to the square that it takes"
    if about.task == MASKED:
        rows = f"it was trained on texts of {about.max_length} tokens at most"
    if about.writes:
        rows = f"it was trained on prompts with answers of {about.max_length} tokens at most"
    lines = [
        f"The model of {whose}, trained with Weft by {about.method['title']} ({about.method['paper']}).",
        f"It sits on `{base.reference}` (weights sha256 `{base.sha256}`); {rows}.",
        *notes,
        f"```python\n{code}```",
    ]
    return head + "\n".join(["# " + (about.run or about.method["slug"]), "", *lines]) + "\n"


def ours(about: About) -> str:
    if about.writes:
        return 'from weft.export import load\n\nload(FOLDER).generate(["a prompt"])\n'
    of_reads: dict[str, str | tuple[str, str]] = {"images": "a-picture.png", BOTH: ("a question", "a-picture.png")}
    row = of_reads.get(about.base.reads, ("a text", "its pair") if about.pairs else "a text")
    return f"from weft.export import load\n\nload(FOLDER).predict([{row!r}])\n"


def of_masks(about: About) -> str:
    """Without Weft: TEXTS are the reader's, with the mask token where a token is to be found."""
    where, imports = place(about)
    trust = ", trust_remote_code=True" if about.base.code else ""
    return (
        f"import torch\n{IMPORTS[about.kind]}{imports}from transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        f"where = {where}\n"
        f"base = AutoModelForMaskedLM.from_pretrained(where{trust})\n{ONTO_BASE[about.kind]}"
        f"reader = AutoTokenizer.from_pretrained(where{trust})\n"
        f'inputs = reader(TEXTS, truncation=True, max_length={about.max_length}, padding=True, return_tensors="pt", '
        "return_token_type_ids=False)\n"
        "with torch.no_grad():\n    logits = model(**inputs).logits\n"
        'for row, ids in zip(logits, inputs["input_ids"]):\n'
        "    print(reader.convert_ids_to_tokens(row[ids == reader.mask_token_id].argmax(-1).tolist()))\n"
    )


def plain(about: About, plain_class: str, room: int = 0, longest: int = 0) -> str:
    """Without Weft; only a base that comes with Weft is looked up in it. FOLDER, and TEXTS (and SECOND, of pairs) or IMAGES, or
    both, are the reader's.

    Args:
        room: tokens of the adapter's own in each row, of the ``longest`` that the base takes.
    """
    if about.task == MASKED:
        return of_masks(about)
    base, labels = about.base, list(about.classes)
    where, found = place(about)
    imports = f"import torch\n{IMPORTS[about.kind]}{found}"
    if plain_class == "CLIPModel":
        texts = [sentence(base.options.sentence, name) for name in labels]
        return (
            f"{imports}from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel\n\n"
            f"labels = {labels!r}\ntexts = {texts!r}\nwhere = {where}\n"
            f"base = CLIPModel.from_pretrained(where)\n{ONTO_BASE[about.kind]}"
            'inputs = AutoTokenizer.from_pretrained(where)(texts, padding=True, return_tensors="pt")\n'
            'inputs |= AutoImageProcessor.from_pretrained(where)(IMAGES, return_tensors="pt")\n'
            "with torch.no_grad():\n    logits = model(**inputs).logits_per_image\n"
        )
    more = {n: v for n, v in loading(base, labels).items() if n != "id2label"}
    arguments = ", ".join(["id2label=dict(enumerate(labels))", *(f"{n}={v!r}" for n, v in more.items())])
    trust = ", trust_remote_code=True" if base.code else ""
    reader = "AutoImageProcessor" if base.reads == "images" else "AutoTokenizer"
    needed = [plain_class, reader, *(["AutoImageProcessor", "ViTImageProcessor"] if base.reads == BOTH else [])]
    own = f"[:, {room}:]  # those before are of soft words" if room and about.task == TOKENS else ""
    padding = ""
    if base.pad_token_id != base.own_padding:
        padding = f"base.config.pad_token_id = {base.pad_token_id}\n"
    return (
        f"{imports}from transformers import {', '.join(sorted(needed))}\n\n"
        f"labels = {labels!r}\nwhere = {where}\n"
        f"base = {plain_class}.from_pretrained(where, {arguments})\n{padding}{ONTO_BASE[about.kind]}"
        f"reader = {reader}.from_pretrained(where{trust})\n"
        f"{_read(about, min(about.max_length, longest - room) if room else about.max_length)}"
        f"with torch.no_grad():\n    logits = model(**inputs).logits{own}\n"
        f"{_answers(plain_class, about.task == NUMBERS)}"
    )


def place(about: About) -> tuple[str, str]:
    """Where the base is, as an expression, and the import that it needs. BASE is the reader's, where Weft can't be installed."""
    base = about.base
    if base.hub_id is None and base.path is None:
        if about.kind == "adapters":
            show = f"from weft.backbones.finding import find; print(find('{base.reference}')[0])"
            return f'BASE  # where Weft is installed, python -c "{show}" prints it', ""
        return f"find({base.reference!r})[0]", "from weft.backbones.finding import find\n"
    return repr(base.reference), ""


def _answers(plain_class: str, number: bool) -> str:
    """Lines that print what the model says."""
    if plain_class == "AutoModelForTokenClassification":
        return (
            "for i, tags in enumerate(logits.argmax(-1)):\n"
            "    words = inputs.word_ids(i)\n"
            "    first = [t for t, word in enumerate(words) if word is not None and word not in words[:t]]\n"
            "    print([(TEXTS[i][words[t]], labels[tags[t]]) for t in first])\n"
        )
    if number:
        return "print(logits[:, 0])\n"
    return "print([labels[i] for i in logits.argmax(-1)])\n"


def _read(about: About, max_length: int) -> str:
    """How rows become inputs."""
    base = about.base
    if base.reads == "images":
        return 'inputs = reader(IMAGES, return_tensors="pt")\n'
    square = (
        "own, side = AutoImageProcessor.from_pretrained(where), base.config.image_size\n"
        'square = {n: getattr(own, n) for n in ("resample", "do_normalize", "image_mean", "image_std")}\n'
        'pictures = ViTImageProcessor(size={"height": side, "width": side}, **square)\n'
        'inputs |= pictures(IMAGES, return_tensors="pt")\n'
    )
    # what our own reader does: rows are padded at their end, and a single text has no kinds of segments
    given = "TEXTS, SECOND" if about.pairs else "TEXTS"
    kinds = "" if about.pairs and base.segments else ", return_token_type_ids=False"
    if about.task == TOKENS:  # TEXTS are lists of words
        given = '[[" " + word for word in words] for words in TEXTS]' if base.glues else given
        kinds += ", is_split_into_words=True"
    return (
        f'reader.padding_side, reader.pad_token_id = "right", {base.pad_token_id}\n'
        f'inputs = reader({given}, truncation=True, max_length={max_length}, padding=True, return_tensors="pt"{kinds})\n'
        f"{square if base.reads == BOTH else ''}"
    )
