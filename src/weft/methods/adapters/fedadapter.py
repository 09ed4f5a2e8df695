"""FedAdapter (AdaFL): adapters begin few and narrow at the top, and grow deeper or wider where side trials say so.

D. Cai, Y. Wu, S. Wang, F. X. Lin, M. Xu, "Efficient Federated Learning for Modern NLP", MobiCom 2023, arXiv 2205.10162. Code:
UbiquitousLearning/FedAdapter.

Of L blocks the last δ have a stack of ω/8 bottlenecks of width 8 each, and nothing else but the head is trained. The server tries
three configurations side by side, from the same values, on clients of their own:

    stay (δ, ω)      deep (δ + s, ω)      wide (δ, ω + 8)

1. A trial lasts T = f (4 δ + 1) seconds. A round of group g takes c_g = sent / bandwidth + batches · latency(δ_g), so that it
   plays R_g = ⌊T / c_g⌋ rounds of federated averaging, by itself.
2. Now and then the server scores a group on rows of its own.
3. The group with the best score goes on, from the values that were scored; the others leave nothing behind.

Until then the server's model is that of the best score so far in the trial. Groups begin their rounds in the order of their own
clocks. Blocks below the last δ are the frozen ones, so that what they make of a row is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import ClassVar

import torch
from torch import Tensor

from weft.aggregation.mean import WeightedMean
from weft.aggregation.side_trials import Group, Rates, begun, neighbours, next_to_play, seconds_of_trial, winner
from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    Message,
    Method,
    MethodInfo,
    Optim,
    Positive,
    Round,
    ServerState,
    StackedBottleneck,
    Task,
    Update,
    UserError,
    Value,
    Weighting,
    Whole,
    goodness,
    named,
)
from weft.tensors.keyed import generator

ADAPTER = "adapter"
UNIT = 8
"""Width of a bottleneck of the stack."""
NOW, BEST = "now", "best"
"""Begin the names of a group's values in the memo: the newest, and those that were scored best."""


class FedAdapter(Method):
    """Defaults of the code.

    ``schedule`` in the server's memo is, of each round, the depth and the width of what it held then, and the seconds so far.

    Attributes:
        depth, width: δ and ω at first; a width is a multiple of 8.
        deeper: s, blocks that the deep group has more; 0 = there is no such group. From the head alone it has two at least.
        wider: bottlenecks that the wide group has more in each block; 0 = there is none. max_width: the largest ω.
        per_group: clients of a group in a round, if there are as many for each.
        trial: f, in seconds.
        score_every: rounds of a group from one score to the next; its last round in a trial is scored, too.
        batches: of a client in a round, as its seconds are reckoned; None = the mean over clients with rows.
        bandwidth: megabytes a second. head_seconds: of a batch where the head alone is trained. block_seconds: of a batch for
            each block with adapters.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedadapter",
        title="Adapters grow deeper and wider where side trials say so",
        paper="Cai et al., MobiCom 2023",
        arxiv="2205.10162",
        family="adapters",
        challenges=("communication efficiency", "computational heterogeneity"),
        evidence="code",
        deviations=(
            "Groups are scored on rows of the server's own, where the code takes the test set, and score and values are of the "
            "same round. Blocks below the trained ones have no adapters; in the code they have untrained ones. A group plays "
            "one round of a trial at least. Seconds are reckoned from the code's tables, whatever the backbone, the rows and "
            "`--devices`, and stand in the server's state alone."
        ),
        asks=("depth", "width"),
        renews=("depth", "width"),
        needs=("separate blocks",),
        sends="the adapters of the last blocks, as many as its group has, the head, and the number of examples",
        public="no trial can be scored, so that depth and width stay as they begin",
    )

    depth: Whole = 0
    width: Count = UNIT
    deeper: Whole = 1
    wider: Whole = 1
    max_width: Count = 64
    per_group: Count = 5
    trial: Positive = 60.0
    score_every: Count = 10
    batches: Positive | None = None
    bandwidth: Positive = 1.0
    head_seconds: Positive = 0.02
    block_seconds: Positive = 0.09
    weighting: Weighting = "examples"
    epochs: Positive = 1.0
    batch: Count = 4
    optim: Optim = Optim("sgd", lr=0.1, clip=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "max_width"):
            if (value := getattr(self, name)) % UNIT:
                raise UserError(f"{name} = {value} is no multiple of {UNIT}, the width of each bottleneck: give it one.")
        if self.width > self.max_width:
            raise UserError(f"width = {self.width} is above max_width = {self.max_width}: choose a smaller one to begin with.")

    @property
    def grows(self) -> bool:
        return bool(self.deeper or self.wider)

    @property
    def sums(self) -> bool:
        return not self.grows

    # what is trained ------------------------------------------------------------------------------------------------------

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        blocks = len(backbone.blocks)
        if self.depth > blocks:
            raise UserError(f'depth = {self.depth}, and "{backbone.name}" has {blocks} blocks: choose at most as many.')
        if not client.id:  # the server has all that there may ever be
            return self._parts(backbone, task, blocks if self.deeper else self.depth, self._widest)
        depth, width = client.facts.get("depth", self.depth), client.facts.get("width", self.width)
        if type(depth) is not int or not 0 <= depth <= blocks:
            raise UserError(f"client {client.id} has the depth {depth!r}, and the backbone {blocks} blocks.")
        if type(width) is not int or not UNIT <= width <= self.max_width or width % UNIT:
            raise UserError(f"client {client.id} has the width {width!r}, which is no multiple of {UNIT} up to {self.max_width}.")
        return self._parts(backbone, task, depth, width)

    @property
    def _widest(self) -> int:
        return self.max_width if self.wider else self.width

    def _parts(self, backbone: Backbone, task: Task, depth: int, width: int) -> Adaptation:
        last = tuple(range(len(backbone.blocks) - depth, len(backbone.blocks)))
        stack = StackedBottleneck(width // UNIT, UNIT, of=self.max_width // UNIT, blocks=last)
        return {ADAPTER: (stack, SHARED), "head": (task.head, SHARED)}

    # server ---------------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        server.memo |= {"depth": self.depth, "width": self.width, "seconds": 0.0, "schedule": []}
        if self.grows:
            self._hold(server, self._sized(server, self.depth, self.width, 0, 0))
        if self._tries(server):
            self._begin(server)

    def _tries(self, server: ServerState) -> bool:
        return self.grows and server.public is not None

    def _begin(self, server: ServerState) -> None:
        """A trial: each group gets the values that the server holds, and start values of what it has more."""
        depth, width = server.memo["depth"], server.memo["width"]
        deepest = len(server.bench.backbone.blocks)
        tried = neighbours(depth, width, self.deeper, UNIT * self.wider, deepest, self.max_width)
        for group, own in tried.items():
            self._note(server, NOW, group, self._sized(server, *own, depth, width))
        self._remember(server, begun(tried, seconds_of_trial(depth, self.trial), self._rates, self._batches(server)))

    @property
    def _rates(self) -> Rates:
        return Rates(self.bandwidth, self.head_seconds, self.block_seconds)

    def _batches(self, server: ServerState) -> float:
        """Of a client in a round."""
        if self.batches is not None:
            return self.batches
        each = [-(-c.n // self.batch) * self.epochs if self.steps is None else self.steps for c in server.clients if c.n]
        return sum(each) / max(len(each), 1)

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds or not self._tries(server):
            return super().plan(server, t)
        groups = self._groups(server)
        server.memo["who"] = who = self._dealt(server, groups, t)
        for client, group in who.items():
            server.renew(client, depth=groups[group].depth, width=groups[group].width)
        return Round(t, who=sorted(who))

    def _dealt(self, server: ServerState, groups: Mapping[str, Group], t: int) -> dict[str, str]:
        """Client -> the group that it plays for; groups that nobody is left for wait."""
        ids, active = [client.id for client in server.clients], next_to_play(groups)
        order = torch.randperm(len(ids), generator=generator(server.seed, "groups", t)).tolist()
        each = min(self.per_group, max(len(ids) // len(active), 1))
        return {ids[j]: group for i, group in enumerate(active) for j in order[i * each : (i + 1) * each]}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        if not self._tries(server):
            return super().send(server, client)
        group = server.memo["who"].get(client.id)
        return self._message(server, client, server.shared if group is None else self._noted(server, NOW, group))

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        return self._message(server, client, server.shared) if self._tries(server) else super().send(server, client)

    def _message(self, server: ServerState, client: ClientInfo, values: Mapping[str, Value]) -> Message:
        """All of them, in the client's size: what it holds is of a group that it may no longer be in."""
        bench, sent = server.bench.of(client), dict[str, Value]()
        for name, init, _ in named(self.adapt(bench.backbone, bench.task, client), bench.backbone):
            value = values[name]
            assert isinstance(value, Tensor)
            sent[name] = value[: init.shape[0]]
        return Message(sent)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        memo = server.memo
        if not self._tries(server):
            server.mean(updates, leading=True)
            memo["seconds"] += self._rates.of_round(self.depth, self.width, self._batches(server))
            memo["schedule"] = [*memo["schedule"], [self.depth, self.width, memo["seconds"]]]
            return
        means: dict[str, WeightedMean] = {}
        for update in updates:
            tensors = {n: v for n, v in update.tensors.items() if isinstance(v, Tensor)}
            means.setdefault(memo["who"][update.client.id], WeightedMean()).add(tensors, server.weigh(update))
        for group, mean in means.items():
            self._note(server, NOW, group, mean.result())
        groups, playing = self._groups(server), set(memo["who"].values())
        last = server.round.index == server.rounds - 1
        for group, own in groups.items():
            own = replace(own, played=own.played + (group in playing))
            due = group in playing and (own.over or own.played % self.score_every == 0)
            groups[group] = self._scored(server, group, own) if due or (last and own.played) else own
        best = winner(groups)
        if best is not None:
            self._hold(server, self._noted(server, BEST, best))
        self._remember(server, groups)
        held, elapsed = groups[best or "stay"], max(own.clock for own in groups.values())
        memo["schedule"] = [*memo["schedule"], [held.depth, held.width, memo["seconds"] + elapsed]]
        if all(own.over for own in groups.values()):
            memo["seconds"] += max(seconds_of_trial(memo["depth"], self.trial), elapsed)
            memo |= {"depth": held.depth, "width": held.width}
            for key in [k for k in memo if k.startswith((f"{NOW}/", f"{BEST}/"))]:
                del memo[key]
            self._begin(server)

    def _scored(self, server: ServerState, group: str, own: Group) -> Group:
        """Score a group's newest values by the task's headline, and keep them if they are its best in the trial."""
        values, pack = self._noted(server, NOW, group), server.pack(public=True)
        whole = {n: v.unsqueeze(0).to(pack.tensors[n]) for n, v in self._whole(server, values).items()}
        with pack.values(whole):
            (seen,) = pack.observe(lambda p, b: self.forward(p, b, "global"), [pack.clients[0].data.train])
        assert seen is not None
        headline = pack.task.headline(seen)
        score = goodness(headline.metric, headline.value)
        if score <= (float("-inf") if own.score is None else own.score):
            return own
        self._note(server, BEST, group, values)
        return replace(own, score=score)

    # values of a configuration --------------------------------------------------------------------------------------------

    def _sized(self, server: ServerState, depth: int, width: int, had_depth: int, had_width: int) -> dict[str, Tensor]:
        """The server's values in a configuration, with start values of all that it did not have in the one before."""
        backbone = server.bench.backbone
        stack = self._parts(backbone, server.bench.task, depth, width)[ADAPTER][0]
        found = {n: v for n, v in server.shared.items() if not n.startswith(f"{ADAPTER}/") and isinstance(v, Tensor)}
        for site in stack.sites(backbone):
            assert site.block is not None
            units = had_width // UNIT if site.block >= len(backbone.blocks) - had_depth else 0
            for role, init in stack.tensors(backbone, site).items():
                name = f"{ADAPTER}/{site.called}/{role}"
                fresh, held = server.bench.begin(init, name, server.start), server.shared[name]
                assert isinstance(held, Tensor)
                found[name] = torch.cat([held[:units], fresh[units:]])
        return found

    def _whole(self, server: ServerState, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A configuration's values in the server's sizes: bottlenecks that it has not got are 0, and add nothing."""
        found = {}
        for name, held in server.shared.items():
            assert isinstance(held, Tensor)
            found[name] = torch.zeros_like(held)
            if name in values:
                found[name][: len(values[name])] = values[name]
        return found

    def _hold(self, server: ServerState, values: Mapping[str, Tensor]) -> None:
        for name, value in self._whole(server, values).items():
            server.write(name, value)

    # the memo -------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _groups(server: ServerState) -> dict[str, Group]:
        return {group: Group(**own) for group, own in server.memo["groups"].items()}

    @staticmethod
    def _remember(server: ServerState, groups: Mapping[str, Group]) -> None:
        """Between rounds: nobody plays for a group."""
        server.memo |= {"groups": {group: asdict(own) for group, own in groups.items()}, "who": {}}

    @staticmethod
    def _note(server: ServerState, which: str, group: str, values: Mapping[str, Tensor]) -> None:
        server.memo |= {f"{which}/{group}|{name}": value for name, value in values.items()}

    @staticmethod
    def _noted(server: ServerState, which: str, group: str) -> dict[str, Tensor]:
        start = f"{which}/{group}|"
        return {key.removeprefix(start): value for key, value in server.memo.items() if key.startswith(start)}
