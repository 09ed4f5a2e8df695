"""The configuration of a bottleneck adapter as AdapterHub's library ``adapters`` (1.3) has it, and the part that it stands for.

See :mod:`weft.export.adapterhub_places` for what its settings make of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from weft.adaptation.bottleneck import BESIDE, Bottleneck, Placement
from weft.adaptation.compacter import Compacter
from weft.adaptation.values import NOWHERE

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site
    from weft.export.adapterhub_places import Layout

Adapter: TypeAlias = Bottleneck | Compacter
FLAGS: Mapping[Placement, Mapping[str, bool]] = {
    "block": {"original_ln_before": True, "is_parallel": False, "mh_adapter": False},
    "ffn": {"original_ln_before": False, "is_parallel": False, "mh_adapter": False},
    "sublayers": {"original_ln_before": False, "is_parallel": False, "mh_adapter": True},
    "parallel": {"original_ln_before": False, "is_parallel": True, "mh_adapter": False},
}
"""What tells the placements apart."""
ALWAYS: Mapping[str, Any] = {
    "output_adapter": True,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "init_weights": "bert",
    "init_weights_seed": None,
    "use_gating": False,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "shared_W_phm": False,
    "factorized_phm_W": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
}
"""The same of every part of ours, or without meaning for what is trained already."""


def sites(part: Adapter, backbone: Backbone) -> list[Site]:
    """Those where there is an adapter."""
    return [site for site in part.sites(backbone) if site != NOWHERE]


def of(part: Adapter, there: Layout, size: int) -> dict[str, Any]:
    """All fields of the library's ``BnConfig``.

    Args:
        size: features of a token.
    """
    usual = BESIDE if part.placement == "parallel" else 1.0
    products = isinstance(part, Compacter)
    return {
        **ALWAYS,
        **FLAGS[part.placement],
        "cross_adapter": any(place.location == "cross_adapter" for place in there.found.values()),
        "leave_out": there.left_out,
        "non_linearity": part.activation,
        "reduction_factor": factor(size, part.width(size)),
        "scaling": part.scaling or usual,
        "phm_layer": products,
        "phm_dim": part.n if isinstance(part, Compacter) else 4,
        "phm_rank": part.rank if isinstance(part, Compacter) else 1,
    }


def factor(size: int, width: int) -> int | float:
    """A reduction factor of which the library makes a bottleneck so wide: int(size // factor)."""
    return size // width if size % width == 0 else size / (width + 0.5)


def part_of(config: Mapping[str, Any], backbone: Backbone) -> Adapter:
    """The part of which :func:`of` made a configuration.

    Raises:
        ValueError, KeyError, TypeError: it made no such one.
    """
    placement = next((p for p, flags in FLAGS.items() if all(config[n] == flag for n, flag in flags.items())), None)
    if placement is None or any(config[name] != value for name, value in ALWAYS.items()):
        raise ValueError("its settings are none that an export has")
    made: Any = partial(Compacter, config["phm_dim"], config["phm_rank"]) if config["phm_layer"] else Bottleneck
    made = partial(made, placement=placement, activation=config["non_linearity"], scaling=config["scaling"])
    size = sites(made(), backbone)[0].d_out
    wanted = int(size // config["reduction_factor"])
    for reduction in range(1, size + 1):
        part: Adapter = made(reduction=reduction)
        if part.width(size) == wanted:
            return part
    raise ValueError(f"no bottleneck of {size} features is {wanted} wide")
