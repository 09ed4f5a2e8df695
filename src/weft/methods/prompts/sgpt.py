"""SGPT: shared prompts for everybody, and group prompts that each picture picks by learnt keys; one model that needs no fitting.

W. Deng, C. Thrampoulidis, X. Li, "Unlocking the Potential of Prompt-Tuning in Bridging Generalized and Personalized Federated
Learning", CVPR 2024, arXiv 2310.18285. Code: ubc-tea/SGPT.

Tokens enter behind the class token and stay: S_l at the first blocks, the same for every picture, and at blocks above them one of
G tokens P_{l,g}. With q = normalised relu of what the frozen model's head would read and k_g the normalised key, a picture picks
g = argmax q·k_g, and the head reads the mean of the class token and its group tokens.

A client's turn has two phases. First, {S, head} by cross-entropy without group tokens. Second, {P, keys, head} by cross-entropy
- q·k_g, where g = argmin (1 - q·k_g)(π_g + 5e-4) and π are the shares of all picks so far: rare groups attract.

The server averages S, P and head by examples, each key by the picks that chose it, and lets P and keys follow with momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    ImageTokens,
    Init,
    Message,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    ServerState,
    Share,
    Task,
    Update,
    UserError,
    Values,
    Whole,
    mean_of,
)

KEYS = "keys/values/keys"

FLOOR = 5e-4
"""Added to every share of picks."""

MOST = 10**9
"""Picks that a client may tell of a round."""


class Seen(NamedTuple):
    """What a pass with group tokens gives.

    Attributes:
        out: logits. groups: [k, b], the group of each row. near: [k, b], the cosine of its query and the group's key.
    """

    out: Output
    groups: Tensor
    near: Tensor


class SGPT(Method):
    """Defaults of the code for CIFAR-100 with ten classes a client.

    Attributes:
        shared_blocks, group_blocks: blocks that shared and group tokens enter; ``none``: 0-3 and 4-6 of twelve, as in the code,
            and the same shares of any other depth L: from 0 to L/3, and on to 7L/12, rounded, at least one block each.
        groups: G. tokens: shared ones at the first block; one enters each later one.
        std: of the start of shared tokens; above 0 where there are several in one block, which would stay alike.
        balance: groups are picked by how rare they are, too, while training. by_batch: a step's rows of a client all take the
            group that most of them pick, as in the code for domains. Both are off when the model predicts.
        key_weight: of the cosine in the loss.
        momentum, key_momentum: share of the old group tokens and keys that the server keeps.
        enough: picks of a round above which a key is averaged by them; below, evenly.
        epochs, steps: of each phase.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="sgpt",
        title="Shared prompts, and group prompts that each picture picks by learnt keys",
        paper="Deng et al., CVPR 2024",
        arxiv="2310.18285",
        family="prompts",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "Shared tokens start at small random values, where the code's start at zero: the norm of a block divides by their "
            "spread, so that a first step from zero is as long as the norm's smallest divisor allows, and fixes them. Keys start "
            "with unit length each, of which the code's first has another. All clients of a round balance by the picks before "
            "it; in the code later ones see those of earlier ones. Queries are of the whole frozen model, where the code takes "
            "those of its sixth block for domains."
        ),
        sends="every tensor that is trained, how often its pictures picked each group, and the number of examples",
        tells=("counts",),
        reveals=("counts",),
        needs=("images", "head"),
    )
    demands: ClassVar[tuple[str, ...]] = ("keys",)

    shared_blocks: tuple[Whole, ...] | None = None
    group_blocks: tuple[Whole, ...] | None = None
    groups: Count = 20
    tokens: Count = 1
    std: NonNegative = 0.02
    balance: bool = True
    by_batch: bool = False
    key_weight: NonNegative = 1.0
    momentum: Share = 0.5
    key_momentum: Share = 0.5
    enough: Whole = 50
    epochs: Positive = 5.0
    batch: Count = 40
    optim: Optim = Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-5, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "counts which prompts a client's rows take"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens > 1 and not self.std:
            raise UserError(
                "sgpt's shared tokens of one block stay alike if they start alike: set method.std above 0, or method.tokens to 1."
            )
        for name in ("shared_blocks", "group_blocks"):
            blocks = getattr(self, name)
            if blocks is not None and (not blocks or list(blocks) != sorted(set(blocks))):
                raise UserError(f"sgpt takes different blocks in their order, at least one: set method.{name} to such as 0,1,2.")

    @property
    def sums(self) -> bool:
        return False  # keys are averaged by what each client tells of its picks

    def at(self, backbone: Backbone) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The blocks that shared and group tokens enter.

        Raises:
            UserError: the backbone lacks one of them.
        """
        depth = len(backbone.blocks)
        first = max(1, round(depth / 3))
        usual = {"shared": range(first), "group": range(min(first, depth - 1), max(round(7 * depth / 12), first + 1))}
        found = []
        for kind, own in (("shared", self.shared_blocks), ("group", self.group_blocks)):
            blocks = tuple(b for b in usual[kind] if b < depth) if own is None else own
            if blocks[-1] >= depth:
                raise UserError(
                    f'sgpt puts {kind} tokens into block {blocks[-1]}, and "{backbone.name}" has blocks 0 to {depth - 1}: set '
                    f"method.{kind}_blocks to some of these, or leave it out."
                )
            found.append(blocks)
        return found[0], found[1]

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        prompt = ImageTokens(self.groups)
        start = prompt.tensors(backbone, prompt.sites(backbone)[0])["tokens"]  # that of visual prompts
        shared, group = self.at(backbone)
        read = backbone.features  # by whatever predicts
        counts = [self.tokens, *[1] * (len(shared) - 1)]
        ours = [(str(b), Init((n, backbone.d), "normal", self.std)) for b, n in zip(shared, counts, strict=True)]
        return {
            "shared": (Values(tuple(ours)), SHARED),
            "group": (Values(tuple((str(b), start) for b in group)), SHARED),
            "keys": (Values((("keys", Init((self.groups, read), "orthogonal")),)), SHARED),
            "head": (task.head, SHARED),
        }

    # passes ---------------------------------------------------------------------------------------------------------

    def shared(self, pack: Pack, batch: Batch) -> dict[int, Tensor]:
        """Block -> shared tokens [k, b, n, d]."""
        rows = batch.index.shape[1]
        values = {int(n.rsplit("/", 1)[1]): batch.of(v) for n, v in pack.params("shared").items()}
        return {block: v.unsqueeze(1).expand(-1, rows, -1, -1) for block, v in values.items()}

    def plain(self, pack: Pack, batch: Batch) -> Tensor:
        """The first phase's loss, [k]."""
        return pack.loss(pack(batch, insert=self.shared(pack, batch)), batch)

    def pick(self, pack: Pack, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """The group [k, b] of each row, and the cosine [k, b] of its query and that group's key."""
        with torch.no_grad():
            query = F.normalize(F.relu(pack.features(batch, use={})), dim=-1)
        like = query @ F.normalize(batch.of(pack.tensors[KEYS]), dim=-1).mT  # [k, b, G]
        score = 1 - like.detach()
        if training and self.balance:
            score = score * batch.of(self.rarity(pack)).unsqueeze(1)
        groups = score.argmin(-1)
        if training and self.by_batch:
            votes = (F.one_hot(groups, self.groups) * batch.mask.unsqueeze(-1)).sum(1)
            groups = votes.argmax(-1, keepdim=True).expand_as(groups)
        return groups, like.gather(-1, groups.unsqueeze(-1)).squeeze(-1)

    def rarity(self, pack: Pack) -> Tensor:
        """[K, G] what multiplies the distances of keys: π + 5e-4, and 1 as long as nothing was picked."""
        told = [facts.get("counts") or [0] * self.groups for facts in pack.facts]
        counts = torch.tensor(told, dtype=pack.dtype, device=pack.device)
        total = counts.sum(1, keepdim=True)
        return torch.where(total > 0, counts / total.clamp(min=1) + FLOOR, torch.ones_like(counts))

    def grouped(self, pack: Pack, batch: Batch, training: bool) -> Seen:
        """A pass with group tokens: the head reads the mean of the class token and of them."""
        groups, near = self.pick(pack, batch, training)
        insert = self.shared(pack, batch)
        each = groups[..., None, None]
        for name, value in pack.params("group").items():
            block, tokens = int(name.rsplit("/", 1)[1]), batch.of(value).unsqueeze(1)
            own = tokens.expand(-1, each.shape[1], -1, -1).gather(2, each.expand(-1, -1, 1, tokens.shape[-1]))
            insert[block] = torch.cat([own, insert[block]], 2) if block in insert else own
        last = len(pack.backbone.blocks) - 1
        _, states = pack.with_hidden(batch, (last,), insert=insert)
        hidden, _ = states[last]
        return Seen(Output(pack.read_tokens(batch, hidden[:, :, self.read(pack, insert)]).mean(2)), groups, near)

    def read(self, pack: Pack, insert: dict[int, Tensor]) -> list[int]:
        """Places of the class token and the group tokens in a row: what entered last lies first."""
        ours = {int(n.rsplit("/", 1)[1]) for n in pack.params("group")}
        places, at = [0], 1
        for block in sorted(insert, reverse=True):
            places += [at] if block in ours else []
            at += insert[block].shape[2]
        return places

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return self.grouped(pack, batch, training=False).out

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        """The second phase's loss, [k]."""
        seen = self.grouped(pack, batch, training=True)
        return pack.loss(seen.out, batch) - self.key_weight * mean_of(seen.near, batch.mask)

    # client ---------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        picked = torch.zeros(len(pack.clients), self.groups, dtype=torch.long, device=pack.device)
        if not pack.has_work():
            return pack.updates()
        turn: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
        optimizer = pack.optimizer("shared", "head", settings=self.optim, **turn)
        for batch in pack.batches(**turn, stream="shared"):
            pack.report(batch, pack.step(optimizer, self.plain, batch))
        optimizer = pack.optimizer("group", "keys", "head", settings=self.optim, **turn)
        for batch in pack.batches(**turn, stream="group"):
            with torch.no_grad():
                groups, _ = self.pick(pack, batch, training=True)
            who = torch.arange(len(groups), device=groups.device) if batch.clients is None else batch.clients
            picked.index_add_(0, who, (F.one_hot(groups, self.groups) * batch.mask.unsqueeze(-1)).sum(1))
            pack.report(batch, pack.step(optimizer, self.objective, batch))
        return pack.updates(facts=[{"counts": row} for row in picked.tolist()])

    # server ---------------------------------------------------------------------------------------------------------

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = server.stale(client)
        if self.balance and "counts" in server.memo:
            message.facts["counts"] = server.memo["counts"]
        return message

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        return server.stale(client)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        keys = MeanOfKeys(self.groups)
        held = dict(server.shared)
        server.mean(keys.seeing(updates), only=("shared", "group", "head"))
        if not keys.clients:
            return
        for name in [n for n in server.shared if n.startswith("group/")]:
            server.write(name, mixed(held[name], server.shared[name], self.momentum))
        server.write(KEYS, mixed(held[KEYS], keys.mean(self.enough).to(server.bench.dtype), self.key_momentum))
        before = server.memo.get("counts", [0] * self.groups)
        server.memo["counts"] = [a + b for a, b in zip(before, keys.counts.tolist(), strict=True)]


class MeanOfKeys:
    """Sums over the updates of a round, which are held one at a time.

    Attributes:
        clients: that counted. counts: [G] int, their picks.
    """

    def __init__(self, groups: int):
        self.clients = 0
        self.counts = torch.zeros(groups, dtype=torch.long)
        self._even: Tensor | float = 0.0
        self._picked: Tensor | float = 0.0

    def seeing(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates, once their keys have been added; one whose counts are none counts for nothing."""
        for update in updates:
            told, keys = update.facts.get("counts"), update.tensors[KEYS]
            if not isinstance(told, list) or len(told) != len(self.counts):
                continue
            if not all(type(c) is int and 0 <= c <= MOST for c in told):
                continue
            assert isinstance(keys, Tensor)
            counts = torch.tensor(told)
            self.clients += 1
            self.counts += counts
            self._even = self._even + keys
            self._picked = self._picked + counts.to(keys).unsqueeze(1) * keys
            yield update

    def mean(self, enough: int) -> Tensor:
        """[G, d] of each key the mean by picks, or over clients where there are no more picks than ``enough``."""
        assert isinstance(self._even, Tensor) and isinstance(self._picked, Tensor)
        counts = self.counts.to(self._picked).unsqueeze(1)
        return torch.where(counts > enough, self._picked / counts.clamp(min=1), self._even / self.clients)


def mixed(old: Any, new: Any, share: float) -> Tensor:
    """share · old + (1 - share) · new."""
    found: Tensor = share * old + (1 - share) * new
    return found
