"""The output layer in chunks gives what all logits at once give, on whatever device its weights lie."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from weft.tensors import output_layer
from weft.tensors.output_layer import OutputLayer


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_chunks_give_the_losses_and_gradients_of_all_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", 1)
    monkeypatch.setattr(output_layer, "ROWS", 3)
    g = torch.Generator().manual_seed(0)
    weight, bias, y = torch.randn(11, 4, generator=g).double(), torch.randn(11, generator=g).double(), torch.arange(rows)
    h = torch.randn(rows, 4, generator=g).double().requires_grad_()
    layer, up = OutputLayer(weight, bias), torch.linspace(0.5, 2, rows, dtype=torch.float64)
    assert [s.stop - s.start for s in layer.chunks(h)] == [3] * -(-rows // 3)
    losses, expected = layer.cross_entropy(h, y), F.cross_entropy(F.linear(h, weight, bias), y, reduction="none")
    torch.testing.assert_close(losses, expected)
    ours, plain = (torch.autograd.grad((each * up).sum(), h)[0] for each in (losses, expected))
    torch.testing.assert_close(ours, plain)


def test_a_chunk_is_as_large_as_its_logits_may_be_but_no_smaller_than_a_product_that_pays() -> None:
    h, wide = torch.zeros(1000, 2), torch.zeros(1, 2)
    for size, step in ((4096, 2048), (24576, 341), (128256, output_layer.ROWS)):
        assert next(OutputLayer(wide.expand(size, 2)).chunks(h)) == slice(0, step)


def test_its_weights_may_lie_on_another_device_than_the_rows() -> None:
    with FakeTensorMode():  # knows where a tensor is supposed to be, and refuses to mix
        weight, h = torch.empty(11, 4, device="cuda"), torch.empty(3, 4, requires_grad=True)
        losses = OutputLayer(weight).cross_entropy(h, torch.empty(3, dtype=torch.int64))
        (slope,) = torch.autograd.grad(losses.sum(), h)
        assert (losses.device.type, slope.device.type, OutputLayer(weight)(h.detach()).device.type) == ("cpu",) * 3


def test_the_weights_of_a_layer_that_is_trained_have_their_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    h, y = torch.randn(5, 4, generator=g).double(), torch.arange(5)
    weight = torch.randn(11, 4, generator=g).double().requires_grad_()
    losses, expected = OutputLayer(weight).cross_entropy(h, y), F.cross_entropy(h @ weight.mT, y, reduction="none")
    ours, plain = (torch.autograd.grad(each.sum(), weight)[0] for each in (losses, expected))
    torch.testing.assert_close(ours, plain)


def test_what_is_made_of_two_passes_reads_each_with_its_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", 1)
    monkeypatch.setattr(output_layer, "ROWS", 3)
    g = torch.Generator().manual_seed(0)
    one, other = (torch.randn(7, d, generator=g).double() for d in (4, 5))
    v, w = (torch.randn(11, d, generator=g).double() for d in (4, 5))
    found = output_layer.each(lambda a, b: (a - 2 * b).exp().sum(-1), [(one, OutputLayer(v)), (other, OutputLayer(w))])
    torch.testing.assert_close(found, (one @ v.mT - 2 * other @ w.mT).exp().sum(-1))


def test_logits_of_several_chunks_are_made_once_more_where_a_gradient_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", 1)
    monkeypatch.setattr(output_layer, "ROWS", 3)
    g = torch.Generator().manual_seed(0)
    weight, y = torch.randn(11, 4, generator=g).double(), torch.arange(7)
    h = torch.randn(7, 4, generator=g).double().requires_grad_()
    made: list[int] = []

    def fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        made.append(len(logits))
        return F.cross_entropy(logits, labels, reduction="none")

    losses = output_layer.each(fn, [(h, OutputLayer(weight))], [y])
    assert made == [3, 3, 1]
    (slope,) = torch.autograd.grad(losses.sum(), h)
    assert sorted(made[3:]) == [1, 3, 3], "what was kept need not be made again"
    (plain,) = torch.autograd.grad(F.cross_entropy(h @ weight.mT, y, reduction="sum"), h)
    torch.testing.assert_close(slope, plain)
    with torch.no_grad():
        output_layer.each(fn, [(h, OutputLayer(weight))], [y])
    assert made[6:] == [3, 3, 1]
