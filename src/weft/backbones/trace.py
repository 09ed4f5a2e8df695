"""What only a run tells of an unknown Hugging Face model: a few rows go through it and are watched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.backbones import maps as maps_of
from weft.backbones.describe import features, is_norm
from weft.backbones.maps import shape_of
from weft.backbones.model_site import Site
from weft.errors import UserError


@dataclass(frozen=True)
class Trace:
    """What only a run of the model tells.

    Attributes:
        d: hidden size of the last block. bottlenecks: sites of a bottleneck adapter. reader: what is called with the raw input: a
            token embedding, a convolution over patches; None if nothing is.
        shared: a block is called several times. chained: blocks hand on more than their hidden states.
        tuple_blocks: size of the tuple in which blocks return their hidden state; 0 = on its own.
        staged: tokens are merged between some blocks, so that hidden states are not of one shape (Swin). spread: how many numbers
            they have, in the mean over the blocks, for each of the last block's.
        maps: of a network of convolutions, (features, height, width) of what enters each block, and of what leaves the last.
        starts: of such a network, that a pass can start at any of its blocks.
        pools: the tokens that the head reads: ``first``, ``last`` (of a row's own tokens) or ``all``; of maps ``mean`` (of all
            places) or ``all``. tokens: in the last block, but for those of a text beside a picture; of maps, as many as have the
            numbers of a usual one.
        longer: blocks take more tokens than those of a picture.
        common: modules called with something else than the rows of the batch, as DeBERTa's with its table of positions.
        idle: linear layers that are never called, as those inside PyTorch's own attention, which reads their weights.
        row_arguments: arguments of a block that have one entry per row, or per row and head (BLOOM's alibi).
    """

    d: int
    bottlenecks: list[Site]
    reader: Site | None
    shared: bool
    chained: bool
    staged: bool
    spread: float
    maps: tuple[tuple[int, int, int], ...]
    starts: bool
    tuple_blocks: int
    pools: str
    tokens: int
    longer: bool
    common: frozenset[str]
    idle: frozenset[str]
    row_arguments: frozenset[str]


ROWS, WIDTH = 5, 3  # of the run that is watched: told apart in a shape
PICTURES = 7  # rows, where the number of tokens is the model's: a square and one or two more


def trace(model: nn.Module, blocks: list[str], inputs: Mapping[str, torch.Tensor], apart: tuple[str, ...] = ()) -> Trace:
    """Run a few rows through the model and watch.

    Args:
        inputs: :func:`words` or :func:`pictures`. apart: prefixes of modules that see other rows (a text tower).

    Bottlenecks follow the feed-forward (Houlsby/Pfeiffer placement). Post-norm blocks (BERT) end in a layer norm: the site is
    that norm, role ``ffn.norm``. Other blocks (LLaMA): the site is the block's output, role ``block``.

    Raises:
        UserError: blocks that take and give neither hidden states [rows, tokens, d] nor maps, or that never run.
    """
    modules = dict(model.named_modules())
    pictured = "pixel_values" in inputs
    raw = inputs["pixel_values" if "input_ids" not in inputs else "input_ids"]
    rows, heads = len(raw), getattr(model.config, "num_attention_heads", 1)
    by_head = {rows * h for h in (heads if isinstance(heads, (list, tuple)) else [heads])}  # Swin: another number in each stage
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    sizes: set[int] = set()
    common: set[str] = set()
    row_arguments: set[str] = set()
    last: list[torch.Tensor] = []
    seen: set[int] = {WIDTH}
    shapes: dict[str, set[tuple[int, ...]]] = {name: set() for name in blocks}
    entered: dict[str, torch.Tensor] = {}
    read: dict[str, tuple[int, ...]] = {}  # by convolutions
    readers: list[str] = []

    def block_hook(name: str) -> Callable[..., Any]:
        def hook(_m: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            calls[name] += 1
            sizes.add(len(out) if isinstance(out, tuple) else 0)
            row_arguments.update(paths_with({rows, *by_head}, args, kwargs))
            hidden = outputs[name] = out[0] if isinstance(out, tuple) else out
            given = args[0] if args else kwargs.get("hidden_states")
            shapes[name] |= {shape_of(given), shape_of(hidden)}
            if isinstance(given, torch.Tensor):
                entered[name] = given
            seen.add(hidden.shape[1] if isinstance(hidden, torch.Tensor) and hidden.dim() == 3 else 0)
            if name != blocks[-1] or not isinstance(hidden, torch.Tensor):
                return None
            last[:] = [hidden.detach().requires_grad_()]  # what the head makes of it is differentiated below
            return (last[0], *out[1:]) if isinstance(out, tuple) else last[0]

        return hook

    def leaf_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            calls[name] += 1
            if is_norm(module):
                outputs[name] = out
            size = (*shape_of(args[0] if args else None), 0)[0]
            if size not in (rows, rows * max(seen)) and (not pictured or size == 0 or size % rows):  # windows of pictures
                common.add(name)

        return hook

    def reader_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, _out: Any) -> None:
            if isinstance(module, nn.Conv2d) and args:
                read[name] = shape_of(args[0])
            if args and shape_of(args[0]) == tuple(raw.shape) and torch.equal(args[0], raw):
                readers.append(name)

        return hook

    weights = {n: m for n, m in modules.items() if isinstance(m, (nn.Embedding, nn.Conv2d)) and not n.startswith(apart)}
    leaves = {n for n, m in modules.items() if (is_norm(m) or features(m) is not None) and not n.startswith(apart)}
    watched = {modules[n]: block_hook(n) for n in blocks}
    others = {modules[n]: leaf_hook(n) for n in leaves} | {m: reader_hook(n) for n, m in weights.items()}
    with torch.enable_grad(), hooked(watched, with_kwargs=True), hooked(others):
        logits = _logits(model, inputs)
        batch_norms = all(isinstance(m, _BatchNorm) for m in modules.values() if is_norm(m))
        maps = (
            maps_of.shapes(blocks, entered, outputs, read) if batch_norms else ()
        )  # others may have features first or last (ConvNeXt)
        tokens, staged = (0, True) if maps else _tokens([shapes[name] or {()} for name in blocks], rows, inputs)
        (slope,) = torch.autograd.grad(logits.sum(), last, allow_unused=True)
    found = []
    for index, path in enumerate(blocks):
        ends = [n for n, out in outputs.items() if n.startswith(path + ".") and torch.equal(out, outputs[path])]
        name, role = (ends[-1], "ffn.norm") if ends else (path, "block")
        d = outputs[path].shape[1 if maps else -1]
        found.append(Site(name, role, d, d, block=index))
    numbers = sum(outputs[n].numel() for n in blocks) / len(blocks)
    if maps:
        tokens = max(round(numbers / rows / d), 1)
    stack = [modules[n] for n in blocks]
    return Trace(
        d=d,
        bottlenecks=found,
        reader=_reader(readers[0], weights[readers[0]]) if readers else None,
        shared=max(calls[n] for n in blocks) > 1,
        chained=max(sizes) > 1 and _chained(stack, model, inputs, logits),
        staged=staged,
        spread=1.0 if maps else numbers / last[0].numel(),
        maps=maps,
        starts=bool(maps) and maps_of.start(stack, entered[blocks[-1]], model, inputs, logits),
        tuple_blocks=max(sizes),
        longer=raw is inputs.get("pixel_values") and not maps and takes_tokens(model, blocks[0], inputs),
        pools=maps_of.pooled(stack[-1], model, inputs, logits) if maps else _pooled(slope, inputs),
        tokens=tokens - (WIDTH if pictured and "input_ids" in inputs else 0),
        common=frozenset(common),
        idle=frozenset(n for n in leaves if not calls[n]),
        row_arguments=frozenset(row_arguments),
    )


@torch.no_grad()
def untraced(model: Any, inputs: Mapping[str, torch.Tensor]) -> Trace:
    """Of a tower of pictures that is taken as a whole: nothing but the size of what it makes of a picture.

    Raises:
        UserError: it can't be run, or gives no numbers.
    """
    _logits(model, inputs)
    pictures = inputs["pixel_values"]
    d = model.embed_images(pictures[:1]).shape[-1]
    tokens = max(pictures[0, 0].numel() // 16**2, 1)  # a usual ViT's, by which pictures are counted that go through together
    none: frozenset[str] = frozenset()
    return Trace(d, [], None, False, False, False, 1.0, (), False, 0, "all", tokens, False, none, none, none)


def _logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """
    Raises:
        UserError: the model can't be run.
    """
    try:
        logits: torch.Tensor = model(**inputs).logits
    except Exception as e:
        why = f"{type(e).__name__}: {str(e).strip().splitlines()[0]}" if str(e).strip() else type(e).__name__
        raise UserError(f"this backbone can't be run on a few short rows ({why}): choose another.") from e
    if not bool(logits.isfinite().all()):
        raise UserError("this backbone's logits of a few short rows are not finite: its weights are damaged; get it anew.")
    return logits


def idle(model: nn.Module, inputs: Mapping[str, torch.Tensor], names: Collection[str]) -> set[str]:
    """Of these tensors, those that the logits do not depend on: tokens of masks, say, and whole numbers that a model derives."""
    some = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n in names}
    derived = {n for n, b in model.named_buffers() if n in names and not b.is_floating_point()}
    try:
        with torch.enable_grad():
            for p in some.values():
                p.requires_grad_()
            logits = model(**inputs).logits
            if not logits.requires_grad:
                return derived | set(some)
            slopes = torch.autograd.grad(logits.sum(), list(some.values()), allow_unused=True)
    except Exception:  # of a model that is not whole
        return derived
    finally:
        model.requires_grad_(False)
    return derived | {n for n, slope in zip(some, slopes, strict=True) if slope is None}


@torch.no_grad()
def row_arguments(model: nn.Module, blocks: Collection[str], inputs: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """As of :class:`Trace`, where each row has positions of its own, as in generation after prompts of unequal length."""
    found: set[str] = set()
    rows, width = inputs["input_ids"].shape
    positions = torch.arange(width, device=inputs["input_ids"].device).expand(rows, width).contiguous()

    def note(_m: nn.Module, args: Any, kwargs: Any, _out: Any) -> None:
        found.update(paths_with({rows}, args, kwargs))

    try:
        with hooked(dict.fromkeys(map(model.get_submodule, blocks), note), with_kwargs=True):
            model(**inputs, position_ids=positions)
    except Exception:  # of a model that takes no positions
        return frozenset()
    return frozenset(found)


class _Reached(Exception):
    """A block was reached, which is all that was asked."""


@torch.no_grad()
def takes(model: nn.Module, block: str, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model makes these inputs into what enters its first block, ``block``."""

    def stop(_m: nn.Module, _a: Any) -> None:
        raise _Reached

    handle = model.get_submodule(block).register_forward_pre_hook(stop)
    try:
        model(**inputs)
    except _Reached:
        return True
    except Exception:
        return False
    finally:
        handle.remove()
    return True


@torch.no_grad()
def takes_tokens(model: nn.Module, block: str, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model runs with one more token behind the first of each row that enters ``block``, its first.

    Not where tokens have places in windows (Swin), in a table of pairs (BEiT) or in a layer of their own (MLP-Mixer).
    """

    def insert(_m: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        longer = torch.cat([hidden[:, :1], hidden], 1)
        return ((longer, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": longer})

    handle = model.get_submodule(block).register_forward_pre_hook(insert, with_kwargs=True)
    try:
        model(**inputs)
    except Exception:
        return False
    finally:
        handle.remove()
    return True


def longest(model: nn.Module, block: str, inputs: Mapping[str, torch.Tensor], limit: int) -> int:
    """Tokens of the longest row up to ``limit`` that reaches the first block.

    Args:
        inputs: of :func:`words`.
    """
    token, others = inputs["input_ids"][:1, :1], {n: t[:1] for n, t in inputs.items() if n == "pixel_values"}

    def fits(length: int) -> bool:
        ids = token.expand(1, length)
        return takes(model, block, others | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    if fits(limit):
        return limit
    low, high = 0, limit  # fits, does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]], with_kwargs: bool = False) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=with_kwargs) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(name: str, module: nn.Module) -> Site:
    if isinstance(module, nn.Embedding):
        return Site(name, "words", module.num_embeddings, module.embedding_dim, block=None)
    assert isinstance(module, nn.Conv2d)
    return Site(name, "patches", module.in_channels, module.out_channels, block=None, bias=module.bias is not None)


def _tokens(shapes: list[set[tuple[int, ...]]], rows: int, inputs: Mapping[str, torch.Tensor]) -> tuple[int, bool]:
    """Tokens of a row inside the last block, and whether another block has another number.

    Args:
        shapes: of each block, of what goes into it and comes out of it; () = of something else than a tensor.

    Raises:
        UserError: these are no hidden states, or a block does not keep their shape.
    """
    width = inputs["input_ids"].shape[1] if "input_ids" in inputs and "pixel_values" not in inputs else None
    if "decoder_input_ids" in inputs:  # an encoder may pad its rows, as LED's
        shapes = [{(*s[:1], int(width or 0), *s[2:]) if len(s) == 3 else s for s in some} for some in shapes]
    every = set().union(*shapes)
    hidden = all(len(s) == 3 and s[0] == rows and width in (None, s[1]) for s in every)
    staged = len(every) > 1
    if not hidden or any(len(some) > 1 for some in shapes) or (staged and width is not None):
        raise UserError(
            "this backbone's blocks take and give neither hidden states of one shape [rows, tokens, features] nor maps of "
            "convolutions with batch norms: choose a transformer or a ResNet, or name its list of blocks with --blocks PATH."
        )
    (last,) = shapes[-1]
    return int(last[1]), staged


@torch.no_grad()
def _chained(blocks: list[nn.Module], model: nn.Module, inputs: Mapping[str, torch.Tensor], logits: torch.Tensor) -> bool:
    """Whether the logits change when blocks hand on nothing but their hidden states, as blocks that were left out do."""

    def hidden_only(_m: nn.Module, _a: Any, out: Any) -> Any:
        return (out[0], *[None] * (len(out) - 1)) if isinstance(out, tuple) else out

    try:
        with hooked(dict.fromkeys(blocks, hidden_only)):
            return not torch.allclose(model(**inputs).logits, logits)
    except Exception:  # whatever a model does without something that it needs
        return True


def pictures(height: int, width: int) -> dict[str, torch.Tensor]:
    """PICTURES different ones."""
    g = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(PICTURES, 3, height, width, generator=g)}


def words(model: nn.Module) -> dict[str, torch.Tensor]:
    """ROWS rows of WIDTH tokens; the last one of the second row is padding."""
    config: Any = getattr(model.config, "text_config", None) or model.config
    pad = int(config.pad_token_id or 0)
    some = [i for i in range(min(config.vocab_size, WIDTH + 6)) if i != pad][-WIDTH:]
    ids = torch.tensor([some] * ROWS, device=next(model.parameters()).device)
    mask = torch.ones_like(ids)
    ids[1, -1], mask[1, -1] = pad, 0
    apart = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    return {"input_ids": ids, "attention_mask": mask} | apart


def _pooled(slope: torch.Tensor | None, inputs: Mapping[str, torch.Tensor]) -> str:
    """From the gradient of the logits, [ROWS, tokens, d]: which tokens reach the head."""
    if slope is None:
        return "all"
    read = slope.abs().sum(-1) > 0
    if "pixel_values" in inputs:
        return "first" if bool(read[:, 0].all()) and not bool(read[:, 1:].any()) else "all"
    for name, full, short in (("first", 0, 0), ("last", WIDTH - 1, WIDTH - 2)):
        at = torch.full((ROWS,), full, device=read.device)
        at[1] = short
        if torch.equal(read, torch.nn.functional.one_hot(at, WIDTH).bool()):
            return name
    return "all"


def paths_with(sizes: Collection[int], args: Any, kwargs: Any) -> set[str]:
    """Paths ("0", "attention_mask", "position_embeddings.1") of the tensors whose first size is one of these."""
    found: set[str] = set()

    def visit(value: Any, path: str) -> None:
        if isinstance(value, torch.Tensor):
            if value.dim() and value.shape[0] in sizes:
                found.add(path)
        elif isinstance(value, (tuple, list)):
            for i, v in enumerate(value):
                visit(v, f"{path}.{i}" if path else str(i))
        elif isinstance(value, dict):
            for key, v in value.items():
                visit(v, f"{path}.{key}" if path else str(key))

    visit(args, "")
    visit(kwargs, "")
    return found
