"""Where a backbone computes attention, and how something else is computed there for the length of a call.

Attention modules of transformers make queries, keys and values in code of their own (with rotary positions, with the keys and
values of earlier tokens) and hand them, with a mask, to a function that their configuration names. Whoever stands in for that
function sees all models alike: queries [n, H, T, d], keys and values [n, H', S, d], and a mask [n or 1, H or 1, T, S], or none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weft.backbones.model_site import Site

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

NAME = "weft"
"""Of the function that the configuration of a module names, where another one stands in."""

Attend = Callable[..., Any]
"""(module, query, key, value, mask, …) -> (output, scores)."""


class _Configuration:
    """A module's configuration, but for the name of its attention function.

    Args:
        run: called in its place, as ``run(own, module, query, key, value, mask, …)``. own: the function itself.
    """

    _attn_implementation = NAME

    def __init__(self, plain: Any, run: Attend, own: Attend):
        self._plain, self._run, self._own = plain, run, own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def attend(self, module: nn.Module, *given: Any, **more: Any) -> Any:
        return self._run(self._own, module, *given, **more)


def _standing(module: Any, *given: Any, **more: Any) -> Any:
    return module.config.attend(module, *given, **more)


def kernel(module: nn.Module) -> str:
    """Name of the module's attention function: ``eager``, ``sdpa`` …"""
    return str(getattr(vars(module).get("config"), "_attn_implementation", None))


def own_function(module: nn.Module) -> Attend | None:
    """The attention function that the module's configuration names, None if it names none."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = kernel(module)
    if name in ALL_ATTENTION_FUNCTIONS:
        found: Attend = ALL_ATTENTION_FUNCTIONS[name]
        return found
    # each file of transformers has an eager one of its own, beside the classes that call it
    return inspect.unwrap(type(module).forward).__globals__.get(f"{name}_attention_forward")


@contextmanager
def standing_in(modules: Iterable[nn.Module], run: Attend) -> Iterator[None]:
    """Inside, ``run(own, module, query, key, value, mask, …)`` is called wherever one of these modules computes attention.

    Modules whose configuration names no attention function stay as they are.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _standing)
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            own = own_function(module)
            if own is not None:
                plain = vars(module)["config"]
                before.append((module, plain))
                module.config = _Configuration(plain, run, own)  # type: ignore[assignment]
        yield
    finally:
        for module, plain in before:
            module.config = plain


@torch.no_grad()
def sites(model: nn.Module, blocks: list[str], inputs: Mapping[str, Tensor]) -> list[Site]:
    """The modules inside the blocks that compute attention where another function can stand in, as a run of a few rows shows.

    Of a site, ``d_in`` is the width of the keys of one token over all heads, ``d_out`` that of its values.

    Args:
        inputs: of :func:`weft.backbones.trace.words` or ``pictures``.

    Returns:
        none of a model that does not run like that: its attention is code of its own.
    """
    seen: dict[nn.Module, tuple[int, int]] = {}

    def note(own: Attend, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *given: Any, **more: Any) -> Any:
        seen[module] = (key.shape[1] * key.shape[3], value.shape[1] * value.shape[3])
        return own(module, query, key, value, *given, **more)

    inside = [(f"{path}.{name}", i, m) for i, path in enumerate(blocks) for name, m in model.get_submodule(path).named_modules()]
    try:
        with standing_in([m for _, _, m in inside], note):
            model(**inputs)
    except Exception:
        return []
    return [Site(name, "attention", *seen[m], block=i) for name, i, m in inside if m in seen]


def of(backbone: Backbone) -> list[Site]:
    """:func:`sites` of a whole backbone."""
    if not backbone.blocks:
        return []
    from weft.backbones import trace
    from weft.backbones.pixels import picture_shape

    if backbone.processor is None or backbone.vocabulary is not None:  # a language model's pictures are among its tokens
        inputs = trace.words(backbone.model)
    else:
        inputs = trace.pictures(*picture_shape(backbone.model.config, backbone.processor)[1:])
    return sites(backbone.model, backbone.blocks, backbone.to_model(inputs) | backbone.class_inputs())
