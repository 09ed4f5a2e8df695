"""Leading singular triplets of matrices with few entries, against dense ones; those of dense ones are tested with FRLoRA."""

from __future__ import annotations

import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from weft.tensors import principal
from weft.tensors.principal import principal_of_entries


def entries(shape: tuple[int, int], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values and places of n entries, and the matrix."""
    g = torch.Generator().manual_seed(0)
    flat = torch.randperm(shape[0] * shape[1], generator=g)[:n]
    values = torch.randn(n, generator=g, dtype=torch.float64)
    matrix = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    matrix[flat] = values
    return values, torch.stack([flat // shape[1], flat % shape[1]]), matrix.view(shape)


def found(shape: tuple[int, int], n: int, rank: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    values, places, _ = entries(shape, n)
    return principal_of_entries(values, places, shape, rank, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lanczos", [False, True])
@pytest.mark.parametrize(("shape", "rank"), [((60, 80), 4), ((80, 60), 4), ((50, 50), 12)])
def test_they_are_those_of_the_dense_matrix(
    shape: tuple[int, int], rank: int, lanczos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flat spectrum: of 60 values the first four hold a quarter."""
    U, S, Vh = torch.linalg.svd(entries(shape, 400)[2], full_matrices=False)
    if lanczos:
        monkeypatch.setattr(principal, "DENSE", 10)
        monkeypatch.setattr(torch.linalg, "svd", None)
    else:
        monkeypatch.setattr(scipy.sparse.linalg, "svds", None)
    u, s, vh = found(shape, 400, rank)
    torch.testing.assert_close(s, S[:rank], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((u * s) @ vh, (U[:, :rank] * S[:rank]) @ Vh[:rank], rtol=1e-8, atol=1e-8)
    for one in (u.mT @ u, vh @ vh.mT):
        torch.testing.assert_close(one, torch.eye(rank, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert bool((vh.gather(1, vh.abs().argmax(1, keepdim=True)) > 0).all())
    torch.testing.assert_close(found(shape, 400, rank, seed=2)[2], vh, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lanczos", [False, True])
def test_there_are_no_more_of_them_than_the_matrix_has_ranks(lanczos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if lanczos:
        monkeypatch.setattr(principal, "DENSE", 10)
    matrix = entries((60, 80), 3)[2]
    u, s, vh = found((60, 80), 3, 6)
    assert len(s) == int(torch.linalg.matrix_rank(matrix))
    torch.testing.assert_close((u * s) @ vh, matrix, rtol=1e-9, atol=1e-9)


def test_where_lanczos_method_does_not_converge_the_matrix_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fails(matrix: object, k: int, v0: object) -> object:
        asked.append(k)
        raise scipy.sparse.linalg.ArpackNoConvergence("no convergence", [], [])

    wanted = found((60, 80), 400, 4)
    monkeypatch.setattr(scipy.sparse.linalg, "svds", fails)
    monkeypatch.setattr(principal, "DENSE", 10)
    assert all(torch.equal(a, b) for a, b in zip(found((60, 80), 400, 4), wanted, strict=True))
    assert asked == [4]
