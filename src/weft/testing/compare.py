"""What a run leaves behind and predicts, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.federation.client import ClientState
from weft.federation.info import common
from weft.tensors.forms import Value
from weft.tensors.integers import Integers
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked
from weft.testing.federation import Federation


def dense(value: Value) -> Tensor:
    """The value itself, the product of its factors, its integers, or its entries among zeros."""
    if isinstance(value, LowRank | Masked):
        return value.dense()
    return value.values if isinstance(value, Integers) else value


def server_state(run: Federation) -> dict[str, Tensor]:
    """All that the server holds, factored values as products."""
    tensors, _ = run.server.tensors_and_json()
    found = {n: v for n, v in tensors.items() if not n.endswith((":A", ":B"))}
    for store in (run.server.shared, run.server.memo):
        found |= {f"{n} dense": v.dense() for n, v in store.items() if isinstance(v, LowRank)}
    for client in sorted(run.server.notes.manifest):
        values = {n: v for n, v in run.server.notes.get(client).items() if isinstance(v, Value)}
        found |= {f"noted {client} {n}": dense(v) for n, v in values.items()}
    return found


def client_state(run: Federation) -> dict[str, Tensor]:
    """What clients remember, by client and name."""
    found: dict[str, Tensor] = {}
    for client in run.clients:
        run.simulation.setup.store.load(client)
        found |= remembered(client)
        run.simulation.setup.store.forget(client)
    return found


def remembered(client: ClientState) -> dict[str, Tensor]:
    """The tensors in a client's memory, by client and name: values that it keeps, and what its method noted."""
    memo = {f"memo {n}": v for n, v in client.memo.items() if isinstance(v, Tensor)}
    return {f"{client.id}:{n}": v for n, v in (client.kept | memo).items()}


def state(run: Federation) -> dict[str, Tensor]:
    """All that a run leaves behind: the server's values, and what clients remember."""
    return server_state(run) | client_state(run)


def logits(run: Federation) -> dict[str, Tensor]:
    """What the run predicts, by every view: factors may differ by a rotation where predictions do not."""
    found, dtype = {}, run.bench.dtype  # rounded to single precision, equal ones differ now and then
    for view in run.method.views:
        if common(view):
            found[view] = run.global_logits(view=view, dtype=dtype)
        else:
            found |= {f"{view}:{c}": v for c, v in run.personal_logits(view, dtype=dtype).items()}
    return found


def assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float, what: str = "") -> None:
    """Names, shapes, dtypes, and every element up to ``tolerance``, relative and absolute.

    Args:
        what: begins the sentence of a failure.
    """
    before = f"{what}: " if what else ""
    odd = sorted(a.keys() ^ b.keys())
    if odd:
        raise AssertionError(f"{before}{odd[0]} is on one side only.")
    for name in a:
        try:
            torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)
        except AssertionError as e:
            raise AssertionError(f"{before}{name} differs. {e}") from None


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 0.0) -> bool:
    """Whether two sets of tensors are the same, see :func:`assert_same`."""
    try:
        assert_same(a, b, tolerance)
    except AssertionError:
        return False
    return True
