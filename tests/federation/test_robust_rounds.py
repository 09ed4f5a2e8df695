"""Robust rules in whole rounds: what an attacker achieves, what is refused, and what stays exactly as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
import toy_runs
import weft
from every_method import SPLIT, built, some
from toy_runs import Told
from weft.aggregation.mean import WeightedMean
from weft.errors import Interrupted, UserError
from weft.experiment import resolve
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.robust_mean import RULES, Robust, Vote
from weft.federation.scope import matches
from weft.federation.server import ServerState
from weft.methods import FedIT, FedRA, registry
from weft.tensors.lowrank import LowRank
from weft.testing.strangers import by_messages

IN_PART = tuple(s for s in sorted(registry.infos()) if registry.load(s).in_part)  # whose clients send some entries of tensors
PARTS = ("fjord", "heterofl", *IN_PART)  # or leading slices of them
SUMS = sorted(s for s in registry.infos() if registry.build(s).sums and s not in (*PARTS, *SPLIT))
OTHERS = sorted(s for s in registry.infos() if not registry.build(s).sums)
QUICK = ("fedit", "fedra", "fedsa-lora")  # everything, of several sizes, with personal values
WHOLE = [r for r in RULES if r not in ("krum", "multi-krum")]  # rules that can do with updates of different tensors
EIGHT = (9, 5, 4, 7, 3, 6, 8, 5)


def small(slug: str) -> Method:
    return replace(built(slug), batch=3, steps=None, epochs=1.0)


def play(method: Method, robust: Robust, **settings: Any) -> tiny.Federation:
    run = tiny.federation(method, **settings)
    run.server.robust = robust
    return run.run()


def shared(run: tiny.Federation) -> dict[str, Tensor]:
    return {n: v.dense() if isinstance(v, LowRank) else v for n, v in run.server.shared.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def bent(run: tiny.Federation, bad: Iterable[str], how: Callable[[Tensor, Tensor], Tensor]) -> tiny.Federation:
    """The same run in which some clients send ``how(trained, held)`` instead of what they trained."""
    pack_update = run.simulation.setup.exchange.pack_update
    chosen = set(bad)

    def lie(server: ServerState, update: Update, turn: Any, phase: Any = "train") -> Any:
        if update.client.id in chosen:
            update = replace(update, tensors={n: how(v, turn.held[n]) for n, v in update.tensors.items()})
        return pack_update(server, update, turn, phase)

    run.simulation.setup.exchange.pack_update = lie  # type: ignore[method-assign]
    return run


# a mean that is not written ---------------------------------------------------------------------------------------------


def test_a_rule_stands_in_for_the_mean_of_what_the_server_does_not_hold_too() -> None:
    run = tiny.federation(FedIT(rank=2), sizes=(3, 2, 4))
    values = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4]), torch.tensor([-30.0, 40.0])]
    before = {n: v.clone() for n, v in shared(run).items()}

    def of(robust: Robust, **more: Any) -> Tensor:
        run.server.robust = robust
        made = [
            by_hand.update(run, k, {"slope/x": v, "aside": v}, w) for k, (v, w) in enumerate(zip(values, (3, 2, 4), strict=True))
        ]
        found = run.server.average(made, only="slope", **more)
        assert found.keys() == {"slope/x"}
        return found["slope/x"]

    torch.testing.assert_close(of(Robust()), (3 * values[0] + 2 * values[1] + 4 * values[2]) / 9)
    torch.testing.assert_close(of(Robust(), weight=lambda update: 1.0), sum(values, torch.zeros(2)) / 3)
    assert torch.equal(of(Robust("median")), torch.tensor([0.3, 4.0]))
    clipped = (3 * values[0] + 2 * values[1] + 4 * values[2] / 10) / 9  # lengths 5, ½ and 50, counted from 0
    torch.testing.assert_close(of(Robust("clip", norm=5.0)), clipped)
    torch.testing.assert_close(of(Robust("clip")), clipped)
    assert equal(shared(run), before)


# nothing changes for those who trust --------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", some(SUMS, QUICK))
def test_without_a_rule_and_with_a_wide_clip_the_numbers_are_those_of_the_plain_mean_bit_for_bit(
    slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"participation": 0.7, "dropout": 0.1, "rounds": 3}
    found = [shared(play(small(slug), rule, **settings)) for rule in (Robust(), Robust("clip", norm=1e9))]

    def plain(
        self: ServerState,
        updates: Iterable[Update],
        only: str | Iterable[str] = "*",
        absent: str = "kept",
    ) -> None:
        patterns = (only,) if isinstance(only, str) else tuple(only)
        total, held = WeightedMean(), {n: v for n, v in self.shared.items() if isinstance(v, Tensor)}
        for u in updates:
            tensors = {n: v for n, v in u.tensors.items() if isinstance(v, Tensor) and matches(n, patterns)}
            tensors = held | tensors if absent == "unmoved" else tensors
            total.add(tensors, 1.0 if self.weighting == "uniform" else u.weight)
        for name, value in total.result().items():
            self.write(name, value)

    monkeypatch.setattr(ServerState, "mean", plain)
    expected = shared(play(small(slug), Robust(), **settings))
    assert all(equal(f, expected) for f in found)


@pytest.mark.parametrize("slug", [s for s in PARTS if s != "prunefl"])  # whose clients hold the same entries
def test_a_rule_that_compares_whole_tensors_is_refused_where_clients_send_parts_of_them(slug: str) -> None:
    with pytest.raises(UserError, match="clients of this method send parts of them"):
        play(small(slug), Robust("trimmed"), sizes=EIGHT)


@pytest.mark.parametrize("slug", some(SUMS, QUICK))
def test_trimming_nothing_off_is_the_mean_of_equal_votes(slug: str) -> None:
    even = shared(play(replace(small(slug), weighting="uniform"), Robust()))
    trimmed = shared(play(small(slug), Robust("trimmed", share=0.0)))
    for name, value in even.items():
        torch.testing.assert_close(trimmed[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("slug", "rule"),
    [
        *(pytest.param(s, "trimmed", marks=() if s in QUICK else pytest.mark.slow) for s in SUMS),
        *((s, r) for s in ("fedit", "fedra") for r in RULES[1:] if r != "trimmed"),
    ],
)
def test_every_rule_gives_the_same_in_packs_one_by_one_and_by_messages(slug: str, rule: str) -> None:
    if slug == "fedra" and rule not in WHOLE:
        with pytest.raises(UserError, match="use median or trimmed"):
            play(small(slug), Robust(rule), sizes=EIGHT)
        return
    settings: dict[str, Any] = {"sizes": EIGHT, "rounds": 2}
    before = shared(tiny.federation(small(slug), **settings))
    packed = shared(play(small(slug), Robust(rule), pack=8, **settings))
    alone = tiny.federation(small(slug), pack=1, **settings)
    alone.server.robust = Robust(rule)
    by_messages(alone)
    assert not equal(packed, before)
    for name, value in shared(alone).items():
        torch.testing.assert_close(packed[name], value, rtol=1e-8, atol=1e-8)


def test_a_run_with_a_rule_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)

    class Stop(weft.Observer):
        def round_done(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    common: dict[str, Any] = {"robust": "clip", "name": "it", "baselines": ["local"], "start_head": "probe", "probe_rounds": 2}
    whole = toy_runs.run(tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path / "cut", observer=Stop(), **common)
    again = weft.resume(tmp_path / "cut" / "it", data=toy_runs.source())
    assert [line["robust"] for line in whole.rounds] == [line["robust"] for line in again.rounds]
    assert all(line["robust"]["rule"] == "clip" and line["robust"]["limit"] > 0 for line in whole.rounds)
    assert whole.summary["headline"] == again.summary["headline"]
    assert whole.summary["baselines"]["local"]["metrics"]  # where nobody is a stranger, no rule applies


# what an attacker achieves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[1:])
def test_two_of_eight_who_send_nonsense_do_not_get_far(rule: str) -> None:
    robust = Robust(rule, share=0.25)
    method = replace(small("fedit"), weighting="uniform")
    settings: dict[str, Any] = {"sizes": EIGHT, "rounds": 1, "pack": 8}
    start, honest = shared(tiny.federation(method, **settings)), shared(play(method, robust, **settings))
    bad = ("client-0", "client-6")

    def distance(a: dict[str, Tensor]) -> float:
        return float(sum((a[n] - start[n]).square().sum() for n in a).sqrt())  # type: ignore[union-attr]

    def attacked(robust: Robust) -> tiny.Federation:
        run = bent(tiny.federation(method, **settings), bad, lambda new, held: held - 1e6 * (new - held))
        run.server.robust = robust
        return run.run()

    far, near = shared(attacked(Robust())), shared(attacked(robust))
    moved = distance(honest)
    assert moved > 0
    assert distance(far) > 1e4 * moved
    # twice: of a clip with the median norm, which two of eight do not move, that is the bound for each update and their mean
    assert 0 < distance(near) < 2 * moved


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum", "multi-krum"])
def test_a_boasted_example_count_is_worth_nothing_where_each_client_has_one_vote(rule: str) -> None:
    method, robust = small("fedit"), Robust(rule)

    def run(boast: bool) -> dict[str, Tensor]:
        federation = tiny.federation(method, sizes=EIGHT, rounds=2)
        federation.server.robust = robust
        read = federation.simulation.setup.exchange.read_update

        def boasting(*args: Any) -> Update:
            update = read(*args)
            return replace(update, weight=1e8) if boast and update.client.id == "client-2" else update

        federation.simulation.setup.exchange.read_update = boasting  # type: ignore[method-assign]
        return shared(federation.run())

    assert equal(run(True), run(False))


def test_a_client_that_sends_a_part_of_its_tensors_is_no_candidate_of_krum_and_stops_nobody() -> None:
    method = small("fedit")
    run = tiny.federation(method, sizes=EIGHT, rounds=1)
    run.server.robust = Robust("krum", share=0.2)
    pack_update = run.simulation.setup.exchange.pack_update

    def partial(server: ServerState, update: Update, turn: Any, phase: Any = "train") -> Any:
        if update.client.id == "client-4":  # nothing but one unmoved tensor: nearest to everything
            update = replace(update, tensors={n: turn.held[n] for n in sorted(update.tensors)[:1]})
        return pack_update(server, update, turn, phase)

    run.simulation.setup.exchange.pack_update = partial  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    (chosen,) = record["robust"]["chosen"]
    assert chosen != "client-4"


# too few ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "needs"), [("median", 3), ("trimmed", 3), ("krum", 5), ("multi-krum", 5)])
def test_a_round_with_too_few_updates_changes_nothing_and_says_so(rule: str, needs: int) -> None:
    told = Told()
    run = tiny.federation(small("fedit"), sizes=(4, 0, 5), rounds=1)
    run.server.robust, run.simulation.setup.observer = Robust(rule), told
    before = shared(run)
    record = run.simulation.round(0)
    assert record is not None
    assert equal(shared(run), before)
    assert f"needs at least {needs}" in record["robust"]["skipped"]
    assert [s for s in told.sentences if "nothing was aggregated" in s and s.startswith("round 1: ")]


def test_a_tensor_that_too_few_clients_sent_stays_as_it_was() -> None:
    run = tiny.federation(replace(FedRA(capacities=(1 / 3,)), batch=3), sizes=(4, 5, 6, 4, 5), rounds=1)
    run.server.robust = Robust("median")
    before, record = shared(run), run.simulation.round(0)
    assert record is not None
    blocks = run.method.allocation(run.server)  # type: ignore[attr-defined]
    held = {b: sum(b in own for own in blocks.values()) for b in range(3)}
    assert min(held.values()) < 3 <= max(held.values()), "the draw must give both cases"
    for name, value in shared(run).items():
        if name.startswith("lora/"):
            block = next(s.block for s in run.server.sites("lora") if f"/{s.name}/" in name)
            assert torch.equal(value, before[name]) == (held[block] < 3), name
    rare = [n for n in before if n.startswith("lora/") and torch.equal(before[n], run.server.shared[n])]  # type: ignore[arg-type]
    sent = [n for n in rare if held[next(s.block for s in run.server.sites("lora") if f"/{s.name}/" in n)]]
    assert record["robust"].get("unchanged", 0) == len(sent)


def test_votes_without_weight_are_as_if_absent() -> None:
    held = {"a": torch.zeros(2)}
    votes = [Vote(f"c{k}", {"a": torch.full((2,), float(k))}, 1.0) for k in range(5)]
    silent = Vote("silent", {"a": torch.full((2,), 1e9)}, 0.0)
    for rule in RULES:
        with_it, without = (Robust(rule).combine(held, [*extra, *votes]) for extra in ([silent], []))
        assert equal(with_it.tensors, without.tensors), rule
        assert with_it.remarks == without.remarks, rule
        assert Robust(rule).combine(held, []).tensors == {}


# memory -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("robust", "most"), [(Robust(), 2), (Robust("clip", norm=0.5), 2), (Robust("clip"), 6), (Robust("median"), 6)]
)
def test_only_rules_that_compare_updates_hold_them_together(robust: Robust, most: int) -> None:
    alive: list[Any] = []
    peak = 0

    def votes() -> Iterator[Vote]:
        nonlocal peak
        for k in range(6):
            tensor = torch.full((3,), float(k))
            alive.append(weakref.ref(tensor))
            yield Vote(f"c{k}", {"a": tensor}, 1.0)
            del tensor
            peak = max(peak, sum(r() is not None for r in alive))

    robust.combine({"a": torch.zeros(3)}, votes())
    assert peak <= most
    assert (peak > 2) == (most > 2)


# refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("slug", OTHERS)
def test_a_method_that_needs_each_update_by_itself_is_refused_before_anything_is_loaded(slug: str, rule: str) -> None:
    with pytest.raises(UserError, match=f"^{slug} needs each update by itself") as refusal:
        resolve({"method": slug, "robust": rule})
    assert "\n" not in str(refusal.value)
    resolve({"method": slug})


@pytest.mark.parametrize("slug", IN_PART)
def test_a_method_whose_clients_send_some_entries_is_refused_before_anything_is_loaded(slug: str) -> None:
    for rule in ("median", "trimmed", "krum", "multi-krum"):
        with pytest.raises(UserError, match=f'robust = "{rule}" compares whole tensors, and clients of {slug} send parts'):
            resolve({"method": slug, "robust": rule, "clients": 20})
    resolve({"method": slug, "robust": "clip", "clients": 20})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"robust": "krumm"}, r'\(did you mean "krum"\?\)'),
        ({"robust": "krum", "clients": 4}, "takes 1 of 4 for bad and needs at least 5, and 4 take part in a round"),
        ({"robust": "multi-krum", "clients": 20, "participation": 0.1}, "and 2 take part in a round"),
        ({"robust": "median", "clients": 2}, "needs at least 3"),
        ({"robust": "trimmed", "clients": 2}, "needs at least 3"),
        ({"robust": "median", "robust_norm": 1.0}, "goes with robust = \"clip\""),
        ({"robust_norm": 1.0}, "goes with robust = \"clip\""),
        ({"robust": "clip", "robust_norm": 0.0}, "robust_norm is 0.0, but must be more than 0"),
        ({"robust": "median", "robust_share": 0.5}, "robust_share is 0.5, but must be less than 0.5"),
        ({"max_weight": 0}, "max_weight is 0, but must be at least 1"),
        ({"max_bytes": 0}, "max_bytes is 0, but must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_one_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve(settings)


def test_the_baselines_without_strangers_need_no_cohort() -> None:
    resolve({"robust": "krum", "clients": 2, "baseline": "local"})
    with pytest.raises(UserError, match="needs at least"):
        resolve({"robust": "krum", "clients": 2, "baseline": "probe"})


class ByHand(FedIT):
    """Says that sums are enough, and they are, but takes its mean by itself."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        total = WeightedMean()
        for u in updates:
            total.add({n: v for n, v in u.tensors.items() if isinstance(v, Tensor)}, u.weight)
        for name, value in total.result().items():
            server.write(name, value)


def test_a_method_that_takes_its_mean_by_itself_is_refused_instead_of_left_unprotected() -> None:
    play(ByHand(), Robust())
    with pytest.raises(UserError, match="does not aggregate with the server's mean"):
        play(ByHand(), Robust("median"))


# limits -------------------------------------------------------------------------------------------------------------------


def claiming(weight: str, **changes: Any) -> tuple[tiny.Federation, dict[str, Any]]:
    """A round in which one client writes another example count into its message."""
    from weft.federation.exchange import Limits

    told = Told()
    run = tiny.federation(small("fedit"), rounds=1, **changes)
    run.simulation.setup.exchange.limits, run.simulation.setup.observer = Limits(max_weight=1000), told
    put = run.simulation.setup.spool.put

    def written(client: str, data: bytes) -> None:
        if client == "client-3":
            length = int.from_bytes(data[6:10], "little")
            head = data[10 : 10 + length].replace(b'"weight":7.0', f'"weight":{weight}'.encode())
            assert weight == "7.0" or head != data[10 : 10 + length]
            data = data[:6] + len(head).to_bytes(4, "little") + head + data[10 + length :]
        put(client, data)

    run.simulation.setup.spool.put = written  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    return run, record


def without_client_3() -> dict[str, Tensor]:
    run = tiny.federation(small("fedit"), rounds=1)
    get = run.simulation.setup.spool.get
    run.simulation.setup.spool.get = lambda client: None if client == "client-3" else get(client)  # type: ignore[method-assign]
    return shared(run.run())


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("-7.0", "finite number from 0"),
        ("-1e-300", "finite number from 0"),
        ("1001", "claims weight 1001; at most 1000"),
        ("1e300", "at most 1000"),
        ("1" + "0" * 400, "at most 1000"),
        ("1e999", "finite number from 0"),
        ("NaN", "strict JSON"),
        ("Infinity", "strict JSON"),
        ("true", "finite number from 0"),
        ('"7"', "finite number from 0"),
        ("null", "finite number from 0"),
        ("[7]", "finite number from 0"),
    ],
)
def test_an_example_count_that_cannot_be_is_refused_and_the_round_is_that_of_the_others(weight: str, says: str) -> None:
    run, record = claiming(weight)
    assert list(record["refused"]) == ["client-3"]
    assert says in record["refused"]["client-3"]
    assert equal(shared(run), without_client_3())


@pytest.mark.parametrize("weight", ["0", "0.0", "-0.0"])
def test_an_example_count_of_zero_is_no_offence_and_has_no_say(weight: str) -> None:
    run, record = claiming(weight)
    assert record["refused"] == {}
    assert equal(shared(run), without_client_3())


def test_a_count_that_is_believed_counts() -> None:
    run, record = claiming("1000")
    assert record["refused"] == {}
    assert not equal(shared(run), shared(claiming("7.0")[0]))


def test_limits_reach_the_wire_from_the_settings_and_name_what_they_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    told = Told()
    common: dict[str, Any] = {"rounds": 1, "observer": told, "baselines": ["central"]}
    light = toy_runs.run(tmp_path / "a", max_weight=3, **common)
    assert sorted(light.rounds[0]["refused"]) == light.rounds[0]["cohort"]
    assert all("at most 3 is allowed" in s for s in light.rounds[0]["refused"].values())
    # all rows in one place are no stranger's claim
    assert light.summary["baselines"]["central"]["metrics"] != light.summary["metrics"]
    short = toy_runs.run(tmp_path / "b", max_bytes=2000, **common)
    assert all("at most 2000 are allowed" in s for s in short.rounds[0]["refused"].values())
    assert sorted(short.rounds[0]["refused"]) == short.rounds[0]["cohort"]
