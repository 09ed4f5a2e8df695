"""Tiny random backbones: ``folder("bert")`` saves one of a few thousand parameters with a word-level tokenizer, and
``backbone("bert")`` loads it.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from weft.backbones import item_codes
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.options import FILL, GENERATION, MASKED, NEXT_ITEM, VQ_REC
from weft.data.item_names import title_of
from weft.federation.method import Method
from weft.tasks.kinds import LANGUAGE as LANGUAGE_TASKS

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
BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
PICTURED = {k: v for k, v in COMMON.items() if k not in ("vocab_size", "max_position_embeddings")} | {
    "image_size": 8,
    "patch_size": 4,
}
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
    "t5": T5,
    "vit": PICTURED,
    "deit": PICTURED,
    "dinov2": PICTURED | {"mlp_ratio": 2},
    "beit": PICTURED | {"use_relative_position_bias": True},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "window_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "mlp_ratio": 2.0,
    },
    "resnet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 12],
        "depths": [2, 2],
        "layer_type": "basic",
    },
    "vilt": COMMON | {"image_size": 8, "patch_size": 4},
    "clip": {
        "projection_dim": 16,
        "text_config": COMMON
        | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "projection_dim": 16}
        | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        "vision_config": PICTURED | {"projection_dim": 16},
    },
    "siglip": {
        "text_config": COMMON | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "projection_size": 32},
        "vision_config": PICTURED,
    },
}
MERGED = {"depth": 2, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_VL = {
    "text_config": {k: v for k, v in GROUPED.items() if k != "head_dim"}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
    "image_token_id": 97,
    "vision_start_token_id": 98,
    "vision_end_token_id": 99,
}
WRITERS: dict[str, dict[str, Any]] = {
    "falcon": {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "olmo2": COMMON,
    "gemma2": GROUPED | {"final_logit_softcapping": 3.0, "sliding_window": 32},
    "bart": BART,
    "mbart": BART,
    "marian": BART | {"decoder_start_token_id": 0},
    "led": {k: v for k, v in BART.items() if k != "max_position_embeddings"}
    | {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 8},
    "longt5": T5 | {"encoder_attention_type": "local", "local_radius": 4},
    "llava": {
        "text_config": GROUPED | {"model_type": "llama"},
        "vision_config": PICTURED | {"model_type": "clip_vision_model", "hidden_size": 24},
        "image_token_id": 97,
        "image_seq_length": 4,
    },
    "paligemma": {
        "text_config": GROUPED | {"model_type": "gemma"},
        "vision_config": PICTURED | {"model_type": "siglip_vision_model", "hidden_size": 24, "vision_use_head": False},
        "image_token_id": 97,
        "projection_dim": 32,
    },
    "qwen2_vl": QWEN_VL | {"vision_config": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2} | MERGED},
    "qwen2_5_vl": QWEN_VL
    | {
        "vision_config": {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "fullatt_block_indexes": [1]}
        | {"window_size": 4}
        | MERGED
    },
}
"""Shapes of models that are tried as generators alone."""
TOWERS = ("clip", "siglip")  # of pictures and texts
QUESTIONS = ("vilt",)  # of texts about pictures
PICTURED_REPLIES = ("llava", "paligemma", "qwen2_vl", "qwen2_5_vl")  # that write about pictures
IMAGES = ("vit", "deit", "dinov2", "beit", "swin", "resnet", *TOWERS, *QUESTIONS)
ITEMS = {
    "slots": 2,
    "centroids": 4,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 8,
}
"""Of the network over sequences of items."""
DECODERS = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt_neox", "bloom")
LANGUAGE = (*DECODERS, *PICTURED_REPLIES, "falcon", "olmo2", "gemma2")  # as models that generate text
PAIRED = ("t5", "bart", "mbart", "marian", "led", "longt5")  # encoder-decoders
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
    if model_type in ("bart", "mbart", "led"):
        names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        return names | {"cls_token": "<s>", "sep_token": "</s>"}
    if model_type == "siglip":  # no token starts a text, and the one that ends it pads as well
        return {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    if model_type == "clip":
        return {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[SOS]", "eos_token": "[EOS]"}
    if model_type in ("t5", "marian", "longt5"):
        return {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if model_type in LANGUAGE:  # no padding token: the end-of-text token has to serve
        return {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tokenizer(model_type: str) -> Any:
    """A word-level tokenizer over "w0" … "w93"; encoders frame a text by their special tokens, LLaMA-likes start it by one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = specials(model_type)
    words = [*dict.fromkeys(special.values()), *(f"w{i}" for i in range(WORDS))]
    ids = {w: i for i, w in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    # punctuation by itself: a class name may end a sentence
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if "cls_token" in special:
        cls, sep = special["cls_token"], special["sep_token"]
        second = 0 if "pad_token" in special and special["pad_token"] == "<pad>" else 1
        inner.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:{second} {sep}:{second}",
            special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
        )
    elif model_type in ("t5", "marian", "longt5", "siglip"):
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
        elif "convolution" in name:
            p.copy_(noise * (2 / p[0].numel()) ** 0.5)
        else:
            p.copy_(noise * (0.5 if "embed" in name or "wte" in name or "wpe" in name else 1.5 * p.shape[-1] ** -0.5))
    for name, b in sorted(model.named_buffers()):
        if name.endswith(("running_mean", "running_var")):  # of batch norms
            b.copy_(torch.rand(b.shape, generator=g) + (0.5 if name.endswith("var") else -0.5))


def folder(model_type: str = "bert", checkpoint: str = "base", **overrides: Any) -> str:
    """Folder of a saved tiny model with its tokenizer, made once per process.

    Args:
        checkpoint: ``base`` (no head), ``mlm`` (masked-LM head, no pooler), ``lm`` (causal) or ``pair`` (encoder-decoder).
        overrides: fields of the configuration.
    """
    return _folder(model_type, checkpoint, json.dumps(overrides, sort_keys=True))


@functools.cache
def _folder(model_type: str, checkpoint: str, overrides: str) -> str:
    import transformers
    from transformers import AutoConfig

    transformers.logging.disable_progress_bar()
    kinds = {"base": "AutoModel", "mlm": "AutoModelForMaskedLM", "lm": "AutoModelForCausalLM", "pair": "AutoModelForSeq2SeqLM"}
    kinds["lm"] = "AutoModelForImageTextToText" if model_type in PICTURED_REPLIES else kinds["lm"]
    words = tokenizer(model_type)
    if checkpoint == "mlm":
        words.add_special_tokens({"mask_token": "[MASK]"})
    if model_type in PICTURED_REPLIES:
        around = ["<start>", "<end>"] if model_type.startswith("qwen") else []
        words.add_special_tokens({"additional_special_tokens": ["<image>", *around]})
    config = AutoConfig.for_model(model_type, **(SHAPES | WRITERS)[model_type])
    inner = getattr(config, "text_config", config)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if hasattr(inner, name) and (model_type not in IMAGES or model_type in (*TOWERS, *QUESTIONS)):
            setattr(inner, name, getattr(words, name))
    for name, value in json.loads(overrides).items():
        setattr(config, name, value)
    model = getattr(transformers, kinds[checkpoint]).from_config(config)
    scramble(model)
    path = root() / f"{model_type}-{checkpoint}-{_folder.cache_info().misses}"
    model.save_pretrained(path)
    if model_type.startswith("qwen") and model_type in PICTURED_REPLIES:
        from transformers import Qwen2VLImageProcessorPil

        Qwen2VLImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 64}, patch_size=2).save_pretrained(path)
    elif model_type in (*IMAGES, *PICTURED_REPLIES):
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        side = getattr(config, "image_size", 32 if model_type == "resnet" else 8)
        ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(path)
    if model_type not in IMAGES or model_type in (*TOWERS, *QUESTIONS):
        words.save_pretrained(path)
    return str(path)


def backbone(
    model_type: str = "bert",
    *,
    classes: int = 3,
    precision: str = "float64",
    checkpoint: str | None = None,
    task: str = "auto",
    **overrides: Any,
) -> Backbone:
    """A tiny backbone, loaded once per process: parts never change it.

    Args:
        checkpoint: see :func:`folder`; None = the one that the task needs.
    """
    if model_type == VQ_REC:
        return _backbone(_of_items(items(classes), json.dumps(overrides, sort_keys=True)), classes, precision, NEXT_ITEM)
    stored = checkpoint or ("mlm" if task == FILL else "base")
    return _backbone(folder(model_type, stored, **overrides), classes, precision, task)


@functools.cache
def _of_items(called: Sequence[str], overrides: str) -> str:
    """Folder of a configuration of the network over sequences, with codes of these items, so that no encoder is asked."""
    from weft.backbones.vq_rec import VQRecConfig

    settings = ITEMS | json.loads(overrides)
    path = root() / f"{VQ_REC}-{_of_items.cache_info().misses}"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": VQ_REC, **settings}))
    codes = torch.randint(settings["centroids"], (len(called), settings["slots"]), generator=torch.Generator().manual_seed(0))
    item_codes.keep(path / item_codes.FILE, [title_of(name) for name in called], VQRecConfig(**settings), codes.numpy())
    return str(path)


def names(classes: int) -> tuple[str, ...]:
    """Of the classes: words that the tokenizers know."""
    return tuple(f"class w{7 * c}" for c in range(classes))


def domain(item: int, classes: int) -> str:
    """Of an item: of two domains the first is the larger one, by one item if their number is odd."""
    return "a" if item < (classes + 1) // 2 else "b"


def items(classes: int) -> tuple[str, ...]:
    """Names of items of two domains."""
    return tuple(f"{domain(c, classes)}/{c}: w{7 * c}" for c in range(classes))


def label_words(classes: Sequence[str]) -> str:
    """As of ``--label-words``: a word that the tokenizers know for each class."""
    return ",".join(f"{name}=w{7 * c}" for c, name in enumerate(classes))


@functools.cache
def _backbone(path: str, classes: int, precision: str, task: str) -> Backbone:
    words = label_words(names(classes)) if task == FILL else ""
    called = items(classes) if task == NEXT_ITEM else names(classes)
    return load(path, classes=called, device="cpu", precision=precision, task=task, label_words=words)


def home(method: Method) -> str:
    """A type of ``SHAPES`` that has what a method needs."""
    needs = method.info.needs
    if "items" in needs:
        return VQ_REC
    if "connector" in needs:
        return "llava"
    return "clip" if "two towers" in needs else "vit" if "images" in needs else "bert"


def at_home(method: Method, task: str) -> str:
    """A type that has what a method needs, and reads the rows of a task."""
    if task not in LANGUAGE_TASKS or task_of(method) in LANGUAGE_TASKS:
        return home(method)
    return "bert" if task == MASKED else "llama"


def task_of(method: Method) -> str:
    """What backbones are loaded for if a method is tried on them."""
    if "items" in method.info.needs:
        return NEXT_ITEM
    if "hidden words" in method.info.needs:
        return MASKED
    if "connector" in method.info.needs:
        return GENERATION
    return FILL if "label words" in method.info.needs else "auto"  # a head comes by itself


def home_folder(method: Method) -> str:
    """Of a model that has what a method needs; of one over items, for three of them."""
    if task_of(method) == NEXT_ITEM:
        return _of_items(items(3), "{}")
    task = task_of(method)
    return folder(home(method), "mlm" if task in (FILL, MASKED) else "lm" if task == GENERATION else "base")


def hooks(model: torch.nn.Module) -> Iterator[str]:
    """Whatever is left on a model that was not there when it was loaded: hooks and replaced forwards.

    Not in the tower of pictures of a model that writes about them, where no part can sit: transformers leaves hooks of its own
    where it was asked for hidden states.
    """
    for name, module in model.named_modules():
        if name.startswith(getattr(model, "TOWER", ())):
            continue
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            if getattr(module, kind, None):
                yield f"{name}.{kind}"
        if "forward" in vars(module):
            yield f"{name}.forward"
