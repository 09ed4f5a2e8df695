"""What clients compute in their turns: floating-point operations of each client, as if it were alone with its own rows.

A device works through its own tokens, and not through what pads a pack of several. So operations are reckoned from a client's
tokens, blocks and parts, pass by pass as passes run, and a pack counts for each client what it counts for a client alone.

A pass costs the products of the blocks that run for the client, of the parts that are on, of a head and of an output layer; the
gradient costs what leads from the output down to the lowest part that is trained, and the gradients of its own matrices. Hidden
states that are kept below the parts are computed once for each row: a device keeps them too.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.placed import Placed
from weft.backbones.flops import above, powers, stage_of
from weft.backbones.reply_table import Replies
from weft.federation.work import Work

if TYPE_CHECKING:
    from weft.adaptation.in_flight import Weight
    from weft.federation.batch import Batch
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState
    from weft.federation.passes import Passes

FIRST = (0, -1)
"""Where a part lies that everything is above: place and stage."""


@dataclass(frozen=True)
class _Cost:
    """Of one client's parts at one place of the backbone: int64 [6], coefficients of powers of a row's tokens.

    Attributes:
        at: place and stage. products: role -> of a pass.
    """

    placed: Placed
    at: tuple[int, int]
    products: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Passed:
    """A pass of one client that a gradient may go back through.

    Attributes:
        rows: [P, 6] powers of the tokens of all its rows, at each place. there: bool [P], the places that ran.
        written: rows of an output layer. given: place and stage of the lowest tokens that are put in and trained.
        names: of class names in the text tower, powers of their tokens [3].
    """

    client: str
    position: int
    rows: np.ndarray
    there: np.ndarray
    use: Mapping[str, Weight] | None
    written: int = 0
    given: tuple[int, int] | None = None
    names: np.ndarray | None = None


class Counting:
    """Counts the passes of a pack.

    Attributes:
        work: of each client, by id.
    """

    def __init__(self, pack: Passes, work: dict[str, Work]):
        backbone = pack.backbone
        self.work, self.backbone = work, backbone
        self.known = backbone.flops
        self.heads = len(self.known.forward)  # the last place
        self.places, self.slopes = (np.pad(p, ((0, 1), (0, 0))) for p in (self.known.forward, self.known.backward))
        self.layers = {site.name: site for site in backbone.linears}
        self.position = {c.id: i for i, c in enumerate(pack.clients)}
        self.tagged = getattr(pack.bench.table, "tags", None) is not None
        self.costs = [self._costs(pack, i) for i in range(len(pack.clients))]
        self.exits = {p.part_name for p in pack.weave.placed if p.part.mode == "reads"}
        self.open: list[_Passed] = []
        self.starts: dict[str, int] | None = None

    def apart(self) -> Counting:
        """Counts passes that may yet turn out to have been in vain, see :meth:`take`."""
        other = copy.copy(self)
        other.work, other.open = {}, []
        return other

    def take(self, other: Counting) -> None:
        """What :meth:`apart` has counted belongs to this too."""
        for client, work in other.work.items():
            self._add(client, work.forward or 0, work.backward or 0)

    # passes -------------------------------------------------------------------------------------------------------------

    def entered(self, bench: Bench, clients: Sequence[ClientState], batch: Batch, starts: Sequence[int]) -> None:
        """The next pass begins above what is kept: each client's own number of blocks, by its position in the pack."""
        self.starts = {}
        for client, rows in batch.own(len(clients)):
            self.starts[clients[client].id] = starts[client]
            if starts[client]:
                self._keep(bench, clients[client], rows, starts[client])

    def pictured(self, bench: Bench, client: ClientState, rows: np.ndarray) -> None:
        """The embeddings of pictures are asked for, which are kept."""
        self._keep(bench, client, rows, len(self.backbone.blocks) + 1)

    def _keep(self, bench: Bench, client: ClientState, rows: np.ndarray, start: int) -> None:
        """What leaves the first ``start`` blocks is computed of the rows that it is not kept of yet."""
        new = _new(client, str(start), rows)
        self._add(client.id, int((self.places[: start + 1] * self._powers(bench, new)).sum()))
        if bench.prefix is not None:
            client.cached[str(start)].update(new.tolist())

    def _refer(self, bench: Bench, client: ClientState, rows: np.ndarray) -> None:
        """What the frozen backbone makes of preferences is kept of each row too."""
        assert isinstance(bench.table, Replies)
        new = _new(client, "reference", rows)
        written = int(bench.table.targets(new)[1].sum()) if len(new) else 0
        self._add(client.id, int((self.places * self._powers(bench, new)).sum()) + self._output(written))
        client.cached["reference"].update(new.tolist())

    def passed(self, pack: Passes, batch: Batch, use: Mapping[str, Weight] | None) -> None:
        """A pass over a batch's rows; what enters it is behind the last block, unless :meth:`entered` has said where."""
        starts, self.starts = self.starts, None
        layers, room = len(self.backbone.blocks), pack.weave.own_tokens.room(use)
        entering = self._entering(pack, use)
        for k, (client, rows) in enumerate(batch.own(len(pack.clients))):
            mine = pack.clients[client].id
            if self._lacks_exit(self.position[mine], use):
                continue
            start = layers if starts is None else starts[mine]
            there = np.arange(self.heads + 1) > (start if start else -1)
            if pack.weave.hold is not None:
                there[1 : layers + 1] &= pack.weave.hold[client].cpu().numpy()
            sums = {n: self._powers(pack.bench, rows, room, n) for n in set(entering)}
            written = 0 if self.backbone.vocabulary is None else int(batch.mask[k].sum())
            if batch.beside is not None:
                self._refer(pack.bench, pack.clients[client], rows)
            given = [block for block, tokens in pack.weave.insert.items() if tokens.requires_grad]
            lowest = (min(given) + 1, -1) if given else None
            self._pass(_Passed(mine, self.position[mine], np.stack([sums[n] for n in entering]), there, use, written, lowest))

    def ended(self, clients: Sequence[ClientState], rows: int, use: Mapping[str, Weight] | None) -> None:
        """A pass over so many embeddings of each client: what lies behind the tower of pictures."""
        sums = np.tile(rows * np.eye(6, dtype=np.int64)[0], (self.heads + 1, 1))
        for client in clients:
            there = np.arange(self.heads + 1) == self.heads
            self._pass(_Passed(client.id, self.position[client.id], sums, there, use))

    def named(
        self,
        everybody: Sequence[ClientState],
        clients: Tensor | None,
        use: Mapping[str, Weight] | None,
        inputs: Mapping[str, Tensor | int],
        copies: int,
    ) -> None:
        """Class names through the text tower, once for each client.

        Args:
            clients: [k] indices into ``everybody``; None = all. inputs: of the model, which has so many copies of the names.
        """
        texts, ids = inputs["classes"], inputs["input_ids"]
        assert isinstance(texts, int) and isinstance(ids, Tensor)
        rows, width = len(ids) // copies, ids.shape[1]  # several texts may stand in a row
        names = np.array([texts, rows * width, rows * width**2], dtype=np.int64)
        there, nothing = np.zeros(self.heads + 1, dtype=bool), np.zeros((self.heads + 1, 6), dtype=np.int64)
        for client in range(len(everybody)) if clients is None else clients.tolist():
            mine = everybody[client].id
            self._pass(_Passed(mine, self.position[mine], nothing, there, use, names=names))

    def _pass(self, one: _Passed) -> None:
        places = self.places + self._parts(one)
        total = int((places * one.rows)[one.there].sum()) + self._output(one.written) + self._tower(one)
        self._add(one.client, total)
        if torch.is_grad_enabled():
            self.open.append(one)

    # gradients ----------------------------------------------------------------------------------------------------------

    def begun(self) -> None:
        """What follows is what the next gradient is taken of."""
        self.open.clear()

    def differentiated(self, names: Collection[str]) -> None:
        """The gradient by these tensors was taken, of all passes since the last one."""
        for one in self.open:
            mine = [c for c in self.costs[one.position] if not set(names).isdisjoint(c.placed.reads.values())]
            own = [c for c in mine if self._on(c, one) and bool(c.placed.site.tower) == (one.names is not None)]
            reached = [c.at for c in own] + ([] if one.given is None else [one.given])
            if reached:
                self._add(one.client, 0, self._back(one, min(reached)) + sum(self._slope(c, one, names) for c in own))
        self.open.clear()

    def _back(self, one: _Passed, lowest: tuple[int, int]) -> int:
        """From the output down to a part."""
        place, stage = lowest
        found = self._parts(one, lowest)
        found[place + 1 :] += self.slopes[place + 1 :]
        if 0 < place <= len(self.backbone.blocks):
            whole = self.backbone.shared_blocks or self.backbone.staged_blocks  # sizes do not tell what a block computes
            found[place] += self.slopes[place] if whole else above(self.backbone, place - 1, stage)
        return int((found * one.rows)[one.there].sum()) + self._output(one.written) + self._tower(one, 1)

    def _slope(self, cost: _Cost, one: _Passed, names: Collection[str]) -> int:
        """By the matrices of a part, at one place."""
        own = sum((v for r, v in cost.products.items() if cost.placed.reads.get(r) in names), np.zeros(6, dtype=np.int64))
        if cost.placed.site.tower:
            return 0 if one.names is None else int((own[:3] * one.names).sum())
        return int((own * one.rows[cost.at[0]]).sum()) if one.there[cost.at[0]] else 0

    # what it costs ------------------------------------------------------------------------------------------------------

    def _costs(self, pack: Passes, client: int) -> list[_Cost]:
        """Of everything that a client has."""
        found = []
        for p in pack.weave.placed:
            if p.site.role == "values" or not (p.has is None or bool(p.has[client])):
                continue
            own = pack.adaptations[client][p.part_name][0]
            products = {r: 2 * n * self._positions(p) for r, n in own.products(self.backbone, p.site).items()}
            for role, name in p.names.items():
                if role.endswith((".A", ".B")):  # of a product that may have grown
                    products[role] = 2 * pack.tensors[name][client].numel() * self._positions(p)
            found.append(_Cost(p, self._at(p), products))
        return found

    def _at(self, p: Placed) -> tuple[int, int]:
        site = p.site
        if site.block is not None and not site.tower:
            layer = self.layers.get(site.name)
            return site.block + 1, -1 if site.role == "weights" and layer is None else stage_of(layer or site)
        if site.role in ("head", "head.norm", "embedding") or p.part.mode == "reads":
            return self.heads, 0
        outer = any(site.name == o.name for o in self.backbone.outer)
        return (self.heads - 1, 0) if outer else FIRST

    def _positions(self, p: Placed) -> np.ndarray:
        """Of a row, where a part's matrices are applied: one, or its tokens."""
        site = self.layers.get(p.site.name, p.site)
        if site.role == "connector":  # it sees a picture's tokens, and none of the words
            return self.backbone.picture_tokens * np.eye(6, dtype=np.int64)[0]
        if site.role in ("head", "head.norm", "embedding") or p.part.mode == "reads":
            power = 1 if self.tagged else 0
        elif site.stack == "decoder" or (site.stack == "cross" and not {"k", "v"} & set(site.roles)):
            power = 3
        else:
            power = 1
        calls = 1 if site.block is None else self.known.calls
        return calls * np.eye(6, dtype=np.int64)[power]

    def _lacks_exit(self, position: int, use: Mapping[str, Weight] | None) -> bool:
        """Whether a pass reads an exit of the model that a client has not got, so that its output is no work of the client's."""
        read = {name for name in use or {} if name in self.exits}
        return bool(read) and not any(c.placed.part_name in read for c in self.costs[position])

    def _on(self, cost: _Cost, one: _Passed) -> bool:
        part, name = cost.placed.part, cost.placed.part_name
        if part.mode == "reads":
            return one.use is not None and name in one.use
        return part.always or one.use is None or one.use.get(name) is not None

    def _parts(self, one: _Passed, above: tuple[int, int] | None = None) -> np.ndarray:
        """[P, 6] of the parts that are on; with ``above``, of those behind that place and stage."""
        found = np.zeros((self.heads + 1, 6), dtype=np.int64)
        for cost in self.costs[one.position]:
            apart = cost.placed.site.tower or cost.placed.part.mode == "parameters"  # which are in the module's own products
            if not apart and self._on(cost, one) and (above is None or cost.at > above):
                for product in cost.products.values():
                    found[cost.at[0]] += product
        return found

    def _tower(self, one: _Passed, way: int = 0) -> int:
        """Of class names, with the parts in there: forward, or backward (1)."""
        if one.names is None:
            return 0
        own = [p for c in self.costs[one.position] if c.placed.site.tower and self._on(c, one) for p in c.products.values()]
        return int(((self.known.names[way] + sum(p[:3] for p in own)) * one.names).sum())

    def _output(self, tokens: int) -> int:
        """Of an output layer over a vocabulary, for so many tokens that are predicted."""
        vocabulary = self.backbone.vocabulary
        return 0 if vocabulary is None else 2 * self.backbone.d * vocabulary.size * tokens

    def _entering(self, pack: Passes, use: Mapping[str, Weight] | None) -> np.ndarray:
        """[P] tokens that blocks have put in beside a row's own, at each place."""
        found = np.zeros(self.heads + 1, dtype=np.int64)
        for p in pack.weave.placed:
            if p.part.mode == "enters" and (use is None or p.part_name in use) and p.site.block is not None:
                for tokens in p.part.tensors(self.backbone, p.site).values():  # a boundary has none
                    found[p.site.block + 1 :] += tokens.shape[0] - int(p.part.constants(p.site)["drop"])
        for block, given in pack.weave.insert.items():
            found[block + 1 :] += given.shape[2]
        return found

    def _powers(self, bench: Bench, rows: np.ndarray, room: int = 0, more: int = 0) -> np.ndarray:
        """int64 [6], summed over table rows.

        Args:
            room: tokens of parts that stand among a row's own, which are cut for them. more: that are put in further on.
        """
        s, t = np.moveaxis(bench.table.spans[rows].reshape(-1, 2), -1, 0)
        own = np.minimum(s, self.backbone.max_length - room) if room else s
        return powers(own + room + more, t).sum(0)

    def _add(self, client: str, forward: int, backward: int = 0) -> None:
        work = self.work.setdefault(client, Work())
        work.forward, work.backward = (work.forward or 0) + forward, (work.backward or 0) + backward


def _new(client: ClientState, what: str, rows: np.ndarray) -> np.ndarray:
    """Those rows that a client does not keep something of."""
    return np.array(sorted(set(rows.tolist()) - client.cached.setdefault(what, set())), dtype=np.int64)
