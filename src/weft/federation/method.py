"""The contract of a method: what is adapted, what travels, how a client trains, how the server combines, how one predicts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

from torch import Tensor

from weft.adaptation.optim import Optim
from weft.federation.batch import Batch
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.tasks.outputs import Output
from weft.tensors.integers import Shape
from weft.typed import Count, Positive, check

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.bench import Bench
    from weft.tasks.task import Task

Weighting = Literal["examples", "uniform"]


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Method:
    """One published algorithm. A frozen value: its fields are the paper's hyper-parameters with the paper's defaults.

    A subclass sets ``info`` and overrides the hooks in which its paper differs from federated averaging; most override one or
    two. Nothing is remembered on the object: server and client state are explicit. Subclasses become frozen dataclasses by
    themselves, without a decorator. Types of fields are compared with their values, bounds and choices too (:mod:`weft.typed`);
    a ``__post_init__`` of a subclass is for what holds between fields.

    An object remembers which of its fields its maker wrote (:func:`weft.methods.settings.written`), since a recipe may set the
    others. That is no part of the value: methods with equal fields are equal.

    Attributes:
        demands: patterns of tensors without which an update is refused, for rules that can't do with less.
        unused: settings of the contract that have no effect on this method, so that nobody can set them.
        in_part: patterns of tensors of which messages may hold some entries alone (:class:`weft.tensors.masked.Masked`).
        weighting: of updates in the mean: ``examples`` (n_k) or ``uniform``.
        epochs: local epochs a round; a fraction works through an epoch over several rounds. steps: local steps instead.
        batch: examples in a client's step.
        optim: the local optimizer, made anew in each round.
    """

    info: ClassVar[MethodInfo]
    demands: ClassVar[tuple[str, ...]] = ()
    in_part: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()
    weighting: Weighting = "examples"
    epochs: Positive = 1.0
    steps: Count | None = None
    batch: Count = 32
    optim: Optim = Optim()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        fields = {f for base in cls.__mro__[1:] for f in inspect.get_annotations(base)}
        own = inspect.get_annotations(cls)
        for name, value in cls.__dict__.items():
            if name in fields and name not in own and name != "info" and not callable(value):
                raise TypeError(
                    f"{cls.__name__}.{name} overrides a setting without a type; write `{name}: TYPE = {value!r}`, "
                    "or the default of the base class would silently stay in force"
                )
        dataclass(frozen=True)(cls)

    def __new__(cls, *values: Any, **named: Any) -> Self:
        made = super().__new__(cls)
        order = [field.name for field in dataclasses.fields(cls) if field.init and not field.kw_only]
        object.__setattr__(made, "_written", frozenset((*order[: len(values)], *named)))
        return made

    def __post_init__(self) -> None:
        check(self)

    @property
    def sums(self) -> bool:
        """Whether the server needs nothing of a round's tensors but weighted sums over those who sent them.

        Then it need not see any single update: robust rules can stand in for a mean, and sums be taken in secret.
        """
        return True

    @property
    def waits(self) -> str:
        """Why updates count only if they began from one state of the server, in words after the method's name; ``""`` if they
        need not: then its server can take each as it comes.
        """
        if not self.sums:
            return "needs each update by itself and not their mean"
        if self.in_part:
            return "sends some entries of its tensors, which others have moved meanwhile"
        if type(self).plan is not Method.plan:
            return "plans what each of its rounds is and who takes part"
        if type(self).uploads is not Method.uploads:
            return "sends tensors that its server does not hold, of which nothing can be late"
        return ""

    @property
    def sees_rows(self) -> str:
        """How clients look at their rows otherwise than one by one in their steps, in words after the method's name; ``""`` if
        they do not: then noise on the gradients of single rows hides these.

        In a step the loss of a batch is the mean of the losses of its rows, each of which depends on its own row alone.
        """
        facts = [name for name in self.info.reveals if name not in self.info.derives]
        return f"tells {', '.join(facts)} of a client's rows" if facts else ""

    @property
    def gives_away(self) -> str:
        """What an update tells beside values that have a norm, in words after the method's name; ``""`` if nothing: then noise on
        these values hides the client.
        """
        if self.info.reveals:
            return f"sends {', '.join(self.info.reveals)} beside values"
        return "sends those entries that clients have chosen by what they have learnt" if self.in_part else ""

    @property
    def views(self) -> tuple[str, ...]:
        """Ways to predict, see :class:`MethodInfo`: of its card, unless their number is a setting."""
        return self.info.views

    # what is trained ------------------------------------------------------------------------------------------------

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        """The parts of one client. The server asks with a client of id ``""`` and no facts."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it adapts")

    def profile(self, position: int) -> dict[str, Any]:
        """Facts that a simulation gives to the client at ``position`` where the data say nothing: its rank, its capacity."""
        return {}

    # server ---------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        """Prepare the server's own state, once."""

    def welcome(self, server: ServerState, client: ClientInfo) -> None:
        """Make room for a client that joined after :meth:`start`; ``server.clients`` has it already."""

    def plan(self, server: ServerState, t: int) -> Round | None:
        """What kind of round the t-th is and who takes part; None ends the run."""
        return Round(t) if t < server.rounds else None

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        """What one client gets; by default every DOWN tensor that is newer than its copy."""
        return server.stale(client)

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        """What one client gets in order to be scored; it need not be in the cohort."""
        return self.send(server, client)

    def turn_to_test(self, server: ServerState, turn: Turn) -> Turn:
        """What one client enters with in order to be scored or exported, if what it has is no whole model."""
        return turn

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        """Combine the round's updates (in client order) into ``server.shared``; by default the weighted mean."""
        server.mean(updates)

    def sent(self, round: Round) -> tuple[str, ...]:
        """Patterns of the UP tensors that clients send in a round; all of them, unless a method has them take turns."""
        return ("*",)

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        """Names and shapes of uploaded tensors that are not UP tensors of the adaptation (prototypes, logits …)."""
        return {}

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]:
        """Names and shapes of tensors that :meth:`send` may give beside the DOWN tensors of the adaptation, for one turn.

        None is any size. They are in ``pack.received`` of that turn, and nobody keeps them. The server's own pack has received
        what :meth:`send` gives to a client of id ``""``.

        Args:
            bench: the client's own.
        """
        return {}

    # client ---------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        """Make models of what was received and kept, before anything is done with them: training, scoring, export.

        It may change ``pack.tensors``. It is called for every pack, the server's own too (``pack.at_server``).
        """

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        """Predict; ``view`` is None while training, else one of ``views``. Outputs are [k, b, …]."""
        return pack(batch)

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        """The local loss, [k]."""
        return pack.loss(self.forward(pack, batch), batch)

    def train(self, pack: Pack) -> Iterable[Update]:
        """A client's turn, for all clients of the pack at once."""
        return self.fit(pack)

    def personalise(self, pack: Pack) -> None:
        """Fit clients before they are tested, on a copy that is thrown away."""

    def rehearsed(self) -> Self:
        """The method with as little work as tells what it sends; one that trains at the server too cuts that short as well."""
        return dataclasses.replace(self, steps=1, batch=1)

    # helper, not a hook -----------------------------------------------------------------------------------------------

    def fit(
        self,
        pack: Pack,
        only: Iterable[str] = ("*",),
        objective: Callable[[Pack, Batch], Tensor] | None = None,
        **changes: Any,
    ) -> Iterable[Update]:
        """The plain local loop: local epochs of ``objective`` over the tensors that match ``only``."""
        pack.minimise(objective or self.objective, only, self.optim.but(**changes), self.epochs, self.steps, self.batch)
        return pack.updates()
