"""Where a network is cut in three: what lies before its blocks, the blocks, and what lies behind them.

Whose a parameter is, is told by gradients: of a few rows, what enters the first block, what leaves the last and the logits are
differentiated by all parameters, each with what comes before it held fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weft.backbones.trace import words
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


@dataclass(frozen=True)
class Cut:
    """Names of pretrained parameters, of a tied one the first, as in :attr:`Backbone.own`.

    Attributes:
        before: those that make rows into what enters the first block. blocks: those that make of that what leaves the last one.
        behind: those that make logits of it. A parameter that is tied across the blocks is in ``before`` alone.
    """

    before: tuple[str, ...]
    blocks: tuple[str, ...]
    behind: tuple[str, ...]


class _Reached(Exception):
    """The place was reached, and no more was asked."""


def up_to_blocks(backbone: Backbone) -> AbstractContextManager[list[Tensor]]:
    """A pass inside ends where its rows enter the first block; what enters is in the list that this gives."""
    register = backbone.module(backbone.blocks[0]).register_forward_pre_hook
    return _ended(
        functools.partial(register, with_kwargs=True), lambda _, args, named: args[0] if args else named["hidden_states"]
    )


def up_to_layer(backbone: Backbone, name: str) -> AbstractContextManager[list[Tensor]]:
    """A pass inside ends where its rows enter a linear layer; what enters is in the list that this gives."""
    return _ended(backbone.module(name).register_forward_pre_hook, lambda _, args: args[0])


def through_blocks(backbone: Backbone) -> AbstractContextManager[list[Tensor]]:
    """A pass inside ends where its rows leave the last block; what leaves is in the list that this gives."""
    register = backbone.module(backbone.blocks[-1]).register_forward_hook
    return _ended(register, lambda _, args, out: out[0] if isinstance(out, tuple) else out)


@contextmanager
def _ended(register: Callable[..., Any], taken: Callable[..., Tensor]) -> Iterator[list[Tensor]]:
    """A pass inside ends at a module's hook.

    Args:
        register: of the hook. taken: what of its arguments is kept.
    """
    found: list[Tensor] = []

    def hook(*about: Any) -> None:
        found.append(taken(*about))
        raise _Reached

    handle = register(hook)
    try:
        yield found
    except _Reached:
        pass
    finally:
        handle.remove()


def cut(backbone: Backbone) -> Cut:
    """Find whose each parameter is.

    Raises:
        UserError: blocks can't be cut off, or read a parameter that lies outside of them too.
    """
    backbone.check_separate()
    model, held = backbone.model, list[tuple[Tensor, Tensor]]()

    def apart(hidden: Tensor) -> Tensor:
        held.append((hidden, hidden.detach().requires_grad_()))
        return held[-1][1]

    def enter(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (apart(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": apart(kwargs["hidden_states"])}

    def leave(_module: Any, _args: Any, out: Any) -> Any:
        return (apart(out[0]), *out[1:]) if isinstance(out, tuple) else apart(out)

    some = {name: model.get_parameter(name) for name in backbone.own}
    first, last = (backbone.module(backbone.blocks[i]) for i in (0, -1))
    handles = [first.register_forward_pre_hook(enter, with_kwargs=True), last.register_forward_hook(leave)]
    try:
        with torch.enable_grad():
            for p in some.values():
                p.requires_grad_()
            logits: Tensor = model(**words(model)).logits
            ends = [held[0][0], held[1][0], logits]
            slopes = [torch.autograd.grad(end.sum(), list(some.values()), allow_unused=True) for end in ends]
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)
    before, inside, behind = ([n for n, g in zip(some, of, strict=True) if g is not None] for of in slopes)
    if both := [n for n in inside if n in before or n in behind]:
        raise UserError(
            f'the blocks of backbone "{backbone.name}" share {both[0]} with what lies around them, so that they can\'t be cut '
            "off: choose another --model, such as docs-mlm."
        )
    return Cut(tuple(before), tuple(inside), tuple(n for n in behind if n not in before))
