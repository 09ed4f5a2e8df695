"""What a pass puts on modules of the backbone, and takes off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Attachment:
    """``run`` at a module: called with (module, args, output) after it, or with its arguments ``instead`` of its own forward."""

    module: nn.Module
    run: Callable[..., Any]
    instead: bool = False


@dataclass(frozen=True)
class Parameter:
    """``value`` in the place of a module's own parameter ``name``."""

    module: nn.Module
    name: str
    value: Tensor


class Attachments:
    """Those of one pass, in the order in which they were put on."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._before: list[tuple[nn.Module, Any]] = []
        self._parameters: list[tuple[nn.Module, str, Any]] = []

    def put(self, one: Attachment | Parameter) -> None:
        if isinstance(one, Parameter):
            # where PyTorch's own functional_call puts it: a module takes no plain tensor for a parameter otherwise
            self._parameters.append((one.module, one.name, one.module._parameters[one.name]))
            one.module._parameters[one.name] = one.value  # type: ignore[assignment]
        elif one.instead:
            self._before.append((one.module, vars(one.module).get("forward")))
            one.module.forward = one.run
        else:
            self._handles.append(one.module.register_forward_hook(one.run))

    def off(self) -> None:
        """All of them; every module has the forward and the parameters that it had before."""
        for handle in self._handles:
            handle.remove()
        for module, name, value in reversed(self._parameters):
            module._parameters[name] = value
        for module, before in reversed(self._before):
            if before is None:
                del module.forward
            else:
                module.forward = before


@contextmanager
def put_on(some: Iterable[Attachment | Parameter]) -> Iterator[None]:
    """They are on for as long as this lasts."""
    on = Attachments()
    try:
        for one in some:
            on.put(one)
        yield
    finally:
        on.off()
