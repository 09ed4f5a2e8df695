"""Methods of low-rank updates on language models: in packs and alone, what the server learns, what is written, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import by_hand
import cohorts
import tiny
import toy_runs
from weft.errors import UserError
from weft.federation import generating
from weft.methods import registry
from weft.tasks.generation_settings import Decoding
from weft.testing import plays
from weft.testing.compare import assert_same, state

METHODS: dict[str, dict[str, Any]] = {
    "fedex-lora": {},
    "lora-fair": {},
    "frlora": {},
    "lora-a2": {},
    "pf2lora": {"order": "first"},
    "fedoa": {},
    "fedalt": {},
}
ROUNDS = ((0, 1, 3), (0, 2, 3))
"""Client 1 is away in the second round, client 2 comes to it for the first time."""


@pytest.fixture(scope="module", params=METHODS)
def runs(request: pytest.FixtureRequest) -> dict[int, tiny.Federation]:
    """The same two rounds in packs of 4 and one by one."""
    found = {}
    for k in (4, 1):
        method = plays.steady(registry.build(request.param, METHODS[request.param] | {"optim.lr": 0.03}))
        run = tiny.federation(method, "llama", sizes=(7, 5, 6, 4), task="generation", pack=k)
        found[k] = run
        for t, present in enumerate(ROUNDS):
            assert cohorts.play(run, t, present)["loss"] > 0
    return found


def test_packed_and_one_at_a_time_leave_the_same(runs: dict[int, tiny.Federation]) -> None:
    assert_same(state(runs[4]), state(runs[1]), 1e-9)


def test_the_server_learns(runs: dict[int, tiny.Federation]) -> None:
    run = runs[4]
    fresh = tiny.federation(run.method, "llama", sizes=(7, 5, 6, 4), task="generation")
    before, after = by_hand.known(fresh), by_hand.known(run)
    moved = [n for n, v in after.items() if n not in before or not torch.equal(v, before[n])]
    assert any(n.split("/")[-1] in ("A", "B", "V", "U", "delta") for n in moved)
    assert all(bool(torch.isfinite(v).all()) for v in after.values())


def test_it_writes_texts_and_others_than_the_backbone_does(runs: dict[int, tiny.Federation]) -> None:
    run, rows = runs[4], [np.arange(12)] * 4
    way = Decoding(new_tokens=8)
    for client in run.clients:
        run.simulation.setup.store.load(client)
    view = run.method.views[0]
    forward = lambda pack, batch: run.method.forward(pack, batch, view)  # noqa: E731
    pack = run.pack()
    run.method.personalise(pack)
    texts = generating.write(pack, forward, rows, way)
    alone = []
    for k in range(4):
        one = run.pack([k])
        run.method.personalise(one)
        alone += generating.write(one, forward, rows[:1], way)
    assert texts == alone
    fresh = tiny.federation(run.method, "llama", sizes=(7, 5, 6, 4), task="generation")
    assert texts[0] != generating.write(fresh.pack([0]), forward, rows[:1], way)[0]


def test_what_goes_by_a_head_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="has no head to put an adapter beside: choose another --model"):
        tiny.federation(registry.build("pfedlora", {}), "llama", task="generation")


@pytest.mark.parametrize("slug", METHODS)
def test_a_whole_run_scores_writes_and_leaves_a_model_that_answers(slug: str, tmp_path: Path) -> None:
    """What ``weft run SLUG --task generation`` does."""
    rng = np.random.default_rng(0)
    words = [[f"w{i}" for i in rng.integers(0, 12, 3)] for _ in range(60)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": " ".join(w), "output": f"{w[-1]} {w[-1]}"}) + "\n" for w in words))
    run = toy_runs.run(
        tmp_path / "runs",
        method=slug,
        model=tiny.folder("llama", "lm", num_hidden_layers=2),
        data=str(data),
        task="generation",
        template="plain",
        samples=4,
        new_tokens=4,
        participation=0.7,
        parameters=METHODS[slug] | {"steps": 2, "batch": 4},
    )
    assert run.finished
    assert set(run.metrics) >= {"perplexity", "rouge_l", "loss"}
    lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert lines
    assert {line["view"] for line in lines} <= set(registry.infos()[slug].views)
    if run.adapter is not None:
        assert len(run.generate(["w1 w2 w3"], new_tokens=3)) == 1
    else:
        assert "refused" in run.summary["adapter"]
