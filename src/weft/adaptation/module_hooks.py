"""What parts do at single modules for the length of a pass: hooks and forwards that stand in for a module's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.adaptation.block_arguments import hidden_of, with_hidden
from weft.adaptation.in_flight import InFlight
from weft.adaptation.norm_statistics import Moments, Statistics, moments, normalised
from weft.adaptation.placed import Placed
from weft.adaptation.prefix_tuning import Pairs


class ModuleHooks(InFlight):
    """Made by mode of the parts that sit at a module."""

    def _adding(self, here: list[Placed]) -> Callable[..., Any]:
        before_norm = [p for p in here if p.site.role == "ffn.norm"]
        after = [p for p in here if p.site.role != "ffn.norm"]

        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            assert self._pass is not None
            out = result[0] if isinstance(result, tuple) else result
            k = self._pass.k
            x = args[0].to(out.device) if args else out
            maps = self._makes_maps(module, out)
            if maps:
                x, out = x.movedim(1, -1), out.movedim(1, -1)
            flat = out.reshape(k, -1, out.shape[-1])
            if before_norm:  # LN(s + A(z)) with s = the norm's input and z = its output
                terms = self._terms(before_norm, module, x.reshape(k, -1, x.shape[-1]), flat)
                out = module.forward(x + terms.expand_as(flat).reshape(x.shape))
                flat = out.reshape(k, -1, out.shape[-1])
            if after:
                terms = self._terms(after, module, x.reshape(k, -1, x.shape[-1]), flat)
                out = out + terms.expand_as(flat).reshape(out.shape)
                for p in after:
                    self._pass.entered.pop(p.site.reads, None)
            if maps:
                out = out.movedim(-1, 1)
            return (out, *result[1:]) if isinstance(result, tuple) else out

        return hook

    def _hearing(self, name: str) -> Callable[..., None]:
        """At the module of that name, whose input is read elsewhere."""

        def hook(_module: nn.Module, args: tuple[Any, ...], _result: Any) -> None:
            assert self._pass is not None
            self._pass.entered[name] = args[0]

        return hook

    def _makes_maps(self, module: nn.Module, out: Tensor) -> bool:
        """Whether features lie before the places in what it makes."""
        if isinstance(module, (nn.Conv2d, _BatchNorm)):
            return out.dim() > 2
        return bool(self.backbone.maps) and any(module is self.backbone.module(name) for name in self.backbone.blocks)

    def _replacing(self, module: nn.Module, here: list[Placed]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            assert self._pass is not None
            flat = x.reshape(self._pass.k, -1, x.shape[-1])
            out = self._terms(here, module, flat, flat)
            return out.reshape(*x.shape[:-1], out.shape[-1])

        return forward

    def _embedding(self, module: nn.Module, frozen: Callable[[Tensor], Tensor], here: list[Placed]) -> Callable[[Tensor], Tensor]:
        def forward(ids: Tensor) -> Tensor:
            assert self._pass is not None
            k, out = self._pass.k, frozen(ids.clamp(min=0))
            out = out.view(k, -1, *out.shape[1:])
            for p in here:
                out = p.part.apply(module, self._values(p, out.device), ids.view(k, -1, *ids.shape[1:]), out)
            return out.flatten(0, 1)

        return forward

    def _entering(self, module: nn.Module, block: Callable[..., Any], here: list[Placed]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self._pass is not None
            hidden = hidden_of(args, kwargs)
            hidden = hidden.view(self._pass.k, -1, *hidden.shape[1:])
            for p in here:
                hidden = p.part.apply(module, self._values(p, hidden.device), hidden, hidden)
            args, kwargs = with_hidden(hidden.flatten(0, 1), args, kwargs)
            return block(*args, **kwargs)

        return forward

    def _normalising(self, module: nn.Module, p: Placed) -> Callable[[Tensor], Tensor]:
        """A batch norm that goes by the rows of each client in passes of training, and by what is held in others."""
        part = cast(Statistics, p.part)

        def forward(x: Tensor) -> Tensor:
            rows = self._pass
            assert rows is not None
            if rows.keys is None and not self._measuring:
                by = part.held(self._values(p, x.device))
                by = Moments(*(t.expand(rows.k, -1) for t in (by.mean, by.var)))
            else:
                by = moments(x, rows.k, rows.valid)
                if self._noted is not None:
                    self._noted.append((p, rows.clients, Moments(by.mean.detach(), by.var.detach(), by.count)))
            rows.statistics[p.site.name] = by
            return normalised(module, x, by)

        return forward

    def _prefixing(self, here: list[Placed]) -> Pairs:
        def pairs(key: Tensor) -> list[tuple[Tensor, Tensor | None]]:
            found = []
            for p in here:
                w = self._values(p, key.device)
                found.append((p.part.apply(self.backbone.module(p.site.name), w, key, key), None if p.alike else w["tokens"]))
            return found

        return pairs
