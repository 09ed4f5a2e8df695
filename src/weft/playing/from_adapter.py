"""``--start``: the LoRA and the head of a PEFT adapter, whoever wrote it, as the start values of a method's own tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.devices import sized
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.experiment import Experiment
from weft.export import peft_adapter
from weft.export.peft_adapter import Adapter
from weft.federation.bench import Bench
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.federation.scope import Scope
from weft.runs.beginning import Beginning, check_clients, digest
from weft.tensors.lowrank import LowRank
from weft.words import count

if TYPE_CHECKING:
    from weft.runs.prepare import Material


def read(x: Experiment) -> Adapter | None:
    """The adapter that an experiment begins from, None if from none; what can be refused without a backbone is.

    Raises:
        UserError: there is none, it is no plain LoRA, or nothing could begin from it.
    """
    if x.start is None:
        return None
    if x.baseline in ("probe", "zero-shot"):
        raise UserError(f"the baseline {x.baseline} trains no LoRA that an adapter could be the start of: leave --start out.")
    if len(x.models) > 1:
        raise UserError("an adapter is of one backbone: give a single --model with --start.")
    return peft_adapter.load(x.start)


def begun(material: Material, adapter: Adapter | None, x: Experiment, method: Method, observer: Observer) -> Material:
    """The material of a run that begins from an adapter; as it is where there is none.

    Raises:
        UserError: the adapter does not fit backbone, method or clients.
    """
    if adapter is None:
        return material
    tensors, about = start_values(adapter, method, material.bench, x.start_head, observer)
    found = Beginning(tensors, about)
    facts = sized(method.profile)
    clients = [replace(c, facts=facts(i, c.facts)).info(method.info.asks) for i, c in enumerate(material.clients)]
    check_clients(found, method, material.bench, clients)
    return replace(material, beginning=found)


def start_values(
    adapter: Adapter, method: Method, bench: Bench, start_head: str, observer: Observer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Start values by name, and what is said of them (:class:`weft.runs.beginning.Beginning`).

    At each site, A = [A'; draw] and B = [s'/s · B', 0] for an adapter's scale s' and the method's s: the same ΔW, at the method's
    rank and scale. Sites that the adapter has nothing at keep their usual start, B = 0.

    Args:
        start_head: the head is the adapter's if this is ``auto`` and it has one for the run's classes.

    Raises:
        UserError: the adapter is of another base, or has a site or a rank that the method has not.
    """
    backbone, adaptation = bench.backbone, adapted(method, bench, ClientInfo(""))
    _check_base(adapter, backbone)
    name, part = _lora(method, adaptation)
    sites = {site.name: site for site in part.sites(backbone)}
    if strange := sorted(adapter.low_rank.keys() - sites.keys()):
        raise UserError(
            f"{adapter.folder} has LoRA at {strange[0]} ({len(strange)} of its {count(len(adapter.low_rank), 'module')}), where "
            f"{method.info.slug} with these settings has none: let its sites hold those of the adapter (weft methods "
            f"{method.info.slug} lists the settings), or give another."
        )
    tensors: dict[str, Tensor] = {}
    for module, value in adapter.low_rank.items():
        site = sites[module]
        _check_fits(adapter, value, method, part, site)
        prefix = f"{name}/{site.called}"
        drawn = {role: bench.draw(init, f"{prefix}/{role}") for role, init in part.tensors(backbone, site).items()}
        b = value.B.double() * (value.scale / part.scale_at(site))
        drawn["A"][: value.rank], drawn["B"][:, : value.rank] = value.A.to(bench.dtype), b.to(bench.dtype)
        tensors |= {f"{prefix}/{role}": drawn[role] for role in ("A", "B")}
    head = _head(adapter, adaptation, bench, observer) if start_head == "auto" else {}
    _check_saved(adapter, adaptation, backbone)
    tensors |= head
    modules, all_of = count(len(adapter.low_rank), "module"), len(sites)
    observer.say(
        f"start: LoRA of {modules} of {all_of} from {adapter.folder}{', and its head' if head else ''}"
        f"{'; the others begin at 0' if len(adapter.low_rank) < all_of else ''}."
    )
    about = {
        "adapter": str(adapter.folder.resolve()),
        "base": adapter.base,
        "sha256": adapter.sha256,
        "values": digest(tensors),
        "modules": len(adapter.low_rank),
        "head": bool(head),
        "lifetime": None if adapter.about is None else adapter.about.lifetime,
    }
    return tensors, about


def _check_base(adapter: Adapter, backbone: Backbone) -> None:
    """By the hash of the weights where Weft wrote it down, else by the last word of its name: a folder may lie anywhere.

    Raises:
        UserError: the adapter is of another base.
    """
    if adapter.about is not None:
        same = adapter.about.base.sha256 == backbone.weight_hash
    else:
        mine = {Path(n).name.lower() for n in (backbone.name, backbone.hub_id, backbone.path) if n}
        same = Path(adapter.base).name.lower() in mine
    if not same:
        raise UserError(
            f"{adapter.folder} is an adapter for {adapter.base or 'a base without a name'}, and the backbone of this run is "
            f"{backbone.hub_id or backbone.name} with other weights or another name: give its own base as --model."
        )


def _lora(method: Method, adaptation: Adaptation) -> tuple[str, LoRA]:
    """The LoRA that clients are sent, and whose tensors do not start afresh in each round.

    Raises:
        UserError: there is none.
    """
    found = []
    for name, (part, scope) in adaptation.items():
        scopes = list(scope.values()) if isinstance(scope, Mapping) else [scope]
        lasting = all(Scope.DOWN in s or Scope.KEEP in s for s in scopes)
        if type(part) is LoRA and lasting and any(Scope.DOWN in s for s in scopes):
            found.append((name, part))
    if len(found) != 1:
        raise UserError(
            f"{method.info.slug} with these settings has no LoRA that clients are sent as it is, which an adapter could be the "
            "start of: leave --start out, or take a method such as fedit."
        )
    return found[0]


def _check_fits(adapter: Adapter, value: LowRank, method: Method, part: LoRA, site: Site) -> None:
    if value.shape != (site.d_out, site.d_in):
        raise UserError(
            f"{adapter.folder} has {value.shape[0]} x {value.shape[1]} at {site.name}, which is {site.d_out} x {site.d_in} in "
            "this backbone: it is an adapter of another base, so give that as --model."
        )
    if value.rank > (rank := part.rank_at(site)):
        raise UserError(
            f"{adapter.folder} has rank {value.rank} at {site.name}, and {method.info.slug} {rank}: cut it with weft merge "
            f"{adapter.folder} --rank {rank} -o NEW, or give the method more ranks."
        )


def _head(adapter: Adapter, adaptation: Adaptation, bench: Bench, observer: Observer) -> dict[str, Tensor]:
    """The adapter's head under the names of the run's, nothing where it is not one for its classes."""
    found: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, part, site in _heads(adaptation, bench.backbone):
        for role, init in part.tensors(bench.backbone, site).items():
            ours = f"{name}/{site.called}/{role}"
            shapes[ours] = init.shape
            value = adapter.saved.get(f"{site.name}.{role}")
            if value is not None and tuple(value.shape) == init.shape:
                found[ours] = value.to(bench.dtype)
    if not adapter.saved or not shapes:
        return {}
    if found.keys() != shapes.keys():
        observer.say(f"start: the head of {adapter.folder} is not of the run's shape, and is left out.")
        return {}
    if adapter.about is not None and adapter.about.classes != tuple(bench.task.classes):
        observer.say(f"start: the head of {adapter.folder} is for other classes, or another order of them, and is left out.")
        return {}
    return found


def _check_saved(adapter: Adapter, adaptation: Adaptation, backbone: Backbone) -> None:
    """
    Raises:
        UserError: the adapter puts modules in the place of the base's own that no head is.
    """
    heads = {f"{site.name}.{role}" for _, part, site in _heads(adaptation, backbone) for role in part.tensors(backbone, site)}
    heads |= {f"{site.name}.{role}" for site in backbone.heads for role in ("weight", "bias")}
    own = {name for name, _ in backbone.model.named_parameters(remove_duplicate=False)}  # a tied output layer too
    if odd := sorted((adapter.saved.keys() & own) - heads):
        raise UserError(
            f"{adapter.folder} has another {odd[0]} than its base, which is no low-rank change and no head: a run can't start "
            "from it."
        )


def _heads(adaptation: Adaptation, backbone: Backbone) -> list[tuple[str, Part, Site]]:
    return [(name, part, site) for name, (part, _) in adaptation.items() if type(part) is Head for site in part.sites(backbone)]
