"""What a rule adds to the gradients of a step is of each client's own."""

from __future__ import annotations

import torch

import tiny
from weft.adaptation.optim import Optim
from weft.federation.guidance import Guidance
from weft.methods import FedIT, FedSALoRA


def test_steps_of_a_client_that_was_told_no_centre_are_along_its_own_gradient() -> None:
    """Others of its pack go along g(w) - g(w₀) + centre, and along g(w) + centre where the objective does not see a tensor."""
    draw = torch.Generator().manual_seed(0)
    centre, begun, there = (torch.randn(2, 3, generator=draw) for _ in range(3))
    has = torch.tensor([True, False])
    guide = Guidance(centre={"a": (centre, has), "unseen": (centre, has)}, begun={"a": begun, "unseen": begun})
    asked = []

    def slopes(at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        asked.append(at)
        return {"a": there}

    shifts = guide.shifts(slopes)  # type: ignore[arg-type]
    assert asked == [{"a": begun, "unseen": begun}]
    assert torch.equal(shifts["a"], torch.stack([centre[0] - there[0], torch.zeros(3)]))
    assert torch.equal(shifts["unseen"], torch.stack([centre[0], torch.zeros(3)]))
    assert Guidance().shifts(slopes) == {}  # type: ignore[arg-type]
    assert len(asked) == 1


def test_where_a_turn_began_is_where_its_first_optimizer_did() -> None:
    """A turn may have several, one after the other."""
    run = tiny.federation(FedIT(rank=2, batch=4))
    pack, name = run.pack([0]), "head/classifier/weight"
    start = pack.tensors[name].detach().clone()
    pack.guidance.centre = {name: (torch.ones_like(start), torch.tensor([True]))}
    for _ in range(2):
        optimizer = pack.optimizer("*", settings=Optim("sgd", lr=0.1))
        pack.step(optimizer, run.method.objective, next(iter(pack.batches(size=4))))
        assert torch.equal(pack.guidance.begun[name], start)
        assert not torch.equal(pack.tensors[name], start)


def test_the_pull_of_fedprox_is_towards_what_was_received_and_leaves_personal_tensors_alone() -> None:
    pack = tiny.federation(FedSALoRA(rank=2)).pack([0])
    optimizer = pack.optimizer("*", settings=Optim("sgd", prox=0.1))
    assert set(optimizer.anchors) == {n for n in optimizer.params if n.endswith("/A")} != set(optimizer.params)
