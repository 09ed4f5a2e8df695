"""A method whose passes cross boundaries between stages: a class made of both."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from weft.adaptation.boundary import Boundary
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo
from weft.federation.scope import GIVEN

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.method import Method
    from weft.federation.method import Method as Base
    from weft.tasks.task import Task
else:
    Base = object  # a mix-in: it stands before the class of a method, and brings no settings of the contract of its own


@dataclass(frozen=True)
class InStages(Base):
    """What is put before a method's class.

    Attributes:
        boundary: between its stages.
    """

    boundary: Boundary = Boundary()

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {**super().adapt(backbone, task, client), "boundary": (self.boundary, GIVEN)}


def in_stages(method: Method, boundary: Boundary) -> Method:
    """The method in stages: ``in_stages(FedIT(rank=8), Boundary(4))``. Its slug says so, ``fedit+stages``."""
    cls: Any = type(method)
    made: Method = _made(cls)(**{f.name: getattr(method, f.name) for f in fields(method)}, boundary=boundary)
    return made


@functools.cache
def _made(cls: Any) -> Any:
    card = replace(cls.info, slug=f"{cls.info.slug}+stages")
    body = {"info": card, "_without_rule": cls, "__module__": InStages.__module__, "__doc__": cls.__doc__}
    return type(f"{cls.__name__}InStages", (InStages, cls), body)
