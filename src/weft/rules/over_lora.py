"""Options of LoRA over a method: a class made of both, whose LoRA parts have them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from weft.adaptation.lora import LoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.errors import UserError
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Update
from weft.federation.scope import Scope
from weft.federation.server import ServerState
from weft.rules import budget
from weft.rules.compose import beneath, plain

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.method import Method
    from weft.federation.method import Method as Base
    from weft.tasks.task import Task
else:
    Base = object  # a mix-in: it stands before the class of a method, and brings no settings of the contract of its own


@dataclass(frozen=True)
class WithOptions(Base):
    """What is put before a method's class.

    Attributes:
        lora_options: those of all its LoRA parts.
    """

    lora_options: LoRAOptions = LoRAOptions()

    def start(self, server: ServerState) -> None:
        """
        Raises:
            UserError: the LoRA begins as a part of the weights, and clients have several.
        """
        if self.lora_options.start in ("pissa", "olora") and server.bench.others:
            raise UserError(
                f'lora.start = "{self.lora_options.start}" begins at the weights of one backbone, and clients have several: '
                "leave it or --models out."
            )
        super().start(server)
        if self.lora_options.variant == "adalora":
            budget.check(server, slug_of(self))

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        super().aggregate(server, updates)
        if self.lora_options.variant == "adalora":
            budget.allocate(server)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        found, options = super().adapt(backbone, task, client), self.lora_options
        loras = {name: part for name, (part, _) in found.items() if isinstance(part, LoRA)}
        if not loras:
            raise UserError(
                f"{slug_of(self)} trains no LoRA here that {_named(options)} could be of: leave lora.* out, or choose a method "
                "such as fedit."
            )
        for name in options.chosen.keys() & {"variant", "start"}:
            if any(type(part) is not LoRA for part in loras.values()):
                raise UserError(
                    f"{slug_of(self)} has LoRA with an arithmetic of its own, so that lora.{name} = "
                    f"{_shown(getattr(options, name))} would not be what it says: leave it out, or choose a method such as fedit."
                )
        made = {name: options.over(part) for name, part in loras.items()}
        scopes = {name: with_more(scope) for name, (_, scope) in found.items()}
        return {name: (made[name], scopes[name]) if name in made else own for name, own in found.items()}


def with_more(scope: Scope | Mapping[str, Scope]) -> Scope | Mapping[str, Scope]:
    """Scopes of the tensors of a LoRA, in which a magnitude (DoRA) and singular values (AdaLoRA) go where B goes."""
    return {**scope, "m": scope["B"], "E": scope["B"]} if isinstance(scope, Mapping) and "B" in scope else scope


def with_options(method: Method, options: LoRAOptions) -> Method:
    """The method with the options: ``with_options(FedIT(rank=8), LoRAOptions("rslora"))``. Its slug says so, ``fedit+rslora``.

    It goes under a rule: options are of what is trained, and a rule is over whatever is.

    Raises:
        UserError: the method's card says that it can't have one of them.
    """
    if not options.chosen:
        return method
    check(method, options)
    cls: Any = type(method)
    made: Method = _made(cls, options)(**{f.name: getattr(method, f.name) for f in fields(method)}, lora_options=options)
    return made


WHY = {
    "factors": "has a rule of its own for the two factors of LoRA",
    "own steps": "moves LoRA by steps of its own too",
    "no gradients": "takes no gradient of a pass",
}
"""Word of a card (:data:`weft.federation.info.NEEDS`) -> a clause about the method."""
LIMITS = {
    "dora": ("factors",),
    "vera": ("factors",),
    "adalora": ("factors", "own steps", "no gradients"),
    "dylora": ("own steps", "no gradients"),
    "start": ("factors",),
    "ratio": ("own steps",),
    "dropout": ("no gradients",),
}
"""Option, of variants each by itself -> the words of cards that rule it out."""


def check(method: Method, options: LoRAOptions) -> None:
    """
    Raises:
        UserError: the method's card says that it can't have one of the options.
    """
    for name, value in options.chosen.items():
        words = LIMITS.get(value if name == "variant" else name, ())
        if word := next((w for w in words if w in method.info.needs), None):
            raise UserError(
                f"{method.info.slug} {WHY[word]}, so that lora.{name} = {_shown(value)} would not be what it says: leave it "
                "out, or choose a method such as fedit."
            )


def without_options(method: Method) -> Method:
    """The method without options of LoRA and statistics of batch norms; it has no rule over it."""
    return beneath(beneath(method, "_without_norms"), "_without_options")


def slug_of(method: Method) -> str:
    """The method's slug, without options or a rule."""
    return without_options(plain(method)).info.slug


@functools.cache
def _made(cls: Any, options: LoRAOptions) -> Any:
    card = replace(cls.info, slug="+".join((cls.info.slug, *options.words)))
    body = {"info": card, "_without_options": cls, "__module__": WithOptions.__module__, "__doc__": cls.__doc__}
    return type(f"{cls.__name__}WithOptions", (WithOptions, cls), body)


def _named(options: LoRAOptions) -> str:
    """The settings that were chosen, in words."""
    return ", ".join(f"lora.{name} = {_shown(value)}" for name, value in options.chosen.items() if name != "seed")


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"
