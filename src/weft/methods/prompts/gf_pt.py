"""GF-PT: prompts of words that clients find by trying them out; ids of tokens go up, and sparse sums of words come down.

R. Wang, T. Yu, R. Zhang, S. Kim, R. Rossi, H. Zhao, J. Wu, S. Mitra, L. Yao, R. Henao, "Personalized Federated Learning for
Text Classification with Gradient-Free Prompt Tuning", Findings of NAACL 2024. Its authors give it no name; this is a survey's. No
gradient is taken anywhere: a frozen masked language model is asked for losses, and its embedding E [V, d] is read.

A prompt has n vectors, which stand before every text. Server and clients hold the same p' [n, d]. In a round

    client   p_i ← p'; position by position, in random order: of the K words nearest to the vector there (by cosine) the one with
             the least loss takes its place; up goes the id of the word at each position
    server   p = mean of the clients' E[ids]; of each position's R = p - p' at most Φ words are kept of
             argmin_w ½‖R - Eᵀw‖² + α‖w‖₁, with their weights as 16-bit floats: p' ← p' + Σ w_j E[j]
    down     go these pairs of a word and a weight, of all rounds that a client has missed

After the last round each client fits p_i = p' + A z to its own rows and keeps it to itself: A is a random projection, and z is
found by CMA-ES as in BBT (T. Sun, Y. Shao, H. Qian, X. Huang, X. Qiu, "Black-Box Tuning for Language-Model-as-a-Service", ICML
2022, arXiv 2201.03514). Up to then both views are p': nothing of a client's own outlives a round.

All make p' of its start and the steps of every round, in their order and by the same operations, so that it has the same bits
everywhere. What a client surely has in common with the server are the steps before the last of its turns that counted: the
server says how many these are, and the client leaves out what else it may have and adds what it is sent. So a turn that was lost,
an update that was refused and a server that has gone back are all the same to it. A client without rows never sends anything, and
is told all steps each time.

Of the following the main text was not seen, and what is likeliest is the default: S, one visit of each position (``epochs``,
``steps``); the rows that losses are taken of (``rows``); the nearest word for positions that were never visited (``near``); the
start of p', words drawn at random (``phrase``), behind the first token (``where``); the scale of α (``error``), and no least
squares afterwards (``refit``); the search for z, which is BBT's but for its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from weft.aggregation.lasso import lasso
from weft.contract import (
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    Bench,
    Bounded,
    ClientInfo,
    Count,
    Init,
    Integers,
    Message,
    Method,
    MethodInfo,
    NonNegative,
    Pack,
    Positive,
    ServerState,
    Shape,
    SoftWords,
    Task,
    Update,
    UserError,
    WeftError,
    Weighting,
    Whole,
    WordPlace,
    WordTable,
    make_batch,
)
from weft.tensors.evolution import evolved
from weft.tensors.halves import HALVES, halves, numbers

IDS = "words/ids"
"""Goes up: a token for each position."""
KEPT, ATOMS, WEIGHTS = "steps/kept", "steps/words", "steps/weights"
"""Go down: how many of its steps a client keeps, and the words and weights of those that it adds."""
STEPS = "steps"
"""What both sides remember them by, as lists: of each a round (at the server), words [n, Φ] and weights [n, Φ]."""
PROMPT = "prompt"
LARGEST_COUNT = 1 << 32

Step = tuple[list[list[int]], list[list[int]]]


class GFPT(Method):
    """Defaults of the paper, as far as they are known, and of BBT.

    Attributes:
        tokens: n. where: they stand ``behind`` the first token of a row ([CLS]) or in ``front`` of it.
        phrase: words whose embeddings p' starts at, instead of words drawn at random.
        epochs: visits of each position in a turn; of a fraction only so many are visited. steps: S, visits in a turn instead.
        candidates: K, the words that are tried in a position. near: by which they are near, ``cosine`` or ``distance``.
        rows: a client's losses are taken of all its rows, or of so many, drawn anew in each round, where it has more.
        batch: rows of a client in a pass.
        pairs: Φ, the words of a step in each position.
        alpha: α, the price of a weight. error: it is one for the squared error's ``sum`` over the d entries, as in the formula
            above, or for their ``mean``, as scikit-learn counts (α there is d times as much here).
        refit: weights of the Φ words are those of least squares instead of what the price has left of them.
        post_tuning: when clients fit z to their rows: after the ``last`` round, at ``every`` evaluation, or ``never``. A run that
            is stopped early has no last round.
        evaluations: losses that a client may take for that, at each evaluation. BBT takes 8,000.
        latent: length of z. population: of a generation. sigma: σ that the search begins with; A is drawn so that the
            entries of A z then spread as those of E do.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="gf-pt",
        title="Prompts of words, found without a gradient: ids of tokens go up, sparse sums of words come down",
        paper="Wang et al., NAACL Findings 2024",
        family="prompts",
        challenges=("communication efficiency", "data heterogeneity"),
        evidence="reconstructed",
        deviations=(
            "The paper's main text was not read: it is known from its abstract and from sentences that others quote. The number "
            "of visits, the rows that losses are taken of, the scale of α, the start of the prompt and how post-tuning goes are "
            "settings with the likeliest default. Post-tuning takes 400 losses, where BBT takes 8,000."
        ),
        sends="the word that lowers its loss most in each position of its prompt, which may tell what its texts are about",
        views=("personal", "global"),
        tells=("last",),
        needs=("texts", "label words", "no gradients"),
    )
    demands: ClassVar[tuple[str, ...]] = ("*",)
    unused: ClassVar[tuple[str, ...]] = ("optim",)

    tokens: Count = 50
    where: WordPlace = "behind"
    phrase: str = ""
    candidates: Count = 5
    near: Literal["cosine", "distance"] = "cosine"
    rows: Count = 64
    pairs: Count = 5
    alpha: NonNegative = 0.2
    error: Literal["sum", "mean"] = "sum"
    refit: bool = False
    post_tuning: Literal["last", "every", "never"] = "last"
    evaluations: Whole = 400
    latent: Count = 500
    population: Count = 20
    sigma: Positive = 1.0
    weighting: Weighting = "uniform"

    @property
    def gives_away(self) -> str:
        return "sends ids of words, which have no norm"

    @property
    def sums(self) -> bool:
        return False  # a mean of ids is no id

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if backbone.heads:
            raise UserError(
                f'backbone "{backbone.name}" has a head, and gf-pt trains none: use --task fill with a masked language model, '
                "such as --model docs-mlm."
            )
        return {PROMPT: (SoftWords(self.tokens, self.where, phrase=self.phrase), TEMPORARY)}

    # down: p' --------------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        if server.bench.others:
            raise UserError(
                "gf-pt sends words by their ids and reads their embeddings, which differ from backbone to backbone: give all "
                "clients one."
            )

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]:
        each = (None, self.tokens, self.pairs)
        words, weights = Bounded(each, len(table_of(bench))), Bounded(each, HALVES)
        return {KEPT: Bounded((1,), LARGEST_COUNT), ATOMS: words, WEIGHTS: weights}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        """The steps since the client's last turn that counted; all, if it may have lost what it had (``synced`` is 0)."""
        known = server.counted.get(client.id, -1) if server.synced.get(client.id) else -1
        steps = server.memo.get(STEPS, [])
        kept = sum(made < known for made, _, _ in steps)
        message = Message()
        if kept:
            message.tensors[KEPT] = Integers(torch.tensor([kept]), LARGEST_COUNT)
        if kept < len(steps):
            bounds = {ATOMS: len(table_of(server.bench)), WEIGHTS: HALVES}
            for name, own in zip(bounds, zip(*[step[1:] for step in steps[kept:]], strict=True), strict=True):
                message.tensors[name] = Integers(torch.tensor(own), bounds[name])
        return message

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        last = server.round.index + 1 >= server.rounds
        return replace(self.send(server, client), facts={"last": True} if last else {})

    @torch.no_grad()
    def load(self, pack: Pack) -> None:
        name, table, made, before = prompt_of(pack), table_of(pack.bench), list[Tensor](), list[Step]()
        for k, start in enumerate(pack.tensors[name]):
            steps = steps_of(pack, k)
            same = bool(made) and steps == before  # most clients have the same
            made.append(made[-1] if same else moved(table, start, steps))
            before = steps
        pack.tensors[name] = torch.stack(made)

    # client: the search ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def train(self, pack: Pack) -> Iterable[Update]:
        name, people = prompt_of(pack), torch.arange(len(pack.clients))
        table, ids = table_of(pack.bench), torch.full((len(people), self.tokens), -1)
        visits = self.steps or max(1, round(self.epochs * self.tokens))
        orders = [visited(self.tokens, visits, stream) for stream in pack.generators("positions")]
        batches = self._batches(pack)
        for at in torch.stack(orders, 1) if batches else ():  # [K], a position of each client
            prompt = pack.tensors[name].clone(memory_format=torch.contiguous_format)
            tried = table.nearest(prompt[people, at], self.candidates, self.near)  # [K, candidates]
            losses = []
            for words in tried.unbind(1):
                prompt[people, at] = table.rows[words]
                losses.append(self._losses(pack, batches, prompt))
            least = torch.stack(losses, 1).min(1)
            best = tried.gather(1, least.indices.to(tried.device).unsqueeze(1)).squeeze(1)
            prompt[people, at] = table.rows[best]
            pack.tensors[name], ids[people, at] = prompt, best.cpu()
            pack.report(batches[0], batches[0].of(least.values))
        for k, client in enumerate(pack.clients):
            never = ids[k] < 0
            ids[k, never] = table.nearest(pack.tensors[name][k, never.to(pack.device)], 1, self.near).squeeze(1).cpu()
            client.memo[STEPS] = steps_of(pack, k)
        return pack.updates(tensors=[{IDS: Integers(own, len(table))} for own in ids])

    def _batches(self, pack: Pack) -> list[Batch]:
        """What losses are taken of in a turn, rows of like length together. Every client with rows is in the first."""
        chosen = []
        for client, stream in zip(pack.clients, pack.generators("rows"), strict=True):
            own = client.data.train
            if len(own) > self.rows:
                own = own[torch.randperm(len(own), generator=stream)[: self.rows].numpy()]
            chosen.append(own[np.argsort(pack.bench.table.lengths[own], kind="stable")])
        found = []
        for i in range(0, max(map(len, chosen)), self.batch):
            parts = [own[i : i + self.batch] for own in chosen]
            present = [k for k, own in enumerate(parts) if len(own)]
            index = np.full((len(present), max(len(parts[k]) for k in present)), -1, dtype=np.int64)
            for row, k in zip(index, present, strict=True):
                row[: len(parts[k])] = parts[k]
            found.append(make_batch(pack.task, pack.bench.table, index, present, pack.device))
        return found

    def _losses(self, pack: Pack, batches: Sequence[Batch], prompts: Tensor) -> Tensor:
        """[K] each client's mean loss over its rows with a prompt [K, n, d] of its own; 0 of a client without rows."""
        total, count = (torch.zeros(len(prompts), dtype=pack.dtype, device=pack.device) for _ in range(2))
        with pack.values({prompt_of(pack): prompts}):
            for batch in batches:
                rows = batch.mask.sum(1).to(pack.dtype)
                assert batch.clients is not None
                total.index_add_(0, batch.clients, self.objective(pack, batch) * rows)
                count.index_add_(0, batch.clients, rows)
        return total / count.clamp(min=1)

    # up --------------------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        return {IDS: Bounded((self.tokens,), len(table_of(server.bench)))}

    # server: the step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        table = table_of(server.bench)

        def embedded() -> Iterator[Update]:
            for update in updates:
                ids = update.tensors[IDS]
                assert isinstance(ids, Integers)
                yield replace(update, tensors={PROMPT: table[ids.values].cpu()})

        found = server.average(embedded())
        if PROMPT not in found:
            return
        held = server.memo[PROMPT] if PROMPT in server.memo else start_of(self, server)
        step = self._step(found[PROMPT] - held, table.rows.cpu())
        server.memo[PROMPT] = moved(table, held, [step])
        server.memo[STEPS] = [*server.memo.get(STEPS, []), [server.round.index, *step]]

    def _step(self, gaps: Tensor, table: Tensor) -> Step:
        """Φ words and weights for each position.

        Args:
            gaps: R [n, d]. table: E [V, d].
        """
        alpha = self.alpha * (table.shape[1] if self.error == "mean" else 1)
        words, weights = torch.zeros(2, self.tokens, self.pairs, dtype=torch.int64)
        for t, found in enumerate(lasso(table, gaps, alpha)):
            kept = found.largest(self.pairs)
            if self.refit:
                kept = kept.refitted(table, gaps[t])
            words[t, : len(kept.atoms)], weights[t, : len(kept.atoms)] = kept.atoms, halves(kept.weights)
        return words.tolist(), weights.tolist()

    # post-tuning ---------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def personalise(self, pack: Pack) -> None:
        due = self.post_tuning == "every" or (self.post_tuning == "last" and any(facts.get("last") for facts in pack.facts))
        batches = self._batches(pack) if due else []
        if not batches:
            return
        name, people = prompt_of(pack), batches[0].clients
        assert people is not None
        common = pack.tensors[name]
        spread = float(table_of(pack.bench).rows.std()) / (self.latent**0.5 * self.sigma)
        a = pack.bench.draw(Init((common[0].numel(), self.latent), "normal", spread), "projection").to(common)

        def prompts(z: np.ndarray) -> Tensor:
            """p' + A z of those with rows, z [k, d_z], and p' of the others."""
            far = (torch.from_numpy(z).to(a) @ a.T).view(-1, *common.shape[1:])
            return common.index_add(0, people, far)

        def losses(z: np.ndarray) -> np.ndarray:
            found: np.ndarray = self._losses(pack, batches, prompts(z))[people].cpu().double().numpy()
            return found

        streams = pack.generators("post-tuning")
        best = evolved(losses, [streams[k] for k in people.tolist()], self.latent, self.sigma, self.population, self.evaluations)
        pack.tensors[name] = prompts(best)


# of p' --------------------------------------------------------------------------------------------------------------------


def prompt_of(pack: Pack) -> str:
    """Name of the prompt's tensor."""
    (name,) = pack.params(PROMPT)
    return name


def table_of(bench: Bench) -> WordTable:
    """E."""
    return WordTable(bench.backbone, bench.dtype)


def start_of(method: GFPT, server: ServerState) -> Tensor:
    """p' before the first round."""
    part = method.adapt(server.bench.backbone, server.bench.task, ClientInfo(""))[PROMPT][0]
    (site,) = part.sites(server.bench.backbone)
    return server.bench.draw(part.tensors(server.bench.backbone, site)["words"])


def steps_of(pack: Pack, k: int) -> list[Step]:
    """All steps that a client has: those that it keeps, and those that it has received.

    Raises:
        WeftError: it is told to keep more than it has.
    """
    received, client = pack.received[k], pack.clients[k]
    held = client.memo.get(STEPS, [])
    told = {n: v.values.tolist() for n, v in received.items() if isinstance(v, Integers)}
    (kept,) = told.get(KEPT, [0])
    if kept > len(held):
        raise WeftError(f"client {client.id} has {len(held)} steps of the prompt and is told to keep {kept}")
    new = zip(told.get(ATOMS, []), told.get(WEIGHTS, []), strict=True)
    return [*held[:kept], *([words, weights] for words, weights in new)]


def moved(table: WordTable, prompt: Tensor, steps: Iterable[Step]) -> Tensor:
    """p' after more steps: always the same operations in the same order, none of which rounds differently on another machine.

    Args:
        prompt: [n, d].
    """
    found = prompt.cpu()
    for words, weights in steps:
        far = numbers(torch.tensor(weights)).to(found.dtype)
        for j, ids in enumerate(torch.tensor(words).unbind(1)):
            found = found + far[:, j : j + 1] * table[ids].cpu()
    return found.to(prompt.device)


def visited(positions: int, visits: int, stream: torch.Generator) -> Tensor:
    """int64 [visits]: every position once before any is visited again."""
    sweeps = -(-visits // positions)
    return torch.cat([torch.randperm(positions, generator=stream) for _ in range(sweeps)])[:visits]
