"""What a server notes of clients that send some entries of their tensors, so that they get these entries alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from weft.federation.message import ClientInfo, Message, Update
from weft.storage.notes import Notes
from weft.tensors.forms import Value
from weft.tensors.integers import Integers, unpacked
from weft.tensors.masked import Masked

PLACES = "places/"
"""What notes of places begin with; each is a bit for every entry of the tensor."""


class NotedPlaces:
    """Attributes: see :class:`weft.federation.server.ServerState`."""

    shared: dict[str, Value]
    synced: dict[str, int]
    notes: Notes

    def stale(self, client: ClientInfo) -> Message:
        raise NotImplementedError

    def noting_places(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates as they are, for :meth:`mean`; of each client is noted which entries it has sent of what came in part."""
        for update in updates:
            masks = {n: v.mask.cpu() for n, v in update.tensors.items() if isinstance(v, Masked)}
            if masks:
                places = {PLACES + n: Integers(mask.to(torch.int64), 2).packed() for n, mask in masks.items()}
                self.notes.put(update.client.id, places)
            yield update

    def stale_in_part(self, client: ClientInfo) -> Message:
        """:meth:`stale`, of tensors that the client has sent in part the entries that it sent last.

        Those go out even where they are no news: nobody else remembers of which entries the client holds a copy. A client that
        may have lost what it held gets everything whole.
        """
        message = self.stale(client)
        if not self.synced.get(client.id):
            return message
        for key, packed in self.notes.get(client.id).items():
            if key.startswith(PLACES):
                value = self.shared[name := key.removeprefix(PLACES)]
                assert isinstance(value, Tensor)
                message.tensors[name] = Masked.of(value, unpacked(packed, tuple(value.shape), 2).values.bool())
        return message
