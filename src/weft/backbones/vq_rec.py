"""VQ-Rec: a small network over sequences of items that knows an item by the codes of its title, and ranks those of a domain.

Y. Hou, Z. He, J. McAuley, W. X. Zhao, "Learning vector-quantized item representation for transferable sequential recommenders",
WWW 2023, arXiv 2210.12316; as in the code of PFCR (Guo et al., WWW 2024, arXiv 2401.14678).

An item has a code in each of S slots, and its vector v is the mean of S rows of one table E, [S (M + 1), d], of which the
first of each slot is that of padding and counts for nothing. Vectors and positions go through a norm and causal blocks
(post-norm); what leaves the last one at the last item is the user u, and the logit of an item is cos(u, v) / τ. Items of equal
codes have equal logits, to the last bit.

The network is made from a configuration and not loaded: its weights are random, by a fixed seed, and are there to be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from weft.backbones import describe, item_codes
from weft.backbones import trace as tracing
from weft.backbones.backbone import Backbone
from weft.backbones.finding import config_of, hash_weights
from weft.backbones.options import VQ_REC, Options
from weft.data import item_names
from weft.errors import UserError

SEED = 0
CODES = "code"
"""Path of the module whose weight is E."""


class VQRecConfig(PretrainedConfig):
    """Defaults of the papers.

    Attributes:
        encoder: the frozen text encoder, a name that ``--model`` takes. pooling: see :func:`weft.backbones.item_codes.embedded`.
        slots: S. centroids: M. opq_iterations: see :func:`weft.tensors.product_codes.fit`. temperature: τ.
    """

    model_type = VQ_REC

    def __init__(
        self,
        encoder: str = "bert-base",
        pooling: str = "first",
        slots: int = 32,
        centroids: int = 256,
        opq_iterations: int = 10,
        hidden_size: int = 300,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 256,
        max_position_embeddings: int = 50,
        temperature: float = 0.07,
        initializer_range: float = 0.02,
        **more: Any,
    ):
        self.encoder, self.pooling = encoder, pooling
        self.slots, self.centroids, self.opq_iterations = slots, centroids, opq_iterations
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.max_position_embeddings, self.temperature = max_position_embeddings, temperature
        self.initializer_range = initializer_range
        super().__init__(**{"pad_token_id": 0} | more)


class Block(nn.Module):
    """Attention and feed-forward, each followed by a norm."""

    def __init__(self, config: VQRecConfig):
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(d, inner), nn.Linear(inner, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, hidden_states: Tensor, hidden: Tensor) -> Tensor:
        """
        Args:
            hidden: bool [n, 1, T, T], what each place must not look at.
        """
        n, width, d = hidden_states.shape
        q, k, v = (f(hidden_states).view(n, width, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = (q @ k.mT / (d / self.heads) ** 0.5).masked_fill(hidden, torch.finfo(q.dtype).min)
        seen = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(n, width, d)
        x = self.norm1(hidden_states + self.o(seen))
        found: Tensor = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        return found


class Sequences(nn.Module):
    """Vectors [n, T, d] of items in order, of which the first ones are a row's own -> the user [n, d]."""

    def __init__(self, config: VQRecConfig):
        super().__init__()
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, vectors: Tensor, attention_mask: Tensor) -> Tensor:
        n, width = attention_mask.shape
        x = self.norm(vectors + self.position(torch.arange(width, device=vectors.device)))
        later = torch.ones(width, width, dtype=torch.bool, device=x.device).triu(1)
        hidden = later | (attention_mask == 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, hidden)
        return x[torch.arange(n, device=x.device), attention_mask.sum(1) - 1]


class VQRec(PreTrainedModel):
    """
    Args:
        codes: int64 [C, S] of the items, below M. domain: int64 [C], of each item.

    Attributes:
        rows: int64 [U + 1, S], which rows of E make each different item; the first is padding.
        item: int64 [C], which of these an item is.
    """

    config_class = VQRecConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    rows: Tensor
    item: Tensor
    domain: Tensor

    def __init__(self, config: VQRecConfig, codes: np.ndarray, domain: np.ndarray):
        super().__init__(config)
        different, which = np.unique(codes, axis=0, return_inverse=True)
        first = np.arange(config.slots) * (config.centroids + 1)
        self.register_buffer("rows", torch.from_numpy(np.concatenate([np.zeros_like(different[:1]), different + 1]) + first))
        self.register_buffer("item", torch.from_numpy(which.reshape(-1) + 1))
        self.register_buffer("domain", torch.from_numpy(domain))
        self.code = nn.Embedding(config.slots * (config.centroids + 1), config.hidden_size)
        self.encoder = Sequences(config)
        self.post_init()
        with torch.no_grad():
            self.code.weight[first] = 0.0

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Logits [n, C].

        Args:
            input_ids: [n, T] items of a row in order, counted from 1; 0 is padding, at the end.
        """
        mask = (input_ids > 0).long() if attention_mask is None else attention_mask
        users = self.encoder(self.vectors(input_ids, self.code.weight), mask)
        return SequenceClassifierOutput(logits=self.logits(users, self.code.weight))

    def vectors(self, input_ids: Tensor, code: Tensor) -> Tensor:
        """[..., d] the vectors of items (0 = padding) by a table E."""
        places = F.pad(self.item, (1, 0))[input_ids]
        return self._means(self.rows[places].flatten(0, -2), code).view(*input_ids.shape, -1)

    def logits(self, users: Tensor, code: Tensor) -> Tensor:
        """[..., C] cosines of users [..., d] with all items by a table E, over τ."""
        known = F.normalize(self._means(self.rows[1:], code), dim=-1)
        each = F.normalize(users, dim=-1) @ known.mT / self.config.temperature
        return each[..., self.item - 1]

    def _means(self, rows: Tensor, code: Tensor) -> Tensor:
        """[m, d] means over rows [m, S] of E."""
        return F.embedding_bag(rows, code, mode="mean")


def made(
    where: str,
    name: str,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    options: Options,
    say: Callable[[str], None] | None = None,
) -> Backbone:
    """The network for these items.

    Args:
        where: folder of its configuration. name: what sentences call it. classes: the items, see :mod:`weft.data.item_names`.

    Raises:
        UserError: the configuration is none, or the encoder can't be had.
    """
    given = config_of(where)
    try:
        config = VQRecConfig(**{n: v for n, v in given.items() if n != "model_type"}, vocab_size=len(classes) + 1)
        small = min(config.slots, config.centroids, config.hidden_size // config.num_attention_heads)
        fits = small > 0 and config.hidden_size % config.num_attention_heads == 0 and config.temperature > 0
    except (TypeError, ZeroDivisionError) as e:
        raise UserError(f'the configuration of backbone "{name}" can\'t be read ({e}): compare it with that of vq-rec.') from e
    if not fits or config.pooling not in ("first", "mean"):
        raise UserError(
            f'the configuration of backbone "{name}" makes no network: its hidden_size has to be a multiple of its '
            "num_attention_heads, slots, centroids and temperature more than 0, and pooling first or mean."
        )
    codes, file = item_codes.of([item_names.title_of(c) for c in classes], config, Path(where), say)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        model: Any = VQRec(config, codes, np.unique([item_names.domain_of(c) for c in classes], return_inverse=True)[1])
    model.eval().requires_grad_(False)
    blocks = [f"encoder.layers.{i}" for i in range(config.num_hidden_layers)]
    ids = 1 + torch.arange(tracing.WIDTH).remainder(len(classes)).expand(tracing.ROWS, -1).clone()
    mask = torch.ones_like(ids)
    ids[1, -1], mask[1, -1] = 0, 0
    seen = tracing.trace(model, blocks, {"input_ids": ids, "attention_mask": mask})
    norms = describe.norm_sites(model, blocks, set())
    kept = {s.name for s in norms}
    digest = hash_weights("", model)
    originals = {n: p.clone() for n, p in model.named_parameters() if n.endswith("bias") or n.rpartition(".")[0] in kept}
    return Backbone(
        name=name,
        hub_id=None,
        path=where,
        weight_hash=digest,
        model=model.to(device=device, dtype=dtype),
        tokenizer=None,
        blocks=blocks,
        shared_blocks=seen.shared,
        tuple_blocks=seen.tuple_blocks,
        row_arguments=seen.row_arguments,
        linears=describe.linear_sites(model, blocks, seen.common, options.endings),
        norms=norms,
        heads=[],
        bottlenecks=seen.bottlenecks,
        d=seen.d,
        pools=seen.pools,
        originals=originals,
        max_length=config.max_position_embeddings,
        notes=(
            f"codes of {len(classes):,} items, {len(model.rows) - 1:,} of them different, by {config.encoder}, are in {file}.",
        ),
        reads="items",
        options=options,
    )
