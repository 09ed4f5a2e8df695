"""The lines in the README of a language model that put a prompt to it, without Weft: the template, and how it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from weft.backbones.prompts import Chat, Written, template
from weft.export.card import IMPORTS, ONTO_BASE, place
from weft.export.peft_files import loading
from weft.federation import generating

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.export.about import About


def plain(about: About, backbone: Backbone, plain_class: str) -> str:
    """What loads an adapter and asks it. FOLDER and PROMPT are the reader's, and INPUT of rows that have one."""
    where, imports = place(about)
    more = "".join(f", {n}={v!r}" for n, v in loading(about.base, about.classes).items())
    trust = ", trust_remote_code=True" if about.base.code else ""
    told = ", ".join(f"{n}={v!r}" for n, v in settings(about, backbone).items())
    return (
        f"{imports}{IMPORTS[about.kind]}from transformers import {plain_class}, AutoTokenizer, GenerationConfig\n\n"
        f"where = {where}\n"
        f"base = {plain_class}.from_pretrained(where{more})\n"
        f"base.generation_config = GenerationConfig({told})\n{ONTO_BASE[about.kind]}"
        f"reader = AutoTokenizer.from_pretrained(where{trust})\n"
        f"{asked(about, backbone)}"
    )


def merged(about: About, backbone: Backbone, plain_class: str) -> str:
    """The same of a model that needs no PEFT, and holds how it writes."""
    return (
        f"from transformers import {plain_class}, AutoTokenizer\n\n"
        f"model = {plain_class}.from_pretrained(FOLDER).eval()\n"
        "reader = AutoTokenizer.from_pretrained(FOLDER)\n"
        f"{asked(about, backbone)}"
    )


def asked(about: About, backbone: Backbone) -> str:
    """From PROMPT to the answer, as the model was trained to read."""
    frame = template(backbone.options.prompt, backbone.tokenizer, backbone.encoder_decoder)
    special = "" if not frame.framed else ", add_special_tokens=False"
    if isinstance(frame, Chat):
        content = 'f"{PROMPT}\\n\\n{INPUT}" if INPUT else PROMPT' if about.pairs else "PROMPT"
        text = (
            f'turns = [{{"role": "user", "content": {content}}}]\n'
            "text = reader.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)\n"
        )
    else:
        assert isinstance(frame, Written)
        shape = f"({frame.text!r} if INPUT else {frame.bare!r})" if about.pairs else repr(frame.bare)
        put = '.replace("{input}", INPUT)' if about.pairs else ""
        text = f'text = {shape}{put}.replace("{{instruction}}", PROMPT)\n'
    cut = ""
    if not backbone.encoder_decoder and not frame.framed and _ends(backbone.tokenizer):
        cut = "inputs = {name: t[:, :-1] for name, t in inputs.items()}  # without the token that ends a text\n"
    new = "found[0]" if backbone.encoder_decoder else 'found[0, inputs["input_ids"].shape[1] :]'
    return (
        f'{text}inputs = reader(text, return_tensors="pt", return_token_type_ids=False{special})\n{cut}'
        "found = model.generate(**inputs)\n"
        f"answer = reader.decode({new}, skip_special_tokens=True).strip()\n"
        "print(answer)\n"
    )


def _ends(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


def settings(about: About, backbone: Backbone) -> dict[str, Any]:
    """How the run's texts were written, but for sampling: settings of transformers that are not as usual."""
    own = generating.settings(backbone, about.decoding, 0)
    names = ("max_new_tokens", "num_beams", "bos_token_id", "eos_token_id", "pad_token_id")
    apart = ("decoder_start_token_id", "forced_bos_token_id")
    found = {n: getattr(own, n) for n in (*names, *apart)}
    return {n: v for n, v in found.items() if v is not None and (n != "num_beams" or v > 1)}


def generation(about: About, backbone: Backbone) -> GenerationConfig:
    """How the run's texts were written, with sampling, for a model that keeps it."""
    how, sampled = about.decoding, {}
    if how.temperature:
        sampled = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    return GenerationConfig(**settings(about, backbone), **sampled)
