"""MT-FedAdapter: every task has an adapter and a head of its own, averaged over the clients that have the task.

Y. Zhao, T. Zhao, P. Xiang, Q. Li, Z. Chen, "Multi-task federated learning medical analysis algorithm integrated into adapter",
IEEE International Conference on Big Data Analytics 2023, doi 10.1109/ICBDA57405.2023.10104867. What follows is the plainest
algorithm that its abstract allows; neither its text nor code was at hand.

With A_m and H_m the adapters and the head of task m, n_km the rows of it that client k trains on, and K_m the clients that have
it:

    client   for each of its tasks m: some epochs over its rows of m, on the frozen encoder with A_m and H_m alone
    server   Ā_m = Σ_{k in K_m} n_km A_mk / Σ n_km, and so H_m; a task of which nobody takes part keeps its own
             A_m = Σ_n Γ_mn Ā_n, of adapters alone

Γ are the relations between tasks, rows of which sum to 1: by default the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from weft.contract import (
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    Bottleneck,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Placement,
    Positive,
    ServerState,
    Several,
    Share,
    Task,
    TaskHead,
    Update,
    UserError,
    Weighting,
    Whole,
    nearest,
)

ADAPTER, HEAD = "adapter", "head"
Family = Literal["kind", "all"]


class MTFedAdapter(Method):
    """Defaults that are usual for adapters; the paper's are not known.

    Attributes:
        reduction: hidden size over the bottleneck's; 12 = 64 of 768. placement: of bottlenecks: ``ffn`` (after each
            feed-forward), ``sublayers`` (after each attention too, as Houlsby et al. have them), ``parallel`` or ``block``.
        borrow: 1 - Γ_mm, what a task's adapter takes from those of the tasks of its family, from each as much. A task that is
            alone in it takes nothing. 0 = Γ is the identity. family: tasks of one ``kind`` (that tag words, or tell sentences
            apart), or ``all``. borrow_after: rounds before the first time.
        personal_head: heads stay at their clients.
        weighting: of the mean, by the ``examples`` of the task alone, or ``uniform``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="mt-fedadapter",
        title="An adapter and a head for each task, averaged over those who have the task",
        paper="Zhao et al., ICBDA 2023",
        family="adapters",
        challenges=("data heterogeneity",),
        evidence="reconstructed",
        deviations=(
            "Rebuilt from the abstract and from what surveys say of it: sites and width of the adapters, schedules and the form "
            "of the relations between tasks are choices. A client goes through its tasks one after another, which is the same "
            "as taking turns, as no two tasks share a tensor that moves."
        ),
        views=("global", "personal"),
        sends="the adapters and heads of its tasks, which tasks these are, and how many rows it has of each",
        asks=("tasks",),
    )

    reduction: Count = 12
    placement: Placement = "ffn"
    borrow: Share = 0.0
    family: Family = "kind"
    borrow_after: Whole = 0
    personal_head: bool = False
    weighting: Weighting = "examples"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3)

    @property
    def views(self) -> tuple[str, ...]:
        return ("personal",) if self.personal_head else ("global",)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        adapter = Bottleneck(self.reduction, placement=self.placement, up_std=0.0)
        scope = PERSONAL if self.personal_head else SHARED
        if not isinstance(task, Several):
            return {ADAPTER: (adapter, SHARED), HEAD: (task.head, scope)}
        found: dict[str, tuple[Bottleneck | TaskHead, object]] = {}
        for name in tasks_of(task, client):
            first, end = task.spans[name]
            found[f"{ADAPTER}.{name}"] = adapter, SHARED
            found[f"{HEAD}.{name}"] = TaskHead(first=first, end=end), scope
        return found  # type: ignore[return-value]

    # client -----------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        if not isinstance(pack.task, Several):
            return self.fit(pack)
        return self._by_task(pack)

    def _by_task(self, pack: Pack) -> Iterator[Update]:
        groups = pack.bench.table.groups
        assert groups is not None
        trained: dict[str, set[str]] = {client.id: set() for client in pack.clients}
        for i, name in enumerate(of_groups(pack)):
            own = pack.limited(groups == i)
            if own.has_work():
                own.minimise(self.objective, _parts(name), self.optim, self.epochs, self.steps, self.batch)
            for client in own.clients:
                trained[client.id] |= {name} if len(client.data.train) else set()
        for update in pack.updates():  # of a task without rows there is nothing to say, whoever else was in the pack
            kept = {n: value for n, value in update.tensors.items() if task_of(n) in trained[update.client.id]}
            yield replace(update, tensors=kept)

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        """Each row through the adapters and the head of its own task."""
        groups = pack.bench.table.groups
        if not isinstance(pack.task, Several) or groups is None:
            return pack(batch)
        of_row = groups[batch.index]
        use: dict[str, float | Tensor] = {}
        for i, name in enumerate(of_groups(pack)):
            if (rows := (of_row == i) & (batch.index >= 0)).any():
                weight = torch.from_numpy(rows).to(pack.device, pack.dtype)
                use |= dict.fromkeys(_parts(name), weight)
        return pack(batch, use=use)

    # server -----------------------------------------------------------------------------------------------------------

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        task = server.bench.task
        if not isinstance(task, Several):
            server.mean(updates)
            return

        def weight(update: Update) -> dict[str, float]:
            rows = update.client.facts.get("tasks") or dict.fromkeys(task.spans, update.weight)
            by_rows = self.weighting == "examples"
            return {n: float(rows[task_of(n)]) if by_rows else 1.0 for n in update.tensors}

        server.mean(updates, weight=weight)
        if self.borrow and server.round.index >= self.borrow_after:
            self._borrow(server, relations(task, self.borrow, self.family))

    def _borrow(self, server: ServerState, gamma: Tensor) -> None:
        """A_m = Σ_n Γ_mn Ā_n."""
        names = list(server.bench.task.spans)  # type: ignore[attr-defined]
        first = f"{ADAPTER}.{names[0]}/"
        for place in [n.removeprefix(first) for n in server.shared if n.startswith(first)]:
            held = [server.shared[f"{ADAPTER}.{name}/{place}"] for name in names]
            own = torch.stack([value for value in held if isinstance(value, Tensor)])
            mixed = torch.tensordot(gamma.to(own), own, dims=1)
            for name, row, value in zip(names, gamma, mixed, strict=True):
                if row[names.index(name)] < 1:
                    server.write(f"{ADAPTER}.{name}/{place}", value)


def tasks_of(task: Several, client: ClientInfo) -> list[str]:
    """The tasks of a client, in the order of the federation; all of them for the server itself.

    Raises:
        UserError: it names one that the federation does not have.
    """
    told = client.facts.get("tasks")
    if not client.id or told is None:
        return list(task.spans)
    if not isinstance(told, dict) or not all(type(n) is int and n >= 0 for n in told.values()):
        raise UserError(f"client {client.id} has no tasks with numbers of rows: give it data of several tasks.")
    if strange := sorted(set(told) - set(task.spans)):
        known = list(task.spans)
        raise UserError(
            f'client {client.id} has the task "{strange[0]}", and the federation has {", ".join(known)}: rename it, or leave '
            f"its rows out.{nearest(strange[0], known)}"
        )
    return [name for name in task.spans if name in told]


def _parts(task: str) -> tuple[str, str]:
    return f"{ADAPTER}.{task}", f"{HEAD}.{task}"


def task_of(tensor: str) -> str:
    """The task that a tensor's name is of."""
    return tensor.split("/", 1)[0].partition(".")[2]


def of_groups(pack: Pack) -> list[str]:
    """The task of each group of rows of the table."""
    task, table = pack.task, pack.bench.table
    assert isinstance(task, Several) and table.groups is not None
    labels = table.labels[np.unique(table.groups, return_index=True)[1]]
    return [next(name for name, (first, end) in task.spans.items() if first <= label < end) for label in labels]


def relations(task: Several, borrow: float, family: Family) -> Tensor:
    """Γ [M, M] float64, rows of which sum to 1."""
    kinds = [type(part) for part in task.parts.values()]
    found = torch.eye(len(kinds), dtype=torch.float64)
    for m, kind in enumerate(kinds):
        others = [n for n, other in enumerate(kinds) if n != m and (family == "all" or other is kind)]
        if others:
            found[m, m] = 1 - borrow
            found[m, others] = borrow / len(others)
    return found
