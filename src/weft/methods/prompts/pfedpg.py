"""pFedPG: a generator at the server makes a visual prompt for each client, and learns from how the clients change it.

F.-E. Yang, C.-Y. Wang, Y.-C. F. Wang, "Efficient Model Personalization in Federated Learning via Client-Specific Prompt
Generation", ICCV 2023, arXiv 2308.15367. No official code.

P_n = P_base + softmax(d_n W^Q (P_base W^K)ᵀ / √l_k) P_base W^V W^O, one row added to each of the K tokens. The client trains
P_n and its own head, and sends P̃_n; the server moves W, P_base and d_n down the gradient of Σ_n ½‖P_n − P̃_n‖², which is the
chain rule with ∇_{P_n} L ≈ −(P̃_n − P_n). (Taken literally, the paper's ΔP_n as the gradient would climb.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from weft.contract import (
    PERSONAL,
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
    Task,
    Update,
)


class PFedPG(Method):
    """The paper's defaults; start values and the residual form of the generator are those of re-implementations.

    Attributes:
        tokens: K, inserted after the class token, into the first block only.
        inner: l_k = l_v, inner width of the attention (the paper gives none).
        server_lr: α. server_optimizer: ``gd`` as in the paper, or ``adam`` as in re-implementations: a plain step moves the
            generator by about α of the clients' displacement.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pfedpg",
        title="A server-side generator makes a personal visual prompt for each client",
        paper="Yang et al., ICCV 2023",
        arxiv="2308.15367",
        family="prompts",
        challenges=("data heterogeneity", "computational heterogeneity"),
        evidence="paper",
        deviations=(
            "Start values, the generator's residual form and its inner width of 512 are those of re-implementations, as the "
            "paper's text gives none. The sign of the clients' change is the one that descends, and the trained prompt travels "
            "instead of the change."
        ),
        views=("personal", "generated"),
        sends="its prompt as trained; the server keeps a vector that describes the client, learnt from it",
        needs=("images", "head"),
    )

    demands: ClassVar[tuple[str, ...]] = ("prompt",)
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    tokens: Count = 10
    inner: Count = 512
    server_lr: NonNegative = 1e-3
    server_optimizer: Literal["gd", "adam"] = "gd"
    epochs: Positive = 5.0
    batch: Count = 64
    optim: Optim = Optim("sgd", lr=0.25, weight_decay=1e-3, schedule="constant")

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        prompt = ImageTokens(self.tokens)
        return {"prompt": (prompt, SHARED), "adapted": (prompt, PERSONAL), "head": (task.head, PERSONAL)}

    # server ---------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        bench = server.bench
        (site,) = server.sites("prompt")
        base = server.adaptation["prompt"][0].tensors(bench.backbone, site)["tokens"]
        width, inner = site.d_in, self.inner
        linear = {"q": (width, inner), "k": (width, inner), "v": (width, inner), "o": (inner, width)}
        inits = {n: Init(shape, "uniform", 1 / math.sqrt(shape[0])) for n, shape in linear.items()}
        inits |= {"base": base, "clients": Init((len(server.clients), width), "uniform", 1.0)}
        server.memo |= {n: bench.draw(init, "pfedpg", n) for n, init in inits.items()}
        server.memo["ids"] = [c.id for c in server.clients]

    def welcome(self, server: ServerState, client: ClientInfo) -> None:
        memo = server.memo
        if client.id in memo["ids"]:
            return
        memo["ids"] = [*memo["ids"], client.id]
        for name in [n for n in memo if n.startswith("adam/clients/")]:
            memo[name] = torch.cat([memo[name], torch.zeros_like(memo[name][:1])])
        memo["clients"] = torch.cat([memo["clients"], memo["clients"].mean(0, keepdim=True)])  # an average one

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        ids = server.memo["ids"]
        who = server.memo["clients"]
        d = who[ids.index(client.id)] if client.id in ids else who.mean(0)  # a new client is an average one
        return Message({prompt_name(server): generate(server.memo, d)})

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        memo, name = server.memo, prompt_name(server)
        learnt = {n: memo[n].clone().requires_grad_(True) for n in ("q", "k", "v", "o", "base", "clients")}
        present = torch.zeros(len(memo["ids"]), 1, dtype=torch.bool)
        loss = torch.zeros((), dtype=server.bench.dtype)
        for update in updates:
            place = memo["ids"].index(update.client.id)
            trained = update.tensors[name]
            assert isinstance(trained, Tensor)
            loss = loss + 0.5 * (generate(learnt, learnt["clients"][place]) - trained.to(loss.dtype)).square().sum()
            present[place] = True
        if not present.any():
            return
        gradients = torch.autograd.grad(loss, list(learnt.values()))
        for (n, value), g in zip(learnt.items(), gradients, strict=True):
            rows = present if n == "clients" else torch.ones(len(g), 1, dtype=torch.bool)
            memo[n] = value.detach() - self._step(memo, n, g, rows)

    def _step(self, memo: dict[str, Any], name: str, g: Tensor, here: Tensor) -> Tensor:
        """α·g, or Adam's (Kingma & Ba, 2015) with its usual constants, in the rows ``here`` [n, 1]: momentum would go on moving
        absent clients.
        """
        if self.server_optimizer == "gd":
            return self.server_lr * g
        t = memo.get(f"adam/{name}/t", torch.zeros_like(g[:, :1])) + here
        first, second = (memo.get(f"adam/{name}/{i}", torch.zeros_like(g)) for i in ("m", "v"))
        m = torch.where(here, 0.9 * first + 0.1 * g, first)
        v = torch.where(here, 0.999 * second + 0.001 * g.square(), second)
        memo |= {f"adam/{name}/t": t, f"adam/{name}/m": m, f"adam/{name}/v": v}
        steps = t.clamp(min=1)
        return self.server_lr * here * (m / (1 - 0.9**steps)) / ((v / (1 - 0.999**steps)).sqrt() + 1e-8)

    # client ---------------------------------------------------------------------------------------------------------

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={"adapted" if view == "personal" else "prompt": 1.0})

    def train(self, pack: Pack) -> Iterable[Update]:
        self.fit(pack, only=("prompt", "head"))
        pack.copy("prompt", "adapted")
        return pack.updates()

    def personalise(self, pack: Pack) -> None:
        new = torch.tensor([c.rounds_seen == 0 for c in pack.clients], device=pack.device)
        pack.copy("prompt", "adapted", new)  # a client that was never trained has nothing but what was made for it


def prompt_name(server: ServerState) -> str:
    (site,) = server.sites("prompt")
    return f"prompt/{site.name}/tokens"


def generate(weights: dict[str, Tensor], d: Tensor) -> Tensor:
    """P_n [K, l] from a descriptor [l]: equation 3 of the paper."""
    base = weights["base"]
    q, keys, values = d @ weights["q"], base @ weights["k"], base @ weights["v"]
    attention = torch.softmax(keys @ q / math.sqrt(len(q)), 0)
    return base + (attention @ values) @ weights["o"]
