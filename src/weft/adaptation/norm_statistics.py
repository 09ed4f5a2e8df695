"""The statistics of a backbone's batch norms, with a client axis: of the rows of a step of training, or those that were kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.adaptation.part import Additive, Mode
from weft.errors import UserError
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

Kind = Literal["averaged", "static"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What a batch norm goes by.

    Attributes:
        mean, var: [k, d], the variance divided by the number of values. count: [k], that number; None = it was not counted.
    """

    mean: Tensor
    var: Tensor
    count: Tensor | None = None


@dataclass(frozen=True)
class Statistics(Additive):
    """Means and variances of all batch norms, started at those of the checkpoint. No optimizer holds them.

    In a pass of training each client is normalised by the statistics of its own rows in the batch, through which gradients flow;
    in any other pass by what this part holds.

    Attributes:
        kind: ``averaged``: what is held runs along with the steps, by the momentum of each norm, as in PyTorch. ``static``: it is
            the mean and the mean square over rows, of which the server makes those over the rows of several clients.
    """

    kind: Kind = "averaged"
    mode: ClassVar[Mode] = "normalises"
    always = True

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: there are no batch norms, or some whose statistics can't be those of a client's rows.
        """
        found = [s for s in backbone.norms if isinstance(backbone.module(s.name), _BatchNorm)]
        every = {n for n, m in backbone.model.named_modules() if isinstance(m, _BatchNorm)}
        setting = f'batch_norms = "{self.kind}"'
        if not every:
            raise UserError(f'backbone "{backbone.name}" has no batch norms that {setting} could be of: leave it out.')
        if backbone.embedding is not None or backbone.shared_blocks or backbone.reads != "images":
            raise UserError(
                f'what the batch norms of backbone "{backbone.name}" see is computed apart from passes of training, so that '
                f"{setting} can't be had: leave it out, or choose a network of convolutions."
            )
        plain = {s.name for s in found if _is_plain(backbone.module(s.name))}
        if odd := sorted(every - plain):
            raise UserError(
                f'{odd[0]} of backbone "{backbone.name}" is no plain batch norm with weights, a momentum and running statistics, '
                f"so that {setting} can't be had: leave it out."
            )
        return found

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        norm = backbone.module(site.name)
        assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
        mean, var = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (norm.running_mean, norm.running_var))
        values = {"mean": mean, "var": var} if self.kind == "averaged" else {"mean": mean, "square": var + mean.square()}
        return {role: Init(tuple(value.shape), "value", value=value) for role, value in values.items()}

    def held(self, w: Mapping[str, Tensor]) -> Moments:
        """What is held, as a norm goes by it. A lossy codec or a rounded difference may leave less than nothing of a variance."""
        var = w["var"] if self.kind == "averaged" else w["square"] - w["mean"].square()
        return Moments(w["mean"], var.clamp(min=0))

    def moved(self, module: nn.Module, w: Mapping[str, Tensor], found: Moments) -> dict[str, Tensor]:
        """What is held after a step that has seen rows with these moments; of static statistics nothing moves.

        Args:
            w: before, by role, [k, d].
        """
        if self.kind == "static":
            return {}
        assert isinstance(module, _BatchNorm) and module.momentum is not None and found.count is not None
        m, n = module.momentum, found.count.unsqueeze(1)
        unbiased = found.var * n / (n - 1).clamp(min=1)  # as PyTorch keeps it, though it normalises by the other one
        return {"mean": (1 - m) * w["mean"] + m * found.mean, "var": (1 - m) * w["var"] + m * unbiased}

    def of_rows(self, found: Moments) -> dict[str, Tensor]:
        """What static statistics are of rows with these moments, by role."""
        return {"mean": found.mean, "square": found.var + found.mean.square()}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        raise AssertionError("a norm takes its statistics from the pass, which knows the rows that count")


def _is_plain(module: nn.Module) -> bool:
    if not isinstance(module, _BatchNorm) or type(module).forward is not _BatchNorm.forward:
        return False
    return module.momentum is not None and module.running_mean is not None and module.affine


def moments(x: Tensor, k: int, valid: Tensor | None = None) -> Moments:
    """Of each client's own rows and all their places.

    Args:
        x: [k·n, d, …], what goes into a norm. valid: [k, b] bool, the rows that count; None = all.
    """
    wide = _by_client(x, k)
    if valid is None:
        var, mean = torch.var_mean(wide, dim=(1, 3), correction=0)
        return Moments(mean, var, torch.full((k,), wide.shape[1] * wide.shape[3], device=x.device))
    rows = valid.to(x.device).repeat_interleave(wide.shape[1] // valid.shape[1], 1)
    count = rows.sum(1) * wide.shape[3]
    counted, n = rows[:, :, None, None], count.unsqueeze(1).clamp(min=1)
    mean = wide.masked_fill(~counted, 0.0).sum((1, 3)) / n
    var = (wide - mean[:, None, :, None]).masked_fill(~counted, 0.0).square().sum((1, 3)) / n
    return Moments(mean, var, count)


def normalised(module: nn.Module, x: Tensor, by: Moments) -> Tensor:
    """What a batch norm makes of x [k·n, d, …] by each client's statistics."""
    assert isinstance(module, _BatchNorm)
    wide = _by_client(x, len(by.mean))
    weight, bias = (p.to(wide).view(1, 1, -1, 1) for p in (module.weight, module.bias))
    scale = (by.var.to(wide) + module.eps).rsqrt()[:, None, :, None] * weight
    return ((wide - by.mean.to(wide)[:, None, :, None]) * scale + bias).to(x.dtype).view(x.shape)


def pooled(one: Moments, other: Moments) -> Moments:
    """Of the values of both together (Chan, Golub & LeVeque, 1979); the count of one of them may be 0."""
    assert one.count is not None and other.count is not None
    total = one.count + other.count
    gap = other.mean - one.mean
    share = (other.count.to(gap) / total.clamp(min=1)).unsqueeze(1)
    var = one.var + share * (other.var - one.var) + share * (1 - share) * gap.square()
    return Moments(one.mean + share * gap, var, total)


def _by_client(x: Tensor, k: int) -> Tensor:
    """[k, n, d, places], in single precision at least."""
    return x.reshape(k, x.shape[0] // k, x.shape[1], -1).to(torch.promote_types(x.dtype, torch.float32))
