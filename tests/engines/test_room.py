"""A run that trains whole weights is refused before it begins where one client does not fit, with what would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import command_line
import tiny
import toy_runs
from command_line import refused, weft
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.engines import packing, room
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.methods import FedAvg, FedIT
from weft.runs.suited import suited

Capture = pytest.CaptureFixture[str]
SGD = FedAvg(batch=4)
ADAM = replace(SGD, optim=Optim("adamw"))


def bench_of(precision: str = "float32") -> Bench:
    return tiny.federation(SGD, precision=precision).bench


def need(method: Method, bench: Bench) -> int:
    guess = packing.of_adaptation(bench, method, adapted(method, bench, ClientInfo("")))
    return guess.total(1) - guess.fixed


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(packing, "available_memory", lambda device: free)


def test_the_worst_moment_of_a_client_and_its_server_counts() -> None:
    guess = packing.Estimate(fixed=1000, trained=10, kept=5, available=0, reused=False, held=0, apart=False)
    assert guess.total(1) == 1000 + 4 * 10 + 5 * 10  # the round is closed
    assert replace(guess, held=2).total(1) == 1000 + 40 + 30 + 30  # an update is written beside moments
    assert replace(guess, held=2, kept=50).total(1) == 1000 + 40 + 30 + 20 + 50  # a pass
    assert replace(guess, held=2, kept=50, apart=True).total(1) == 1000 + 30 + 20 + 50  # the server is elsewhere
    assert guess.server == 90


def test_the_optimizer_says_what_it_keeps_and_moments_are_as_many() -> None:
    for settings, copies in (
        (Optim("sgd"), 0),
        (Optim("sgd", momentum=0.9), 1),
        (Optim("adamw"), 2),
        (Optim("sgd", prox=0.1), 1),
    ):
        assert settings.copies == copies
        run = tiny.federation(replace(SGD, optim=settings))
        pack = run.pack([0])
        optimizer = pack.optimizer("weights", settings=settings)
        batch = next(iter(pack.batches(size=4)))
        pack.step(optimizer, run.method.objective, batch)
        moved = set(optimizer.moments)
        kept = sum(len(optimizer.moments[n]) for n in moved) + len([n for n in optimizer.anchors if n in moved])
        assert kept == copies * len(moved)


def test_what_a_client_of_whole_weights_takes_follows_from_their_number_optimizer_and_precision() -> None:
    single, half = bench_of(), bench_of("bfloat16")
    numbers = sum(p.numel() for p in single.backbone.model.parameters())
    plain, moments = need(SGD, single), need(ADAM, single)
    assert plain >= 9 * 4 * numbers
    assert moments - plain >= 4 * numbers
    in_half, thin = (
        packing.of_adaptation(half, m, adapted(m, half, ClientInfo(""))).kept for m in (ADAM, replace(ADAM, tune=Tune("bias")))
    )
    weights = numbers - 3 * 32 - 3
    assert in_half - thin == 2 * (weights + 99), "a pass keeps them in the precision of the backbone"


@pytest.mark.parametrize("method", [SGD, ADAM])
def test_who_does_not_fit_is_told_how_much_it_takes_and_what_to_do(method: FedAvg, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of()
    enough = need(method, bench)
    with_free(monkeypatch, enough)
    suited(method, bench)
    with_free(monkeypatch, enough - 1)
    with pytest.raises(UserError) as said:
        suited(method, bench)
    words = str(said.value)
    assert words.startswith("fedavg trains whole weights, 32,163 numbers a client: with gradients")
    assert ("2 times as many that adamw keeps" in words) == (method is ADAM)
    assert ("--set method.optim.kind=sgd" in words) == (method is ADAM)
    assert "take a smaller --model, or tune LoRA instead (--set method.tune.kind=lora)." in words
    assert words.count("\n") == 0
    suited(replace(method, tune=Tune("lora")), bench)
    suited(FedIT(rank=2), bench)


@pytest.mark.parametrize("more", [True, False])
def test_fewer_rows_are_advised_where_a_pass_keeps_more_than_the_weights_take(
    more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of()
    adaptation = adapted(SGD, bench, ClientInfo(""))
    guess = packing.of_adaptation(bench, SGD, adaptation)
    guess = replace(guess, kept=guess.trained + (1 if more else -1), available=0)
    monkeypatch.setattr(packing, "of_adaptation", lambda *_: guess)
    with pytest.raises(UserError) as said:
        room.check(SGD, bench, adaptation)
    assert ("take fewer or shorter rows at once" in str(said.value)) == more


def test_servers_beside_each_other_count() -> None:
    bench = bench_of()
    adaptation = adapted(SGD, bench, ClientInfo(""))
    guess = packing.of_adaptation(bench, SGD, adaptation)
    enough = need(SGD, bench) + 2 * packing.SERVER * guess.trained
    with pytest.MonkeyPatch.context() as patch:
        with_free(patch, enough)
        room.check(SGD, bench, adaptation, servers=3)
        with pytest.raises(UserError, match="leave the baseline local out"):
            room.check(SGD, bench, adaptation, servers=4)


def test_beside_a_gpu_the_server_has_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of()
    adaptation = adapted(SGD, bench, ClientInfo(""))
    made = packing.of_adaptation(bench, SGD, adaptation)
    guess = replace(made, reused=True, apart=True, available=10 * made.trained + made.kept)
    monkeypatch.setattr(packing, "of_adaptation", lambda *_: guess)
    free: dict[str, int] = {"cpu": guess.server}
    monkeypatch.setattr(packing, "available_memory", lambda device: free[device.type])
    room.check(SGD, bench, adaptation)
    free["cpu"] -= 1
    with pytest.raises(UserError, match="of main memory for the server"):
        room.check(SGD, bench, adaptation)
    guess = replace(guess, available=guess.trained)
    with pytest.raises(UserError, match="of the memory of cpu"):
        room.check(SGD, bench, adaptation)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.mark.usefixtures("light")
def test_a_dry_run_shows_what_is_needed_and_it_and_a_run_refuse_what_does_not_fit(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line: list[Any] = command_line.small(tmp_path, "--method", "fedavg", "--set", "method.batch=4")
    got = weft(capsys, *line, "--dry-run", "--pack", "4")
    assert got.code == 0
    assert "with 1 client in a pass" in " ".join(got.out.split())
    assert "The server and messages take up to" in " ".join(got.out.split())
    monkeypatch.setattr(packing, "available_memory", lambda device: 1000)
    refused(weft(capsys, *line, "--quiet", "--dry-run"), "1.00 kB are free")
    refused(weft(capsys, *line, "--quiet"), "take a smaller --model")
    assert not list((tmp_path / "runs").glob("*/rounds.jsonl"))
