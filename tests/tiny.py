"""Tiny random backbones, and whole tiny federations on them, for tests.

``folder("bert")`` saves a model of a few thousand parameters with a word-level tokenizer; ``backbone("bert")`` loads it;
``federation(method)`` strings a run together in memory: clients of unequal size, a table whose labels can be learnt, server,
exchange and simulation.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.prefix import PrefixCache
from weft.backbones.tables import Table, tabulate
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.data.images import Images
from weft.data.rows import Rows
from weft.engines.cohort import cohort
from weft.engines.engine import Engine
from weft.engines.here import Here
from weft.engines.setup import Settings, Setup, Tests
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.exchange import Exchange
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.rounds import adapted, begin
from weft.federation.server import ServerState
from weft.federation.store import ClientStore, Spool
from weft.federation.turn import Turn
from weft.tasks.classification import Classification

torch.set_num_threads(1)

WORDS = 94  # "w0" … "w93"; with the special tokens the vocabulary holds 98

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": COMMON,
    "roberta": COMMON | {"max_position_embeddings": 66, "type_vocab_size": 1},
    "xlm-roberta": COMMON | {"max_position_embeddings": 66, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": 100,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
    },
    "electra": COMMON | {"embedding_size": 16},
    "albert": COMMON | {"embedding_size": 16},
    "deberta-v2": COMMON
    | {
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "modernbert": COMMON | {"global_attn_every_n_layers": 2, "local_attention": 8},
    "gpt2": {"vocab_size": 100, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "phi": COMMON,
    "gpt_neox": COMMON,
    "bloom": {"vocab_size": 100, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "t5": {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16},
    "vit": {k: v for k, v in COMMON.items() if k not in ("vocab_size", "max_position_embeddings")}
    | {"image_size": 8, "patch_size": 4},
    "clip": {
        "projection_dim": 16,
        "text_config": COMMON
        | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "projection_dim": 16}
        | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        "vision_config": {k: v for k, v in COMMON.items() if k not in ("vocab_size", "max_position_embeddings")}
        | {"image_size": 8, "patch_size": 4, "projection_dim": 16},
    },
}
IMAGES = ("vit", "clip")
DECODERS = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt_neox", "bloom")
ENCODERS = tuple(m for m in SHAPES if m not in (*DECODERS, *IMAGES, "t5"))  # whose head reads the first token

_ROOT: list[Path] = []


def root() -> Path:
    """A temporary folder that goes when the process ends."""
    if not _ROOT:
        _ROOT.append(Path(tempfile.mkdtemp(prefix="weft-tests-")))
        atexit.register(shutil.rmtree, _ROOT[0], ignore_errors=True)
    return _ROOT[0]


def specials(model_type: str) -> dict[str, str]:
    """Special tokens in the order of their ids, named and placed as the real models of that type have them."""
    if model_type in ("roberta", "xlm-roberta"):  # padding is 1, not 0
        return {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    if model_type == "clip":
        return {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[SOS]", "eos_token": "[EOS]"}
    if model_type == "t5":
        return {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if model_type in DECODERS:  # no padding token: the end-of-text token has to serve
        return {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tokenizer(model_type: str) -> Any:
    """A word-level tokenizer over "w0" … "w93"; encoders frame a text by their special tokens, LLaMA-likes start it by one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = specials(model_type)
    words = [*special.values(), *(f"w{i}" for i in range(WORDS))]
    ids = {w: i for i, w in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    # punctuation by itself: a class name may end a sentence
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if "cls_token" in special:
        cls, sep = special["cls_token"], special["sep_token"]
        second = 0 if "roberta" in model_type else 1
        inner.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:{second} {sep}:{second}",
            special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
        )
    elif model_type == "t5":
        eos = special["eos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, ids[eos])]
        )
    elif model_type == "clip":
        bos, eos = special["bos_token"], special["eos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}", special_tokens=[(bos, ids[bos]), (eos, ids[eos])]
        )
    elif model_type not in ("gpt2", "gpt_neox", "phi"):
        bos = special["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids[bos])]
        )
    names = ["input_ids", "attention_mask"]
    if model_type in ("bert", "electra", "albert", "deberta-v2"):
        names.insert(1, "token_type_ids")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, model_input_names=names, **special)


@torch.no_grad()
def scramble(model: torch.nn.Module, seed: int = 0) -> None:
    """Fixed weights of a size at which every bias, norm and attention score matters (fresh ones are near the identity)."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if not p.dim():  # CLIP's logit scale
            continue
        noise = torch.randn(p.shape, generator=g)
        if p.dim() == 1:
            around = 0.0 if name.endswith("bias") else 1.0
            p.copy_(around + 0.1 * noise)
        else:
            p.copy_(noise * (0.5 if "embed" in name or "wte" in name or "wpe" in name else 1.5 * p.shape[-1] ** -0.5))


def folder(model_type: str = "bert", checkpoint: str = "base", **overrides: Any) -> str:
    """Folder of a saved tiny model with its tokenizer, made once per process.

    Args:
        checkpoint: ``base`` (no head), ``mlm`` (masked-LM head, no pooler) or ``lm`` (causal).
        overrides: fields of the configuration.
    """
    return _folder(model_type, checkpoint, json.dumps(overrides, sort_keys=True))


@functools.cache
def _folder(model_type: str, checkpoint: str, overrides: str) -> str:
    import transformers
    from transformers import AutoConfig

    transformers.logging.disable_progress_bar()
    kinds = {"base": "AutoModel", "mlm": "AutoModelForMaskedLM", "lm": "AutoModelForCausalLM"}
    words = tokenizer(model_type)
    config = AutoConfig.for_model(model_type, **SHAPES[model_type])
    inner = getattr(config, "text_config", config)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if hasattr(inner, name) and model_type != "vit":
            setattr(inner, name, getattr(words, name))
    for name, value in json.loads(overrides).items():
        setattr(config, name, value)
    model = getattr(transformers, kinds[checkpoint]).from_config(config)
    scramble(model)
    path = root() / f"{model_type}-{checkpoint}-{_folder.cache_info().misses}"
    model.save_pretrained(path)
    if model_type in IMAGES:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(path)
    if model_type != "vit":
        words.save_pretrained(path)
    return str(path)


def backbone(
    model_type: str = "bert",
    *,
    classes: int = 3,
    precision: str = "float64",
    checkpoint: str = "base",
    task: str = "auto",
    **overrides: Any,
) -> Backbone:
    """A tiny backbone, loaded once per process: parts never change it."""
    return _backbone(folder(model_type, checkpoint, **overrides), classes, precision, task)


def names(classes: int) -> tuple[str, ...]:
    """Of the classes: words that the tokenizers know."""
    return tuple(f"class w{7 * c}" for c in range(classes))


@functools.cache
def _backbone(path: str, classes: int, precision: str, task: str) -> Backbone:
    return load(path, classes=names(classes), device="cpu", precision=precision, task=task)


def fresh(model_type: str = "bert", *, classes: int = 3, precision: str = "float64", **overrides: Any) -> Backbone:
    """A tiny backbone that the test may break."""
    return load(folder(model_type, **overrides), classes=names(classes), device="cpu", precision=precision)


def texts(n: int, labels: Sequence[int], classes: int, seed: int = 0, longest: int = 12) -> list[str]:
    """n texts of 1 to ``longest`` words; six in ten words come from their label's share of the vocabulary."""
    rng = np.random.default_rng(seed)
    share = WORDS // classes
    found = []
    for y in list(labels)[:n]:
        count = int(rng.integers(1, longest + 1))
        own = y * share + rng.integers(share, size=count)
        words = np.where(rng.random(count) < 0.6, own, rng.integers(WORDS, size=count))
        found.append(" ".join(f"w{w}" for w in words))
    return found


def pictures(labels: Sequence[int], classes: int, seed: int = 0) -> Images:
    """8×8 pictures of noise, brighter in the share of their rows that belongs to their label."""
    rng = np.random.default_rng((seed, 3))
    found = []
    for y in labels:
        picture = rng.integers(0, 120, size=(8, 8, 3))
        picture[8 * y // classes : 8 * (y + 1) // classes] += 100
        found.append(picture.astype(np.uint8))
    return Images(found)


def rows(
    n: int, classes: int = 3, seed: int = 0, labels: Sequence[int] | None = None, pairs: bool = False, reads: str = "texts"
) -> Rows:
    """A table of n labelled texts (or pairs of them), or pictures."""
    rng = np.random.default_rng((seed, 1))
    y = np.asarray(rng.integers(classes, size=n) if labels is None else labels, dtype=np.int64)
    if reads == "images":
        return Rows(None, None, y, np.arange(n), images=pictures(y.tolist(), classes, seed))
    second = texts(n, y.tolist(), classes, seed + 1000) if pairs else None
    return Rows(texts=texts(n, y.tolist(), classes, seed), pairs=second, labels=y, ids=np.arange(n))


def table(of: Backbone, n: int = 24, classes: int = 3, seed: int = 0, pairs: bool = False) -> Table:
    return tabulate(of, rows(n, classes, seed, pairs=pairs, reads=of.reads), 32)


def bench(
    of: Backbone | str = "bert", n: int = 24, classes: int = 3, seed: int = 0, prefix: bool = False, pairs: bool = False
) -> Bench:
    """A bench over n rows."""
    model = backbone(of, classes=classes) if isinstance(of, str) else of
    cache = PrefixCache(model) if prefix else None
    return Bench(model, Classification(names(classes)), table(model, n, classes, seed, pairs), seed, cache)


SIZES = (9, 5, 1, 7, 0, 6)
"""Training rows of each client: one has a single row, one (the fourth) a single class, one none."""


@dataclass
class Federation:
    """A run in memory. ``run()`` plays its rounds; ``global_logits()`` predicts with the server's model."""

    method: Method
    bench: Bench
    server: ServerState
    clients: list[ClientState]
    simulation: Engine
    rounds: int

    def run(self, rounds: int | None = None) -> Federation:
        for t in range(self.rounds if rounds is None else rounds):
            if self.simulation.round(t) is None:
                break
        return self

    def pack(self, clients: Sequence[int] | None = None, t: int = 0) -> Pack:
        """A pack of these clients (all, if None), of one backbone, as they enter round t, past the wire."""
        server = self.server
        server.round = self.method.plan(server, t) or Round(t)
        chosen = self.clients if clients is None else [self.clients[i] for i in clients]
        server.cohort = [c.info(self.method.info.asks) for c in chosen]
        turns = []
        for c in chosen:
            info = c.info(self.method.info.asks)
            message = self.method.send(server, info)
            adaptation = adapted(self.method, self.bench, info)
            turns.append(Turn(c, adaptation, server.held_by(info, adaptation, message), dict(message.facts)))
        return Pack(self.bench.of(chosen[0]), turns, server.round, server.start)

    def cohort(self) -> list[ClientState]:
        """Who takes part in the server's round."""
        return cohort(self.server, self.clients, self.simulation.setup.settings.participation, self.simulation.last_cohort)

    def global_logits(self, index: np.ndarray | None = None) -> Tensor:
        """[n, C] on rows of the table (all, if None)."""
        index = np.arange(len(self.bench.table)) if index is None else index
        return self.server.pack().predict(lambda p, b: self.method.forward(p, b, "global"), [index])[0]


def states(
    sizes: Sequence[int] = SIZES,
    classes: int = 3,
    facts: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    reads: str = "texts",
) -> tuple[Rows, list[ClientState], Tests]:
    """Rows of a whole federation, its clients and its tests; every client with rows has 2 for validation and 3 for test."""
    rng = np.random.default_rng((seed, 2))
    labels: list[int] = []

    def more(count: int, y: Sequence[int]) -> np.ndarray:
        start = len(labels)
        labels.extend(int(v) for v in y)
        return np.arange(start, start + count)

    clients = []
    for i, n in enumerate(sizes):
        skew = rng.dirichlet(np.ones(classes))
        if i == 3:
            skew = np.eye(classes)[0]
        held_out = (2, 3) if n else (0, 0)
        parts = [more(m, rng.choice(classes, m, p=skew)) for m in (n, *held_out)]
        own = dict(facts[i]) if facts else {}
        clients.append(ClientState(f"client-{i}", n, own, data=Splits(*parts)))
    test = more(12, rng.integers(classes, size=12))
    val = more(6, rng.integers(classes, size=6))
    stranger = more(4, rng.integers(classes, size=4))
    return rows(len(labels), classes, seed, labels, reads=reads), clients, Tests(test, val, {"stranger": stranger})


def home(method: Method) -> str:
    """A type of ``SHAPES`` that has what a method needs."""
    needs = method.info.needs
    return "clip" if "two towers" in needs else "vit" if "images" in needs else "bert"


def federation(
    method: Method,
    model: Backbone | str | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    classes: int = 3,
    rounds: int = 2,
    seed: int = 0,
    precision: str = "float64",
    facts: Sequence[Mapping[str, Any]] | None = None,
    prefix: bool = False,
    codec_name: str = "identity",
    start: dict[str, Tensor] | None = None,
    where: Path | None = None,
    others: Sequence[Backbone] = (),
    **settings: Any,
) -> Federation:
    """A whole tiny federation in memory: ``federation(FedIT(rank=2), pack=3).run()``.

    Args:
        model: a type of ``SHAPES`` or a backbone; None = one that has what the method needs. facts: one mapping per client.
        others: more backbones, which clients get by turns.
        prefix: with the frozen-prefix cache.
        where: folder of the client store (a new temporary one). settings: of :class:`weft.engines.setup.Settings`.
    """
    model = model or home(method)
    of = backbone(model, classes=classes, precision=precision) if isinstance(model, str) else model
    all_rows, clients, tests = states(sizes, classes, facts, seed, of.reads)
    benches = [
        Bench(b, Classification(names(classes)), tabulate(b, all_rows, 32), seed, PrefixCache(b) if prefix else None)
        for b in (of, *others)
    ]
    made = replace(benches[0], others={b.backbone.name: b for b in benches[1:]})
    for i, client in enumerate(clients):
        client.model = ["", *made.others][i % len(benches)]
    server = begin(method, made, [c.info(method.info.asks) for c in clients], rounds, start)
    method.start(server)
    where = where or Path(tempfile.mkdtemp(dir=root()))
    setup = Setup(
        method,
        made,
        [(server, clients)],
        Settings(rounds=rounds, **settings),
        Exchange(method, codec(codec_name), Ledger()),
        ClientStore(where / "clients"),
        Spool(where / "spool"),
        tests,
    )
    return Federation(method, made, server, clients, Engine(setup, Here(setup)), rounds)


def mixed_federation(method: Method, backbones: Sequence[Backbone], **settings: Any) -> Federation:
    """Clients with different backbones in one federation: client i has the i-th, counted round and round."""
    first, *others = backbones
    return federation(method, first, others=others, **settings)


def hooks(model: torch.nn.Module) -> Iterator[str]:
    """Whatever is left on a model that was not there when it was loaded: hooks and replaced forwards."""
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            if getattr(module, kind, None):
                yield f"{name}.{kind}"
        if "forward" in vars(module):
            yield f"{name}.forward"


def hub(monkeypatch: Any, cache: Path, models: Mapping[str, str]) -> None:
    """Make hub ids stand for local folders, as after a download: id -> folder."""
    for name, source in models.items():
        repository = cache / ("models--" + name.replace("/", "--"))
        shutil.copytree(source, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        for attribute in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
            monkeypatch.setattr(f"{module}.{attribute}", str(cache), raising=False)
