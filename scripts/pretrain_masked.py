"""Pretrain the small masked language model that comes with Weft, on what Python and its packages say of themselves.

    python scripts/pretrain_masked.py [--steps 1200] [--seed 0] [--to src/weft/backbones/shipped]

docs-mlm: a ModernBERT that reads docstrings and comments of the standard library and of packages that come with Weft; nothing is
downloaded. No row of ``--data pydocs`` (the docstrings of the standard library) is trained on: of its modules only the comments
are, and of those that it holds out for unseen clients nothing at all. Half of the texts end in the module that they are from, so
that the model can be asked what a text is about. Writes transformers' own format in float16, with a model card and the measured
share of hidden tokens that it names right.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import math
import random
import re
import shutil
import time
import tokenize
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from weft.data.pydocs import pydocs
from weft.data.pydocs_areas import AREAS, SOURCES, UNSEEN
from weft.data.stdlib import library

PACKAGES = (
    "aiohttp", "datasets", "fsspec", "httpx", "huggingface_hub", "jinja2", "matplotlib", "networkx", "numpy",
    "pandas", "peft", "PIL", "pyarrow", "pydantic", "pygments", "requests", "rich", "scipy", "sklearn", "sympy", "torch",
    "transformers", "urllib3",
)  # fmt: skip
SKIPPED = {"__pycache__", "site-packages", "test", "tests", "_vendor", "lib2to3", "idlelib", "idle_test", "models", "vendor"}
MOST = 1_000_000  # characters of one package
SHORTEST, LONGEST = 30, 3000  # characters of a text
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 6000, 128, 4, 4, 128
BATCH, PEAK, SHARE = 16, 3e-3, 0.2
HELD_OUT = 400  # rows, to be scored


def comments(source: str) -> Iterator[str]:
    """Blocks of whole-line comments."""
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        if token.start[0] != last + 1 and block:
            yield " ".join(block)
            block = []
        block.append(token.string.lstrip("#!: ").rstrip())
        last = token.start[0]
    yield " ".join(block)


def texts(path: Path, docstrings: bool) -> Iterator[str]:
    """What a file says of itself, a definition or a block of comments at a time."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        found = list(comments(source))
    except (SyntaxError, UnicodeDecodeError, ValueError, tokenize.TokenError):
        return
    if docstrings:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(ast.get_docstring(node) or "")
    for text in found:
        flat = " ".join(text.split())
        letters = sum(c.isalpha() or c == " " for c in flat)
        if len(flat) >= SHORTEST and letters > 0.75 * len(flat) and "opyright" not in flat[:200]:
            yield flat[:LONGEST]


def files(folder: Path) -> Iterator[Path]:
    inside = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return (folder / path for path in sorted(inside, key=lambda p: p.parts) if not SKIPPED & set(path.parts))


def corpus() -> list[tuple[str, str]]:
    """(module, text) pairs, each text once."""
    rows = {name: module for modules in AREAS.values() for module in modules for name in SOURCES.get(module, (module,))}
    home = library()
    found: dict[str, str] = {}
    source = pydocs()
    apart = {text[:LONGEST] for own in (source.train, *source.unseen.values()) for text in own.texts or []}  # copied elsewhere
    for path in files(home):
        parts = path.relative_to(home).with_suffix("").parts
        module = rows.get(parts[0])
        if module in UNSEEN:
            continue
        for text in texts(path, docstrings=module is None):
            found.setdefault(text, ".".join(p for p in parts if p != "__init__"))
    from pydoc_data.topics import topics  # the language reference

    for topic, long in topics.items():
        for paragraph in re.split(r"\n\s*\n", long):
            flat = " ".join(paragraph.split())
            if len(flat) >= SHORTEST:
                found.setdefault(flat, f"python.{topic}")
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed, which this model is trained on.")
        folder = Path(spec.origin).parent
        some, size = list(files(folder)), 0
        random.Random(package).shuffle(some)
        for path in some:
            module = ".".join([package, *(p for p in path.relative_to(folder).with_suffix("").parts if p != "__init__")])
            for text in texts(path, docstrings=True):
                if size < MOST and text not in found:
                    found[text] = module
                    size += len(text)
            if size >= MOST:
                break
    return [(module, text) for text, module in found.items() if text not in apart]


def lines(rows: list[tuple[str, str]], seed: int) -> list[str]:
    """The texts in an order of chance, half of them with the module that they are from."""
    draw = random.Random(seed)
    draw.shuffle(rows)
    return [f"{text} in module {module}." if draw.random() < 0.5 else text for module, text in rows]


def words(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer, lower case, as BERT's."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=40))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True, handle_chinese_chars=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), limit_alphabet=100)
    inner.train_from_iterator(texts, trainer)
    ids = inner.get_vocab()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=LENGTH,
        **{f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)},
        model_input_names=["input_ids", "attention_mask"],
    )


def rows_of(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[n, LENGTH]: the texts one after another, cut into rows; every row begins with [CLS] and ends with [SEP]."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    stream: list[int] = []
    for start in range(0, len(texts), 10_000):
        for own in tokenizer(texts[start : start + 10_000], add_special_tokens=False)["input_ids"]:
            stream += [*own, last]
    inner = LENGTH - 2
    body = torch.tensor(stream[: len(stream) // inner * inner]).view(-1, inner)
    frame = torch.full((len(body), 1), first), torch.full((len(body), 1), last)
    return torch.cat([frame[0], body, frame[1]], 1)


def hide(rows: Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows as the model sees them, and which tokens are to be named: of SHARE, 8 in 10 are masked and 1 is any other."""
    own = rows >= len(SPECIAL)
    chosen = own & (torch.rand(rows.shape, generator=generator) < SHARE)
    how = torch.rand(rows.shape, generator=generator)
    any_ = torch.randint(len(SPECIAL), len(tokenizer), rows.shape, generator=generator)
    shown = torch.where(chosen & (how < 0.8), tokenizer.mask_token_id, torch.where(chosen & (how >= 0.9), any_, rows))
    return shown, chosen


def named(model: ModernBertForMaskedLM, shown: Tensor, chosen: Tensor) -> Tensor:
    """Logits [tokens to be named, V]."""
    hidden = model.model(shown).last_hidden_state[chosen]
    logits: Tensor = model.decoder(model.head(hidden))
    return logits


def train(model: ModernBertForMaskedLM, rows: Tensor, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    flat = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}])
    began, order, at, mean = time.time(), torch.randperm(len(rows), generator=generator), 0, 0.0
    for step in range(steps):
        if at + BATCH > len(order):
            order, at = torch.randperm(len(rows), generator=generator), 0
        batch = rows[order[at : at + BATCH]]
        at += BATCH
        shown, chosen = hide(batch, tokenizer, generator)
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.autocast("cpu", torch.bfloat16):  # 1.7 times as fast, measured on one core with AMX
            logits = named(model, shown, chosen)
        loss = F.cross_entropy(logits.float(), batch[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean += (float(loss.detach()) - mean) / min(step + 1, 100)
        if step % 100 == 99:
            print(f"{step + 1}/{steps}: loss {mean:.3f}, {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def accuracy(model: ModernBertForMaskedLM, rows: Tensor, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of hidden tokens that are named right."""
    generator = torch.Generator().manual_seed(7)
    right = total = 0
    for batch in rows.split(50):
        shown, chosen = hide(batch, tokenizer, generator)
        right += int((named(model, shown, chosen).argmax(1) == batch[chosen]).sum())
        total += int(chosen.sum())
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "src" / "weft" / "backbones" / "shipped")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    text = lines(corpus(), args.seed)
    tokenizer = words(text)
    rows = rows_of(text, tokenizer)
    print(f"{len(text):,} texts, {sum(map(len, text)):,} characters, {rows.numel():,} tokens", flush=True)
    # one of BERT's form with as many parameters had not learnt in 1,000 steps what this one has in 200
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH, max_position_embeddings=LENGTH, global_attn_every_n_layers=2, local_attention=32,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")},
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    model = ModernBertForMaskedLM._from_config(config, attn_implementation="eager")
    train(model, rows[HELD_OUT:], tokenizer, args.steps, args.seed)
    model.eval()
    right = accuracy(model, rows[:HELD_OUT], tokenizer)
    folder = args.to / "docs-mlm"
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    size = sum(p.numel() for p in model.parameters())
    (folder / "README.md").write_text(card(digest, size, right, len(text), f"--steps {args.steps} --seed {args.seed}"))
    print(f"docs-mlm {digest}: {right:.3f} of hidden tokens, {size:,} parameters")


def card(digest: str, size: int, right: float, texts: int, options: str) -> str:
    return "\n".join(
        [
            "---", "license: apache-2.0", "library_name: transformers", "tags: [weft, federated-learning]", "---",
            "# docs-mlm", "",
            f"A small masked language model: a ModernBERT of {LAYERS} blocks of width {WIDTH}, and WordPiece of its own,",
            f"lower case, {VOCABULARY:,} tokens, rows of up to {LENGTH}.", "",
            f"- {size:,} parameters, float16; sha256 of `model.safetensors`: `{digest}`",
            f"- It names {right:.1%} of the hidden tokens of held-out rows of its own text right.",
            f"- Written by `python scripts/pretrain_masked.py {options}` from {texts:,} docstrings and comments of Python's",
            f"  standard library and of {', '.join(PACKAGES)}; nothing was downloaded.",
            "- No row of `pydocs` is among them: of its modules only comments are, of those held out for unseen clients nothing.",
            "- Half of the texts end in the module that they are from (\"… in module torch.nn.modules.\"), so that",
            "  `{} in module {mask}.` asks what a text is about.", "",
            "For trying out label words and soft prompts (`--task fill`) without a network, and for tests. It knows the words of",
            "programmers and nothing else of the world, and predicts them poorly.", "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
