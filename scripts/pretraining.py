"""What the scripts that pretrain the shipped backbones share: towers, losses, files and measured accuracies.

Pictures come from an object with ``draw(n)``: pictures [n, 3, S, S] in -1 … 1, and what is on them, by name, as labels [n].
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from weft.data.glyphs import CHARACTERS
from weft.data.rows import Rows

COLOURS = {
    "red": (0.85, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.1, 0.2, 0.85), "yellow": (0.95, 0.9, 0.15),
    "orange": (0.95, 0.55, 0.1), "purple": (0.55, 0.1, 0.65), "cyan": (0.15, 0.8, 0.85), "pink": (0.95, 0.6, 0.75),
    "brown": (0.45, 0.27, 0.1), "black": (0.05, 0.05, 0.05), "white": (0.97, 0.97, 0.97), "grey": (0.5, 0.5, 0.5),
}  # fmt: skip
TEMPLATES = (
    "a photo of a {}.", "a picture of a {}.", "a photo of the {}.", "an image of a {}.", "{}", "the character {}.",
    "a small photo of a {}.", "a drawing of a {}.", "a {}.", "a printed {}.",
)  # fmt: skip
MORE_WORDS = (
    "handwritten", "digit", "type", "pet", "flower", "food", "texture", "person", "doing", "sketch", "painting", "cartoon",
    "art", "of", "an", "the", "with", "in", "and",
)  # fmt: skip
PIECES = (*CHARACTERS, *(f"##{c}" for c in CHARACTERS))  # pieces that any word can be spelt with
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SHIPPED = Path(__file__).parents[1] / "src" / "weft" / "backbones" / "shipped"


class Pictures(Protocol):
    def draw(self, n: int) -> tuple[Tensor, dict[str, Tensor]]: ...


class Captioned(Pictures, Protocol):
    def captions(self, what: dict[str, Tensor]) -> list[str]: ...


def words(more: Collection[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer: the words of templates and colours, ``more``, and every letter and digit.

    So any class name has ids of its own.
    """
    known = {w.strip(".,") for t in TEMPLATES for w in t.split()} | set(MORE_WORDS) | set(COLOURS) | {"on", "letter", "digit"}
    known = {w for w in known | set(more) if w and "{" not in w and len(w) > 1}
    pieces = ["[PAD]", "[UNK]", "[X]", *PIECES, ".", ",", "-", "'", *sorted(known), "[SOS]", "[EOS]"]
    own = {"bos_token": "[SOS]", "eos_token": "[EOS]", "additional_special_tokens": ["[X]"]}
    return word_pieces(pieces, "[SOS]", "[EOS]", **own)


def word_pieces(pieces: Sequence[str], first: str, last: str, most: int = 40, **special: Any) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with these pieces, which puts ``first`` before a text and ``last``, if any, behind it."""
    ids = {w: i for i, w in enumerate(pieces)}
    inner = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(), special_tokens=[(mark, ids[mark]) for mark in (first, last) if mark]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=most,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def small_clip(tokenizer: PreTrainedTokenizerFast, size: int, patch: int, width: int) -> CLIPModel:
    """A fresh CLIP: an image tower of 4 blocks of this width, a text tower of 3; joint width 64."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tower = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 2 * width, "projection_dim": 64}
    return CLIPModel(
        CLIPConfig(
            projection_dim=64,
            text_config=tower | special | {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "max_position_embeddings": 40},
            vision_config=tower | {"num_hidden_layers": 4, "image_size": size, "patch_size": patch},
        )
    )


def clip_processor(size: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **HALF)


class First(nn.Module):
    """A transformers ViT as a tower: its first token, and its patches."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model(x).last_hidden_state
        return tokens[:, 0], tokens[:, 1:]


def rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def supervised(
    tower: nn.Module,
    width: int,
    steps: int,
    pictures: Pictures,
    sizes: Mapping[str, int],
    *,
    cells: int = 0,
    batch: int = 256,
    peak: float = 2e-3,
    log: str,
) -> None:
    """Train a tower to name what is on a picture, with heads that are thrown away.

    Args:
        tower: from n pictures to vectors [v·n, ``width``], of which each block of n rows is one view of all pictures, and
            patches [n, P, ``width``].
        sizes: classes by name; the first counts five times as much as any other.
        cells: k, where pictures also have a "mask", float [n, P, k]: what each patch is to tell of itself.
        peak: the highest learning rate.
    """
    main = next(iter(sizes))
    heads = nn.ModuleDict({n: nn.Linear(width, c) for n, c in sizes.items()})
    if cells:
        heads["mask"] = nn.Linear(width, cells)
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=peak, weight_decay=0.05)
    began = time.time()
    for step in range(steps):
        x, what = pictures.draw(batch)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        features, patches = tower(x)
        labels = {n: what[n].repeat(len(features) // batch) for n in sizes}
        loss = sum((F.cross_entropy(heads[n](features), labels[n]) * (1.0 if n == main else 0.2) for n in sizes), torch.zeros(()))
        if cells:
            loss = loss + 2 * F.binary_cross_entropy_with_logits(heads["mask"](patches), what["mask"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 249:
            right = (heads[main](features).argmax(1) == labels[main]).float().mean()
            print(
                f"{log} {step + 1}/{steps}: loss {float(loss.detach()):.3f}, {main} {float(right):.3f}, "
                f"{time.time() - began:.0f} s",
                flush=True,
            )


def adamw(*modules: nn.Module) -> torch.optim.AdamW:
    """Weights decay where they are matrices, and no embeddings; a tensor that several share is there once."""
    every = {id(p): (n, p) for module in modules for n, p in module.named_parameters()}
    flat = [p for n, p in every.values() if p.dim() < 2 or "embed" in n]
    matrices = [p for n, p in every.values() if not (p.dim() < 2 or "embed" in n)]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}])


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def by_class_token(clip: CLIPModel, x: Tensor) -> Tensor:
    """[n, e], of unit length."""
    return unit(clip.visual_projection(clip.vision_model(x).pooler_output))


def by_patches(clip: CLIPModel, x: Tensor) -> Tensor:
    """[n, e]: mean of the patches' unit vectors, whose product with a text is the mean of the patches' cosines."""
    tower = clip.vision_model
    patches = tower.post_layernorm(tower(x).last_hidden_state[:, 1:])
    return unit(clip.visual_projection(patches)).mean(1)


def by_both(clip: CLIPModel, x: Tensor) -> Tensor:
    """[2·n, e]: by the class token, and by the mean of the patches."""
    tower = clip.vision_model
    tokens = unit(clip.visual_projection(tower.post_layernorm(tower(x).last_hidden_state)))
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)])


Embedding = Callable[[CLIPModel, Tensor], Tensor]


def contrastive(
    clip: CLIPModel,
    tokenizer: Any,
    steps: int,
    seed: int,
    pictures: Captioned,
    names: Collection[str],
    main: str,
    *,
    embed: Embedding = by_class_token,
    batch: int = 256,
    peak: float = 1e-3,
) -> None:
    """In turn: captions against pictures, symmetric, with shared targets where captions are the same; and names in a template.

    names: of the labels ``main``, in their order.
    embed: from n pictures to vectors [v·n, e]; the loss is the mean over the v views.
    """
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=peak, weight_decay=0.05)
    began = time.time()

    def texts(lines: list[str]) -> Tensor:
        ids = tokenizer(lines, padding=True, return_tensors="pt")["input_ids"]
        return unit(clip.text_projection(clip.text_model(ids).pooler_output))

    def against(view: Tensor, texts: Tensor, target: Tensor) -> Tensor:
        logits = scale * view @ texts.T
        forth = F.cross_entropy(logits, target)
        return forth if target.dim() == 1 else 0.5 * (forth + F.cross_entropy(logits.T, target))

    for step in range(steps):
        x, what = pictures.draw(batch)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        views = embed(clip, x).split(batch)
        scale = clip.logit_scale.exp()
        if step % 2:
            template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=g))]
            said, target = texts([template.format(name) for name in names]), what[main]
        else:
            lines = pictures.captions(what)
            same = torch.tensor([[a == b for b in lines] for a in lines], dtype=torch.float32)
            said, target = texts(lines), same / same.sum(1, keepdim=True)
        loss = sum((against(view, said, target) for view in views), torch.zeros(())) / len(views)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        if step % 250 >= 248:
            print(
                f"clip {step + 1}/{steps}: loss {float(loss.detach()):.3f}, scale {float(scale):.1f}, "
                f"{time.time() - began:.0f} s",
                flush=True,
            )


@torch.no_grad()
def zero_shot(folder: Path, pictures: Tensor, labels: Tensor, names: tuple[str, ...], embed: Embedding = by_class_token) -> float:
    """Accuracy of the saved model by "a photo of a NAME."."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer([f"a photo of a {n}." for n in names], padding=True, return_tensors="pt")["input_ids"]
    text = unit(clip.get_text_features(ids).pooler_output)
    image = torch.cat([embed(clip, p) for p in pictures.split(256)])
    return float(((image @ text.T).argmax(1) == labels).float().mean())


def tensors(rows: Rows, processor: Any) -> tuple[Tensor, Tensor]:
    """Pictures as the processor gives them, and their labels."""
    assert rows.images is not None
    done = processor(images=[rows.images[i] for i in range(len(rows))], return_tensors="pt")["pixel_values"]
    return done, torch.from_numpy(rows.labels.copy())


def save(model: Any, folder: Path, extras: list[Any]) -> str:
    """Write a model in float16 with its tokenizer and processor; the sha256 of the weights."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    for extra in extras:
        extra.save_pretrained(folder)
    preprocessor = folder / "preprocessor_config.json"  # the names that every release of transformers knows
    preprocessor.write_text(preprocessor.read_text().replace("ImageProcessorPil", "ImageProcessor"))
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def card(folder: Path, model: Any, digest: str, what: str, written: str, lines: list[str], knows: str) -> None:
    """Write the model card: what it is, ``written`` by which command from what, measured lines, what it ``knows``."""
    size = sum(p.numel() for p in model.parameters())
    text = [
        "---", "license: apache-2.0", "library_name: transformers", "tags: [weft, federated-learning]", "---",
        f"# {folder.name}", "", what, "", f"- {size:,} parameters, float16; sha256 of `model.safetensors`: `{digest}`",
        f"- Written by {written}; nothing was downloaded.", *[f"- {line}" for line in lines], "",
        f"For trying out federated fine-tuning without a network, and for tests. {knows}", "",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(text))
    print(f"{folder.name} {digest} {size:,} parameters")
