"""A run that begins from a LoRA adapter begins as the PEFT model with it, whoever wrote it, wherever its clients are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import peft_adapters
import tiny
import toy_runs
import weft
from command_line import refused, small, table
from command_line import weft as command
from exporting import FAST, RUN_CLOSE, exported, trained
from machines import CLASSES, Machines, coordinate
from ray_runs import saved
from toy_runs import Dies, Killed, Told, kill_at
from weft import experiment as settings
from weft.communication.codecs import codec
from weft.communication.envelope import unwrap, wrap
from weft.communication.ledger import Ledger
from weft.communication.strict import Refused
from weft.communication.wire import Header, encode
from weft.engines.observer import Observer
from weft.engines.scattered import Workers
from weft.errors import UserError
from weft.export import peft_adapter
from weft.export.about import About
from weft.federation.exchange import START
from weft.federation.method import Method
from weft.methods import registry
from weft.methods.reparameterized.fedit import FedIT
from weft.playing import from_adapter
from weft.runs import baselines
from weft.runs.checkpoint import Checkpoint, digest
from weft.sites import ray_simulation, ray_workers
from weft.sites.flower import environment
from weft.sites.reasons import Reason
from weft.sites.terms import Terms
from weft.testing.compare import assert_same
from weft.testing.sites import remote
from weft.testing.workers import Queue

ODD: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 3,
    "use_rslora": True,
    "rank_pattern": {"layer.1.attention.self.query": 1, "layer.2.attention.self.value": 4},
    "alpha_pattern": {"value": 5},
}
LORA = {"tune.kind": "lora", "tune.rank": 4, "tune.at": "q,v"}
RECEIVED: dict[str, dict[str, Any]] = {
    "fedit": {"rank": 5, "alpha": 7.0, "sites": "q,v"},
    "fedpetuning": {},
    "ffa-lora": {},
    "fedex-lora": {},
    "lora-fair": {"sites": "q,v"},
    "rolora": {},
    "lora-a2": {},
    "fedra": {"sites": "q,v"},
    "fjord": {},
    "heterofl": {},
    "flexlora": {"mix": "none"},
    "pf2lora": {},
    "feddpa": {},
    "fedoa": {},
    "fedavg": LORA,
    "diana": {},
}
"""Methods whose LoRA clients are sent, with the settings under which it is at the adapter's sites and large enough."""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return peft_adapters.saved(tmp_path / "adapter", 3, **ODD)


def values(folder: Path, method: Method, precision: str = "float32", start_head: str = "auto") -> tuple[Any, Any, list[str]]:
    """Start values for a method on the tiny backbone, what is said of them, and what was said aloud."""
    told = Told()
    bench = tiny.federation(method, "bert", precision=precision).bench
    tensors, about = from_adapter.start_values(peft_adapter.load(folder), method, bench, start_head, told)
    return tensors, about, told.sentences


# start values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", RECEIVED)
def test_before_the_first_round_the_model_is_that_of_peft(slug: str, adapter: Path) -> None:
    method = registry.build(slug, RECEIVED[slug])
    tensors, _, _ = values(adapter, method)
    run = tiny.federation(method, "bert", precision="float32", start=tensors)
    table, b = run.bench.table, run.bench.backbone
    expected = peft_adapters.logits(peft_adapters.loaded(adapter), table.collate(np.arange(len(table))))
    torch.testing.assert_close(run.global_logits(), expected, **RUN_CLOSE)
    plain = tiny.federation(method, "bert", precision="float32")
    assert not torch.allclose(plain.global_logits(), expected, atol=0.05)
    assert b.heads


def test_what_a_client_enters_its_first_round_with_is_that_model_too(adapter: Path) -> None:
    method = FedIT(rank=4, sites="q,v")
    run = tiny.federation(method, "bert", precision="float32", start=values(adapter, method)[0])
    rows = [np.arange(6)] * len(run.clients)
    expected = peft_adapters.logits(peft_adapters.loaded(adapter), run.bench.table.collate(np.arange(6)))
    for logits in run.pack().predict(lambda p, b: method.forward(p, b, "global"), rows):
        torch.testing.assert_close(logits, expected, **RUN_CLOSE)


def test_ranks_that_the_adapter_has_not_are_the_usual_draw_with_a_zero_b(adapter: Path) -> None:
    method = FedIT(rank=5, alpha=7.0, sites="q,v")
    tensors, about, _ = values(adapter, method, "float64")
    drawn = tiny.federation(method, "bert").server.shared
    dense = peft_adapters.deltas(peft_adapters.loaded(adapter))
    assert about["modules"] == len(dense) == 6
    ranks = set()
    for module, delta in dense.items():
        a, b = tensors[f"lora/{module}/A"], tensors[f"lora/{module}/B"]
        rank = 1 if "1.attention.self.query" in module else 4 if "2.attention.self.value" in module else 2
        ranks.add(rank)
        assert a.dtype == torch.float64
        assert torch.equal(a[rank:], drawn[f"lora/{module}/A"][rank:])
        assert not b[:, rank:].any()
        torch.testing.assert_close(7.0 / 5 * b @ a, delta, rtol=0.0, atol=1e-12)
    assert ranks == {1, 2, 4}


def test_sites_that_the_adapter_has_nothing_at_begin_as_usual(tmp_path: Path) -> None:
    folder = peft_adapters.saved(tmp_path / "a", 1, target_modules=["query"], layers_to_transform=[1])
    tensors, about, said = values(folder, FedIT(rank=2, sites="q,v"))
    assert {n for n in tensors if n.startswith("lora")} == {f"lora/bert.encoder.layer.1.attention.self.query/{r}" for r in "AB"}
    assert about["modules"] == 1
    assert any("LoRA of 1 module of 6" in s and "the others begin at 0" in s for s in said)


def test_an_adapter_that_weft_wrote_begins_a_run_with_its_logits(tmp_path: Path) -> None:
    first = trained(FedIT(rank=2, alpha=6.0, sites="q,v", batch=4, optim=FAST), rounds=2)
    exported(first, tmp_path)
    method = FedIT(rank=3, sites="q,v,k")
    tensors, about, _ = values(tmp_path, method)
    assert about["head"]
    again = tiny.federation(method, "bert", precision="float32", start=tensors)
    torch.testing.assert_close(again.global_logits(), first.global_logits(), **RUN_CLOSE)


def test_an_adapter_of_a_language_model_begins_one(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny.folder("llama", "lm"), dtype=torch.float64)

    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3)
    model.save_pretrained(str(tmp_path / "a"))
    method = FedIT(rank=3, sites="q,v")
    run = tiny.federation(method, "llama", task="generation")
    start, about = from_adapter.start_values(peft_adapter.load(tmp_path / "a"), method, run.bench, "auto", Observer())
    assert (about["modules"], about["head"]) == (6, False)
    run = tiny.federation(method, "llama", task="generation", start=start)
    again = PeftModel.from_pretrained(base(), str(tmp_path / "a")).eval()
    inputs = run.bench.table.collate(np.arange(len(run.bench.table)))
    expected = peft_adapters.logits(again, inputs)[run.bench.table.places(np.arange(len(run.bench.table)))]  # type: ignore[union-attr]
    found = run.global_logits(dtype=torch.float64)
    torch.testing.assert_close(found, expected.to(found), rtol=0.0, atol=1e-9)


def test_a_head_of_other_classes_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    folder = peft_adapters.saved(tmp_path / "a", 1, classes=5)
    tensors, about, said = values(folder, FedIT(rank=2, sites="q,v"))
    assert not about["head"]
    assert not any(n.startswith("head") for n in tensors)
    assert any("not of the run's shape" in s for s in said)
    exported(trained(FedIT(rank=2, sites="q,v", batch=4), rounds=1), _new(tmp_path / "b"))
    file = tmp_path / "b" / "weft.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"classes": about["classes"][::-1]}))
    assert any("another order" in s for s in values(tmp_path / "b", FedIT(rank=2, sites="q,v"))[2])


def test_the_head_is_random_where_that_was_asked_for(adapter: Path) -> None:
    for start_head in ("random", "probe"):
        tensors, about, _ = values(adapter, FedIT(rank=4, sites="q,v"), start_head=start_head)
        assert not about["head"]
        assert not any(n.startswith("head") for n in tensors)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


# refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "parameters", "words"),
    [
        ("fedit", {"rank": 2, "sites": "q,v"}, "weft merge .* --rank 2"),
        ("fedit", {"rank": 8, "sites": "q"}, "has LoRA at bert.encoder.layer.0.attention.self.value"),
        ("flora", {}, "no LoRA that clients are sent"),
        ("frlora", {"rank": 4}, "no LoRA that clients are sent"),
        ("fedalt", {}, "no LoRA that clients are sent"),
        ("pfedlora", {}, "no LoRA that clients are sent"),
        ("fedkseed", {}, "no LoRA that clients are sent"),
        ("fedbf", {}, "no LoRA that clients are sent"),
        ("flexlora", {}, "give all clients the same rank"),
    ],
)
def test_methods_that_can_not_begin_from_it_are_refused(
    slug: str, parameters: dict[str, Any], words: str, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        toy_runs.run(tmp_path / "runs", method=slug, parameters=parameters, start=str(adapter))
    assert not list((tmp_path / "runs").iterdir())


def edited(folder: Path, **changes: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_adapters_that_do_not_fit_are_refused_on_the_command_line(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*more: object) -> Any:
        return command(capsys, *small(tmp_path, "--set", "method.sites=q,v", "--quiet", *more))

    refused(say("--start", tmp_path / "nowhere"), "does not exist")
    refused(say("--start", adapter, "--baseline", "probe"), "trains no LoRA")
    refused(say("--start", adapter, "--model", f"{tiny.folder('bert')},{tiny.folder('roberta')}"), "a single --model")
    refused(say("--start", adapter, "--model", tiny.folder("roberta")), "is an adapter for")
    edited(adapter, use_dora=True)
    refused(say("--start", adapter), "DoRA")
    edited(adapter, use_dora=False)
    shutil.copytree(adapter, tmp_path / "torn")
    file = tmp_path / "torn" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    refused(say("--start", tmp_path / "torn"), "is damaged")
    assert not [p for p in (tmp_path / "runs").glob("*") if any(p.iterdir())]
    dry = say("--set", "method.rank=1", "--start", adapter, "--dry-run")
    assert dry.code == 2
    assert "weft merge" in dry.err


def test_weights_of_the_base_that_an_adapter_replaces_are_refused(tmp_path: Path) -> None:
    folder = peft_adapters.saved(tmp_path / "a", 1, modules_to_save=["classifier", "word_embeddings"])
    with pytest.raises(UserError, match=r"has another bert.embeddings.word_embeddings.weight than its base"):
        values(folder, FedIT(rank=2, sites="q,v"))


def test_shapes_of_another_base_under_the_same_name_are_refused(tmp_path: Path) -> None:
    folder = peft_adapters.saved(tmp_path / "a", 1)
    edited(folder, base_model_name_or_path="some/where/" + Path(tiny.folder("bert")).name)
    method = FedIT(rank=2, sites="q,v")
    values(folder, method)  # the last word of the name is the same
    bench = tiny.federation(method, "bert", precision="float32").bench
    wide = peft_adapter.load(folder)
    low_rank = {n: type(v)(B=torch.cat([v.B, v.B]), A=v.A, scale=v.scale) for n, v in wide.low_rank.items()}
    odd = peft_adapter.Adapter(wide.folder, wide.config, low_rank, wide.saved, None)
    with pytest.raises(UserError, match=r"64 x 32 at .* which is 32 x 32"):
        from_adapter.start_values(odd, method, bench, "auto", Observer())


def test_clients_of_other_ranks_get_leading_slices_where_the_method_says_so(adapter: Path) -> None:
    """HeteroFL's small clients begin with the first ranks of what the server begins with."""
    method = registry.build("heterofl", {})
    run = tiny.federation(method, "bert", start=values(adapter, method, "float64")[0])
    sizes = set()
    for client in run.clients:
        info = client.info(method.info.asks)
        adaptation = method.adapt(run.bench.backbone, run.bench.task, info)
        held = run.server.held_by(info, adaptation, method.send(run.server, info))
        rank = adaptation["lora"][0].rank  # type: ignore[union-attr]
        sizes.add(rank)
        name = "lora/bert.encoder.layer.0.attention.self.query/A"
        assert torch.equal(held[name], run.server.shared[name][:rank])  # type: ignore[arg-type,index]
    assert len(sizes) > 1


# whole runs ---------------------------------------------------------------------------------------------------------------

FAIR: dict[str, Any] = {"parameters": {"sites": "q,v", "rank": 4, "batch": 4}, "recipes": False}


def test_a_run_that_learns_nothing_ends_as_the_adapter_that_it_began_from(adapter: Path, tmp_path: Path) -> None:
    parameters = {"sites": "q,v", "rank": 4, "lr": 0.0}
    run = toy_runs.run(tmp_path / "runs", parameters=parameters, start=adapter, precision="float32", recipes=False)
    texts = ["w1 w2 w3", "w40 w7", "w9 w9 w80 w12 w13"]
    table = tiny.federation(FedIT(), "bert", precision="float32").bench.backbone.tokenizer(
        texts, padding=True, truncation=True, max_length=16, return_tensors="pt", return_token_type_ids=False
    )
    expected = peft_adapters.logits(peft_adapters.loaded(adapter), dict(table))
    torch.testing.assert_close(
        weft.export.load(run.folder, device="cpu", precision="float32").logits(texts), expected, **RUN_CLOSE
    )
    assert run.adapter is not None
    torch.testing.assert_close(peft_adapters.logits(peft_adapters.loaded(run.adapter), dict(table)), expected, **RUN_CLOSE)


def test_it_is_written_into_settings_summary_and_card_and_billed_as_set_up(adapter: Path, tmp_path: Path) -> None:
    told = Told()
    run = toy_runs.run(tmp_path / "runs", start=adapter, observer=told, **FAIR)
    about = run.summary["start"]
    assert about["adapter"] == str(adapter.resolve())
    assert about["sha256"] == peft_adapter.load(adapter).sha256
    assert about["head"] is True
    assert run.summary["settings"]["start"] == {"value": str(adapter), "origin": "user"}
    assert settings.read(run.folder / "experiment.toml")["start"] == str(adapter.resolve())
    down = run.summary["bytes"]["setup"]["down"]
    numbers = 6 * (4 * 32 + 32 * 4) + 3 * 32 + 3  # both factors of six layers, and the head
    assert (down["messages"], down["payload"]) == (3, 3 * 8 * numbers)
    assert run.rounds[0]["bytes"]["setup"]["down"]["payload"] == 3 * 8 * numbers
    assert "payload" not in run.rounds[1]["bytes"].get("setup", {}).get("down", {})
    assert run.adapter is not None
    assert About.read(run.adapter).start == {n: v for n, v in about.items() if n != "stored"}
    assert f"began from the LoRA and head of an adapter (sha256 `{about['sha256']}`" in (run.adapter / "README.md").read_text()
    assert any(s.startswith("start: LoRA of 6 modules") for s in told.sentences)


def test_it_changes_what_is_learnt_and_its_file_begins_the_same_run_again(adapter: Path, tmp_path: Path) -> None:
    first = toy_runs.run(tmp_path / "runs", start=adapter, data=_table(tmp_path), **FAIR)
    assert digest(toy_runs.run(tmp_path / "plain", data=_table(tmp_path), **FAIR).folder) != digest(first.folder)
    again = weft.run(file=first.folder / "experiment.toml", runs=str(tmp_path / "again"), quiet=True)
    assert digest(again.folder) == digest(first.folder)


def _table(tmp_path: Path) -> str:
    return str(tmp_path / "rows.csv") if (tmp_path / "rows.csv").exists() else str(table(tmp_path / "rows.csv"))


@pytest.mark.parametrize("start_head", ["auto", "probe"])
def test_resumed_it_equals_a_run_that_never_stopped_even_without_the_adapter(
    start_head: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    about = FAIR | {"rounds": 3, "start_head": start_head, "probe_rounds": 2, "baselines": ["local"], "participation": 0.7}
    data = _table(tmp_path)
    steady = toy_runs.run(tmp_path / "steady", start=adapter, data=data, **about)
    for after in (0, 1):
        runs = tmp_path / f"killed{after}"
        with pytest.raises(Killed):
            toy_runs.run(runs, start=adapter, data=data, observer=Dies(after), **about)
    early = tmp_path / "early"
    with monkeypatch.context() as dying, pytest.raises(Killed):
        kill_at(dying, 12)  # before the first round is saved
        toy_runs.run(early, start=adapter, data=data, observer=Told(), **about)
    shutil.rmtree(adapter)
    for runs in (tmp_path / "killed0", tmp_path / "killed1", early):
        (folder,) = runs.iterdir()
        assert not list(folder.glob("checkpoint/state.json")) or runs != early
        assert digest(weft.resume(folder, quiet=True).folder) == digest(steady.folder)


def test_a_damaged_start_is_said_and_so_is_another_adapter_in_the_file(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "runs", start=adapter, data=_table(tmp_path), observer=Dies(), **FAIR)
    (folder,) = (tmp_path / "runs").iterdir()
    text = (folder / "experiment.toml").read_text()
    (folder / "experiment.toml").write_text(text.replace(str(adapter.resolve()), "elsewhere"))
    with pytest.raises(UserError, match='start is "elsewhere" and was'):
        weft.resume(folder, quiet=True)
    (folder / "experiment.toml").write_text(text)
    data = bytearray((folder / "start.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "start.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"start.safetensors is missing or damaged"):
        weft.resume(folder, quiet=True)


def test_baselines_begin_from_it_too_but_not_a_probe(adapter: Path, tmp_path: Path) -> None:
    parameters = {"sites": "q,v", "rank": 4, "lr": 0.0, "batch": 4}
    more: dict[str, Any] = {"start": adapter, "recipes": False, "parameters": parameters}
    run = toy_runs.run(tmp_path / "runs", baselines=["central", "probe"], probe_rounds=1, **more)
    central = Checkpoint(run.folder / "baselines" / "central" / "checkpoint").load()
    main, probe = (Checkpoint(run.folder / p / "checkpoint").load() for p in (".", "baselines/probe"))
    assert main is not None
    assert central is not None
    assert probe is not None
    starts = {n: t for n, t in main.servers[0][0].items() if n.startswith("start:")}
    assert len(starts) == 14
    assert_same(starts, {n: t for n, t in central.servers[0][0].items() if n.startswith("start:")}, 0.0)
    assert not [n for n in probe.servers[0][0] if n.startswith("start:")]


def test_a_probe_trains_the_head_of_a_run_whose_lora_is_the_adapters(adapter: Path, tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path / "runs", start=adapter, start_head="probe", probe_rounds=2, **FAIR)
    found = Checkpoint(run.folder / "checkpoint").load()
    probed = Checkpoint(run.folder / "setup" / "checkpoint").load()
    assert found is not None
    assert probed is not None
    (tensors, _), (theirs, _) = found.servers[0], probed.servers[0]
    assert torch.equal(tensors["start:head/classifier/weight"], theirs["shared:head/classifier/weight"])
    assert "start:lora/bert.encoder.layer.0.attention.self.query/A" in tensors
    assert not [n for n in theirs if n.startswith("start:")]


def test_a_recipes_probe_gives_way_to_an_adapter(adapter: Path) -> None:
    assert settings.resolve({"model": "minilm", "data": "pydocs"}).experiment.start_head == "probe"
    assert settings.resolve({"start": str(adapter)}).experiment.start_head == "auto"
    assert settings.resolve({"start": str(adapter), "start_head": "probe"}).experiment.start_head == "probe"


def test_a_finished_run_begins_another(tmp_path: Path) -> None:
    first = toy_runs.run(tmp_path / "first", precision="float32", **FAIR)
    second = toy_runs.run(tmp_path / "second", start=first.folder, precision="float32", **FAIR)
    found = Checkpoint(second.folder / "checkpoint").load()
    ended = Checkpoint(first.folder / "checkpoint").load()
    assert found is not None
    assert ended is not None
    for name, value in ended.servers[0][0].items():
        if name.startswith("shared:"):
            torch.testing.assert_close(found.servers[0][0][name.replace("shared:", "start:")], value, rtol=0.0, atol=1e-6)


# elsewhere ----------------------------------------------------------------------------------------------------------------


def test_workers_give_the_numbers_of_the_simulation(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(ray_workers.answer, ray_workers.answer, workers=Workers(2, 1 << 34))

    @contextmanager
    def begun(method: Method, directory: Any, material: Any, observer: Any) -> Iterator[Any]:
        yield ray_simulation._engine(queue, method, directory.experiment.read_text(), material)  # type: ignore[arg-type]

    monkeypatch.setattr(ray_simulation, "federation", begun)
    monkeypatch.setattr(environment, "ready_for_ray", lambda: None)
    for cached in (ray_workers._worker, ray_workers._built):
        cached.cache_clear()
    parameters = {"sites": "q,v", "rank": 4}
    here, away = (
        toy_runs.by_engine(tmp_path, "fedit", engine, 4, parameters, start=str(adapter), recipes=False)
        for engine in ("simulation", "ray")
    )
    assert queue.asked
    assert_same(saved(here), saved(away), 1e-9)
    assert [r["bytes"] for r in here.rounds] == [r["bytes"] for r in away.rounds]


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


SITES: dict[str, Any] = {"method": "fedit", "method.rank": 4, "method.sites": "q,v"}


def test_sites_are_handed_it_and_give_the_numbers_of_a_simulation(machines: Machines, adapter: Path, tmp_path: Path) -> None:
    for name in ("north", "south"):
        machines.join(name)
    done = coordinate(machines, start=str(adapter), **SITES)
    agreed = list((tmp_path / "sites" / "north").glob("*/agreed.json"))
    assert len(agreed) == 1
    assert done.summary["start"]["values"] in agreed[0].read_text()
    assert any("begins from an adapter" in s for s in machines.said["at north"])
    found = Checkpoint(done.folder / "checkpoint").load()
    assert found is not None
    tensors = found.servers[0][0]
    # the same two clients, played here
    method = registry.build("fedit", {"rank": 4, "sites": "q,v", "batch": 4})
    start, _, _ = values(adapter, method, "float64")
    assert_same({n.removeprefix("start:"): t for n, t in tensors.items() if n.startswith("start:")}, start, 0.0)
    plain = coordinate(machines, name="plain", **SITES)
    assert digest(plain.folder) != digest(done.folder)
    ledger = Ledger.from_records(found.ledger).totals(phase="setup", direction="down")
    assert ledger.messages == 2


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora", "heterofl", "fedra"])
def test_a_site_and_a_simulation_train_alike_from_it(slug: str, adapter: Path) -> None:
    """HeteroFL's small clients take leading slices of what all are handed, and FedRA's have fewer layers."""
    more: dict[str, Any] = {"sites": "q,v"} if slug != "fedit" else {"sites": "q,v", "rank": 5}
    method = registry.build(slug, {"batch": 4} | more)
    start = values(adapter, method, "float64")[0]
    facts = [method.profile(i) for i in range(len(tiny.SIZES))]
    here = tiny.federation(method, "bert", start=start, facts=facts, pack=1).run()
    away, loop = remote(method, model="bert", start=start, facts=facts, pack=1)
    away.run()
    assert_same(here.server.tensors_and_json()[0], away.server.tensors_and_json()[0], 0.0)
    if slug == "heterofl":
        name = "lora/bert.encoder.layer.0.attention.self.query/A"
        assert len({tuple(site.start[name].shape) for site in loop.sites.values()}) > 1


@pytest.mark.parametrize("start_head", ["auto", "probe"])
def test_a_site_refuses_start_values_other_than_those_that_were_agreed_on(
    start_head: str, machines: Machines, adapter: Path
) -> None:
    for name in ("north", "south"):
        machines.join(name)
    done = coordinate(machines, start=str(adapter), start_head=start_head, probe_rounds=1, **SITES)
    run, site = done.summary["served"]["run"], machines.sites["at north"]
    found = Checkpoint(done.folder / "checkpoint").load()
    assert found is not None
    good = {n.removeprefix("start:"): t for n, t in found.servers[0][0].items() if n.startswith("start:")}

    def answered(tensors: dict[str, Any]) -> dict[str, Any]:
        frame = encode(Header("fedit", 0, START, "down", "*"), tensors, {}, codec("identity")).data if tensors else b""
        return unwrap(site.answer(wrap({"what": "admit", "run": run, "stage": "rounds", "facts": {}}, frame)))[0]

    assert answered(good) == {"admitted": True}
    head, lora = "head/classifier/bias", "lora/bert.encoder.layer.0.attention.self.query/B"
    assert answered(good | {lora: good[lora] * 2}) == {"refused": Reason.MESSAGE}
    assert answered({n: t for n, t in good.items() if n != lora}) == {"refused": Reason.MESSAGE}
    assert answered({}) == {"refused": Reason.MESSAGE}
    # what a probe has trained since is beside what was agreed on
    assert ("admitted" in answered(good | {head: good[head] + 1})) == (start_head == "probe")
    assert any("not those that were agreed on" in s for s in machines.said["at north"])


def test_facts_of_sites_that_make_other_ranks_are_refused(machines: Machines, adapter: Path) -> None:
    machines.join("north", facts={"rank": 8, "ffn_rank": 8})
    machines.join("south", facts={"rank": 4, "ffn_rank": 4})
    with pytest.raises(UserError, match="give all clients the same rank"):
        coordinate(machines, method="flexlora", start=str(adapter), **{"method.rank": 8, "method.mix": "none"})


def test_terms_say_what_a_run_begins_from(adapter: Path, machines: Machines) -> None:
    x = settings.resolve({"start": str(adapter), "classes": CLASSES}).experiment
    terms = Terms.of("0" * 32, x)
    assert (terms.start, Terms.from_json(terms.as_json())) == ("", terms)
    assert "start" not in terms.common  # where it lies is the coordinator's own
    for odd in (None, 3, "x", "0" * 63):
        with pytest.raises(Refused):
            Terms.from_json(terms.as_json() | {"start": odd})
    assert not baselines.probing(x)
