"""The two towers of a CLIP by hand: pictures and their patches on one side, class names through parts on the other.

The tower of pictures is frozen, so that each picture goes through it once in a run: what comes out is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.in_flight import Weight
from weft.adaptation.weave import Weave
from weft.backbones.pictured_replies import PicturedReplies
from weft.errors import WeftError
from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Embedding
    from weft.federation.batch import Batch
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState
    from weft.federation.counting import Counting


class Towers:
    """What :class:`weft.federation.passes.Passes` can do with a backbone that has two towers."""

    bench: Bench
    backbone: Backbone
    clients: list[ClientState]
    device: torch.device
    dtype: torch.dtype
    counting: Counting | None
    _weave: Weave

    if TYPE_CHECKING:  # of passes

        def _check_absent(self) -> None: ...

        def check_seen(self) -> None: ...

        def _forward(
            self, inputs: dict[str, Tensor], clients: Tensor | None, k: int, use: Mapping[str, Weight] | None
        ) -> Output: ...

    def images(self, batch: Batch) -> Tensor:
        """[k, b, e] embeddings of a batch's pictures on the frozen tower, not normalised; without gradient."""
        self._count_pictures(batch)
        return self._embedded(batch.index.reshape(-1), "image").view(*batch.index.shape, -1)

    def patches(self, batch: Batch) -> Tensor:
        """[k, b, V, e] embeddings of the patches of a batch's pictures, as :meth:`images`.

        Of a model that writes about pictures they are what its connector reads, 0 for a padding row.
        """
        if isinstance(table := self.bench.table, PicturedReplies):  # the tower has looked at its pictures before the first round
            found = table.seen(batch.index.reshape(-1)).to(self.device, self.dtype)
            return found.view(*batch.index.shape, *found.shape[1:])
        self._count_pictures(batch)
        found = self._embedded(batch.index.reshape(-1), "patches")
        return found.view(*batch.index.shape, *found.shape[1:])

    def texts(self, use: Mapping[str, Weight], clients: Tensor | None = None) -> Tensor:
        """[k, C, e] of unit length: what the text tower makes of the class names, with these parts on.

        Of a context before words of its own (:class:`weft.adaptation.tokens.ClassContext`) C is the number of these.

        Args:
            clients: [k] whose, as indices into the pack; None = of all K in order.

        Raises:
            WeftError: the backbone has no text tower.
        """
        self._check_towers()
        return self._texts(use, clients, clients)

    def common_texts(self, use: Mapping[str, Weight]) -> Tensor:
        """[C, e] of parts that are the same for all clients: they are read once, and each client that trains has read them."""
        training = [i for i, c in enumerate(self.clients) if len(c.data.train)]
        return self._texts(use, torch.zeros(1, dtype=torch.long, device=self.device), torch.tensor(training, dtype=torch.long))[0]

    def _texts(self, use: Mapping[str, Weight], clients: Tensor | None, readers: Tensor | None) -> Tensor:
        """
        Args:
            readers: for whom they are read, as indices into the pack; None = for all.
        """
        k = len(self.clients) if clients is None else len(clients)
        inputs = self._weave.own_tokens.of_names({}, k, use)
        if "input_ids" not in inputs:
            frozen: Tensor = inputs["text_embeds"].to(self.device, self.dtype)
            return frozen.expand(k, *frozen.shape)
        self._check_absent()
        self._weave.prefix = None
        if self.counting is not None:
            self.counting.named(self.clients, readers, use, inputs, k)
        with self._weave.attached(clients, k, use):
            found: Tensor = self.backbone.model.embed_texts(inputs["input_ids"], inputs["common"])
        return found.to(self.device, self.dtype).view(k, -1, found.shape[-1])

    @property
    def scale(self) -> Tensor:
        """exp(s), by which a CLIP multiplies cosines; a number."""
        self._check_towers()
        found: Tensor = self.backbone.model.logit_scale.detach().to(self.device, self.dtype).exp().reshape(())
        return found

    def embed(self, rows: list[np.ndarray], chunk: int = 256) -> list[Tensor]:
        """Embeddings of each client's table rows, as :meth:`images`: K tensors [n_k, e]."""
        self._check_towers()
        nothing = torch.zeros(0, 1, self.backbone.embedding.d_in, dtype=self.dtype, device=self.device)  # type: ignore[union-attr]
        found = []
        for i, index in enumerate(rows):
            if self.counting is not None:
                self.counting.pictured(self.bench, self.clients[i], index)
            parts = [index[start : start + chunk] for start in range(0, len(index), chunk)]
            found.append(torch.cat([nothing, *(self._embedded(part, "image") for part in parts)]).squeeze(1))
        return found

    def tail(self, embeddings: Tensor, use: Mapping[str, Weight] | None = None) -> Output:
        """What the model makes of embeddings [K, n, e], as :meth:`embed` gives them: logits [K, n, C]."""
        self._check_absent()
        self._weave.prefix = None
        if self.counting is not None:
            self.counting.ended(self.clients, embeddings.shape[1], use)
        return self._forward({"image_embeds": embeddings.flatten(0, 1)}, None, len(embeddings), use)

    def _count_pictures(self, batch: Batch) -> None:
        if self.counting is not None:
            for client, rows in batch.own(len(self.clients)):
                self.counting.pictured(self.bench, self.clients[client], rows)

    def _embedded(self, index: np.ndarray, what: Embedding) -> Tensor:
        """[m, 1, e] of the pictures of table rows [m], or [m, V, e] of their patches.

        Raises:
            WeftError: there are no such embeddings, or parts sit in the tower that makes them.
        """
        self.check_seen()
        self._check_towers()
        inside = [p for p in self._weave.placed if not p.site.tower and p.site.role not in ("embedding", "values")]
        if inside:
            raise WeftError(f'"{inside[0].part_name}" sits in the tower of pictures, whose embeddings are taken as frozen')
        table, prefix = self.bench.table, self.bench.prefix
        if prefix is not None:
            found = prefix.embedded(table, index, what)
        else:
            found = self.backbone.embed(self.backbone.to_model(table.collate(index)), what)
        return found.to(self.dtype)

    def _check_towers(self) -> None:
        if self.backbone.names is None:
            raise WeftError(f'backbone "{self.backbone.name}" has no embedding of whole rows')
