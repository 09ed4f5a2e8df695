"""The page on adding a method: its code is taken from there as it stands, installed as another package's, and run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from paths import ROOT
from weft.adaptation.optim import Optim
from weft.federation.method import Method
from weft.methods import registry

PAGE = ROOT / "docs" / "adding-a-method.md"
SMALL = {"rank": 2, "epochs": 2, "batch": 3, "optim": Optim("sgd", lr=0.5, schedule="constant")}


def code() -> str:
    """The page's one block of Python."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def entry_points() -> str:
    """What the page says to write into ``pyproject.toml``."""
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(table)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's file in a package of its own, with the entry point that the page gives."""
    import tomllib

    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "fedprox.py").write_text(code(), encoding="utf-8")
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = []
    for group, points in tomllib.loads(entry_points())["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "my_package"]:
        del sys.modules[name]


def trained(method: Method) -> dict[str, Tensor]:
    """The server's values after two rounds."""
    run = tiny.federation(method).run()
    return {n: v for n, v in run.server.shared.items() if isinstance(v, Tensor)}


def drift(mu: float) -> list[float]:
    """How far each client with rows is from what it received after one turn of small steps, as a norm over its tensors."""
    slow = {"epochs": 10, "optim": Optim("sgd", lr=0.1, schedule="constant")}
    run = tiny.federation(registry.build("fedprox", SMALL | slow | {"mu": mu}))
    pack = run.pack()
    received = run.server.shared
    found = []
    for update in run.method.train(pack):
        assert update.tensors
        gaps = [(v - received[n]).square().sum() for n, v in update.tensors.items()]  # type: ignore[operator]
        found.append(float(torch.stack(gaps).sum().sqrt()))
    assert len(found) == sum(size > 0 for size in tiny.SIZES)
    return found


def test_the_example_is_under_forty_lines_of_code() -> None:
    assert len([line for line in code().splitlines() if line.strip()]) < 40


def test_the_example_is_listed_with_its_setting_documented() -> None:
    assert registry.infos()["fedprox"].paper == "Li et al., MLSys 2020"
    mu = next(p for p in registry.parameters(registry.load("fedprox")) if p.name == "mu")
    assert (mu.type, mu.default) == ("float", 0.01)
    assert mu.doc.startswith("μ, ")


def test_fedprox_with_mu_0_is_fedit_bit_for_bit() -> None:
    plain = trained(registry.build("fedit", SMALL))
    same = trained(registry.build("fedprox", SMALL | {"mu": 0.0, "at": "q"}))
    assert plain.keys() == same.keys()
    assert all(torch.equal(plain[n], same[n]) for n in plain)


def test_a_larger_mu_keeps_every_client_nearer_to_what_it_received() -> None:
    loose, medium, tight = drift(0.0), drift(0.1), drift(1.0)
    assert all(t < m < v for t, m, v in zip(tight, medium, loose, strict=True))


def test_the_proximal_gradient_is_mu_times_the_distance() -> None:
    """One client, two plain SGD steps with lr η on the same batch: w2 = w1 - η (∇F(w1) + μ (w1 - w0))."""
    lr, mu = 0.5, 0.7
    settings = {"rank": 2, "batch": 100, "optim": Optim("sgd", lr=lr, schedule="constant")}

    def after(steps: int, mu: float) -> dict[str, Tensor]:
        run = tiny.federation(registry.build("fedprox", settings | {"mu": mu, "steps": steps}), sizes=(9,))
        pack = run.pack()
        (update,) = run.method.train(pack)
        return {n: v for n, v in update.tensors.items() if isinstance(v, Tensor)}

    start = tiny.federation(registry.build("fedprox", settings), sizes=(9,)).server.shared
    once, plain, pulled = after(1, mu), after(2, 0.0), after(2, mu)
    for name, value in pulled.items():
        w0 = start[name]
        assert isinstance(w0, Tensor)
        torch.testing.assert_close(value, plain[name] - lr * mu * (once[name] - w0), rtol=0, atol=1e-12)


def test_unequal_clients_in_one_pack_are_pulled_as_if_alone() -> None:
    method = registry.build("fedprox", SMALL | {"mu": 0.5})
    together = {u.client.id: u.tensors for u in method.train(tiny.federation(method).pack())}
    for i, size in enumerate(tiny.SIZES):
        if not size:
            continue
        (alone,) = method.train(tiny.federation(method).pack([i]))
        for name, value in alone.tensors.items():
            torch.testing.assert_close(together[alone.client.id][name], value, rtol=0, atol=1e-12)
