"""Language models in federations: in packs, alone, by messages, at sites, resumed; their scores, and what they write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
import toy_runs
import weft
from every_method import short
from machines import Machines, coordinate
from run_laws import LAWS, Law, keep
from toy_runs import Dies, Killed, Told
from weft.adaptation.optim import Optim
from weft.export import export_run
from weft.federation import generating
from weft.federation.message import ClientInfo
from weft.methods import FedIT, FedSALoRA, registry
from weft.runs.baselines import Probe
from weft.runs.checkpoint import digest
from weft.tasks.generation_settings import Decoding
from weft.tasks.outputs import Output
from weft.tensors.keyed import generator
from weft.testing import of_runs
from weft.testing.compare import assert_same, state
from weft.testing.federation import Federation
from weft.testing.plays import ROUNDS, Plays

OF_TEXTS = [
    slug
    for slug, info in registry.infos().items()
    if not {"images", "texts", "hidden words", "items", "classes", "connector"} & {*info.needs}
]
QUICK = [("fedit", "llama"), ("flora", "t5"), ("fedsa-lora", "bart")]
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("fedbf", "fedpeft-bias"), ("gpt2", "bart")),  # which train biases, of which a LLaMA has none
    **dict.fromkeys(("fedp2eft", "depthfl"), ("llama",)),  # which take one stack of blocks
    **dict.fromkeys(("feddpa", "pfedlora"), ()),  # which weigh whole rows, or need a head
}
OWN: dict[str, dict[str, Any]] = {"pf2lora": {"order": "first"}}
"""Settings without which a method refuses language models."""
SLOW = [(slug, kind) for slug in OF_TEXTS for kind in KINDS.get(slug, ("llama", "bart")) if (slug, kind) not in QUICK]


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(pair, marks=pytest.mark.slow) for pair in SLOW)], ids="-".join)
def of_answers(request: pytest.FixtureRequest) -> Plays:
    slug, kind = request.param
    return Plays(
        replace(short(slug), **OWN.get(slug, {})), task="generation", kind=kind, decoding=Decoding(new_tokens=8, temperature=1.0)
    )


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_federations_that_generate_keep_the_laws(law: Law, of_answers: Plays) -> None:
    if law is of_runs.check_scores and of_answers.method.info.slug == "flexlora":
        return  # a site scores what it has received, cut to its rank; right answers don't tell these apart, perplexities do
    keep(law, of_answers)


def test_the_runs_that_laws_read_learn_answers_and_write_texts(of_answers: Plays) -> None:
    packed = of_answers.packed
    table = packed.run.bench.table
    assert packed.run.bench.task.kind == "generation"
    assert {e.metric for e in packed.scores} >= {"perplexity", "token_accuracy", "rouge_l", "loss"}
    samples = packed.run.simulation.samples
    assert len({s["text"] for s in samples}) > 1
    of_workers = of_answers.workers.run.simulation
    of_workers.evaluate(ROUNDS - 1)
    assert of_workers.samples == samples
    common = [s for s in samples if s["client"] is None]
    again = of_answers.sites.run.simulation
    for _ in range(2):  # and not those of the last time once more
        again.evaluate(ROUNDS - 1)
        assert [s["row"] for s in again.samples] == [s["row"] for s in common]
    assert all(s["wanted"] == table.wanted[list(table.row_ids).index(s["row"])] for s in samples)  # type: ignore[union-attr]


@pytest.mark.parametrize("slug", [*KINDS, *OWN])
def test_the_other_kinds_are_refused_in_a_sentence(slug: str) -> None:
    for kind in {"llama", "bart"} - {*KINDS.get(slug, ())}:
        with pytest.raises(weft.UserError, match=r"(choose|leave|set|take) .*\.$"):
            tiny.federation(short(slug), kind, task="generation")


def test_a_language_model_has_no_head_to_probe() -> None:
    bench = tiny.federation(FedIT(rank=2), "llama", task="generation").bench
    with pytest.raises(weft.UserError, match="has no head to probe, its output layer is trained already: leave probe out of"):
        Probe().adapt(bench.backbone, bench.task, ClientInfo("c0"))


def test_each_client_writes_for_its_share_of_every_test_set_but_that_for_validation() -> None:
    method = FedSALoRA(rank=2, batch=3, sites="q,v")
    run = tiny.federation(method, "llama", task="generation", rounds=1, decoding=Decoding(new_tokens=3)).run()
    run.bench.task = replace(run.bench.task, samples=7)  # type: ignore[type-var]
    run.simulation.evaluate(0)
    table, tests = run.bench.table, run.simulation.setup.tests
    rows_of: dict[str, list[int]] = {}
    for one in run.simulation.samples:
        row = list(table.row_ids).index(one["row"])
        assert (one["prompt"], one["wanted"], one["view"]) == (table.asked[row], table.wanted[row], "personal")  # type: ignore[union-attr]
        rows_of.setdefault(one["client"], []).append(row)
    trained = [c for c in run.clients if len(c.data.test)]
    assert len(trained) == 5
    for client in trained:
        rows = rows_of.pop(client.id)
        assert [np.isin(rows, some).sum() for some in (client.data.test, tests.test, client.data.val)] == [2, 2, 0]
        assert len(rows) == 4
    assert {name: sorted(rows) for name, rows in rows_of.items()} == {n: r.tolist() for n, r in tests.unseen.items()}


# what a pass gives ------------------------------------------------------------------------------------------------------

KINDS_OF_MODELS = ("llama", "gpt2", "gemma2", "falcon", "t5", "bart", "mbart", "marian", "longt5")


def moved(kind: str, *, rank: int = 2, **more: Any) -> Federation:
    """A federation after a round, so that its parts are not zero."""
    sites = "all" if kind in ("gpt2", "falcon") else "q,v"
    method = FedIT(rank=rank, alpha=8.0, batch=3, sites=sites, optim=Optim("adamw", lr=5e-2))
    return tiny.federation(method, kind, task="generation", rounds=1, **more).run()


def merged(run: Federation) -> Any:
    """The model as anybody has it, with the server's parts in its weights; the shared one is put back by the caller."""
    import copy

    model = copy.deepcopy(run.bench.backbone.model)
    for site in run.bench.backbone.sites(run.method.sites):  # type: ignore[attr-defined]
        module = model.get_submodule(site.name)
        change = 4.0 * run.server.shared[f"lora/{site.name}/B"] @ run.server.shared[f"lora/{site.name}/A"]
        module.weight.data += change.mT if type(module).__name__ == "Conv1D" else change
    return model


@pytest.mark.parametrize("kind", KINDS_OF_MODELS)
def test_the_loss_is_that_of_transformers_on_merged_weights(kind: str) -> None:
    run = moved(kind)
    model, table = merged(run), run.bench.table
    pack = run.server.pack()
    rows = np.array([[0, 3, 5, 11]])
    batch = generating.make_batch(pack.task, table, rows, None, pack.device)
    with torch.no_grad():
        found = pack.loss(pack(batch), batch)
    inputs = table.collate(rows[0])
    if run.bench.backbone.encoder_decoder:
        labels, mask = table.targets(rows[0])  # type: ignore[union-attr]
        inputs.pop("decoder_input_ids")
        labels = labels.masked_fill(~mask, -100)
    else:
        labels = inputs["input_ids"].clone()
        for r, i in enumerate(rows[0]):
            own = table.answer[table.offsets[i] : table.offsets[i + 1]]  # type: ignore[union-attr]
            labels[r, [t for t in range(labels.shape[1]) if t >= len(own) or not own[t]]] = -100
    with torch.no_grad():
        wanted = model(**inputs, labels=labels).loss
    assert float(found[0]) == pytest.approx(float(wanted), rel=1e-6)


def greedy(model: Any, run: Federation, row: int, new: int) -> str:
    """Token by token over the whole text so far, without anything kept."""
    table, words = run.bench.table, run.bench.backbone.tokenizer
    inputs = table.prompts(np.array([row]))  # type: ignore[union-attr]
    apart = run.bench.backbone.encoder_decoder
    start = getattr(model.config, "decoder_start_token_id", None)
    ids = torch.tensor([[start]]) if apart else inputs["input_ids"]
    said: list[int] = []
    for _ in range(new):
        more = {"decoder_input_ids": ids, "input_ids": inputs["input_ids"]} if apart else {"input_ids": ids}
        with torch.no_grad():
            token = int(model(**more, use_cache=False).logits[0, -1].argmax())
        if token == words.eos_token_id:
            break
        said.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return words.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "t5", "bart"])
def test_what_is_written_is_what_merged_weights_write_token_by_token(kind: str) -> None:
    run = moved(kind)
    rows = np.array([40, 0, 7, 21, 3])
    found = generating.write(run.server.pack(), run.method.forward, [rows], Decoding(new_tokens=8))[0]
    assert found == [greedy(merged(run), run, int(i), 8) for i in rows]
    assert len(set(found)) > 1


@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # which count positions from the start, and from each other
def test_a_method_that_makes_more_of_it_than_one_pass_writes_after_padded_prompts_what_one_pass_writes(kind: str) -> None:
    run, rows = tiny.federation(FedIT(rank=2), kind, task="generation"), np.arange(16)
    assert not run.bench.table.prompts(rows)["attention_mask"].all(), "no prompt is padded"  # type: ignore[union-attr]
    pack, way = run.server.pack(), Decoding(new_tokens=8)
    (found,) = generating.write(pack, lambda p, b: Output(p(b).logits), [rows], way)
    assert [found] == generating.write(pack, run.method.forward, [rows], way)
    assert len(set(found)) > 1


def test_rows_that_are_written_for_at_once_are_few_enough_with_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    run, rows, way = moved("llama"), np.arange(12), Decoding(new_tokens=8)
    whole = generating.write(run.server.pack(), run.method.forward, [rows], way)
    widths, calls, usual = run.bench.table.widths, [], generating._generate  # type: ignore[union-attr]
    monkeypatch.setattr(generating, "TOKENS", 130)
    monkeypatch.setattr(generating, "_generate", lambda *given: calls.append(given[2]) or usual(*given))  # type: ignore[func-returns-value]
    assert generating.write(run.server.pack(), run.method.forward, [rows], way) == whole
    sizes = [index.size * int(widths[index].max() + 8) for index in calls]
    assert max(sizes) <= 130
    assert sorted(np.concatenate(calls, axis=None)) == rows.tolist()
    assert 1 < len(calls) < len(rows)


WAYS = [Decoding(new_tokens=6), Decoding(new_tokens=6, beams=3), Decoding(new_tokens=6, temperature=1.0, top_p=0.9)]


@pytest.mark.parametrize("way", WAYS, ids=["greedy", "beams", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_a_pack_writes_what_each_client_writes_alone(kind: str, way: Decoding) -> None:
    method = FedSALoRA(rank=2, alpha=8.0, batch=3, sites="q,v", optim=Optim("adamw", lr=5e-2))
    run = tiny.federation(method, kind, task="generation", rounds=2).run()
    for client in run.clients:
        run.simulation.setup.store.load(client)
    rows = [np.array([0, 9]), np.array([20, 3, 4]), np.array([1]), np.array([8, 2]), np.array([5]), np.array([30])]
    packed = generating.write(run.pack(), method.forward, rows, way)
    alone = [generating.write(run.pack([k]), method.forward, [own], way)[0] for k, own in enumerate(rows)]
    assert packed == alone
    assert len({text for own in packed for text in own}) > 2


def test_another_seed_samples_other_texts_and_the_same_one_the_same() -> None:
    way = Decoding(new_tokens=8, temperature=1.5)

    def texts(seed: int) -> list[str]:
        run = moved("llama")
        run.bench.seed = seed
        return generating.write(run.server.pack(), run.method.forward, [np.arange(6)], way)[0]

    assert texts(0) == texts(0) != texts(1)


def test_clients_and_rounds_draw_texts_of_their_own() -> None:
    run, way = moved("llama"), Decoding(new_tokens=8, temperature=1.5)
    rows = np.arange(6)
    pack = run.pack([0, 1])
    one, other = generating.write(pack, run.method.forward, [rows, rows], way)
    greedy_one, greedy_other = generating.write(pack, run.method.forward, [rows, rows], Decoding(new_tokens=8))
    assert greedy_one == greedy_other, "they have one model"
    assert one != other
    pack.round = replace(pack.round, index=pack.round.index + 1)
    assert generating.write(pack, run.method.forward, [rows, rows], way)[0] not in (one, other)


def test_the_rows_that_text_is_written_for_are_drawn_for_each_purpose_and_keep_their_order() -> None:
    rows = np.arange(100, 300)
    ways: list[tuple[int, tuple[str, ...]]] = [(0, ()), (0, ()), (1, ()), (0, ("client-3",))]
    drawn = [generating.few(seed, rows, 20, *purpose).tolist() for seed, purpose in ways]
    assert all(own == sorted(set(own)) and len(own) == 20 and set(own) <= set(rows.tolist()) for own in drawn)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3] != drawn[0]
    assert generating.few(0, rows[:20], 20).tolist() == rows[:20].tolist()
    assert generating.few(0, rows, 0).tolist() == []


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    n, likely = 4000, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    for temperature in (1.0, 2.0):
        scores = (temperature * likely.log()).float().expand(n, 3)
        for top_p, wanted in ((1.0, likely), (0.8, torch.tensor([2 / 3, 1 / 3, 0.0])), (0.5, torch.tensor([1.0, 0.0, 0.0]))):
            keyed = generating.Keyed([generator(0, "test", i) for i in range(n)], Decoding(temperature=temperature, top_p=top_p))
            drawn = keyed(torch.zeros(n, 1, dtype=torch.int64), scores).argmax(-1)
            share = drawn.bincount(minlength=3).double() / n
            np.testing.assert_allclose(share, wanted, rtol=0, atol=0.03)  # four standard deviations


def test_texts_end_where_the_model_ends_them_and_no_later_than_it_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    b = tiny.backbone("llama", checkpoint="lm", task="generation")
    end = b.tokenizer.eos_token_id
    for own, wanted in ((None, [end]), (end, [end]), (9, [end, 9]), ([9, end, 11], [end, 9, 11])):
        monkeypatch.setattr(b.model.generation_config, "eos_token_id", own)
        assert generating.settings(b, Decoding(), 0).eos_token_id == wanted
    assert b.max_length == 64
    for new, width, most in ((8, 10, 8), (64, 60, 4), (64, 64, 1), (100, 0, 64)):
        assert generating.settings(b, Decoding(new_tokens=new), width).max_new_tokens == most


class Twice(FedIT):
    """Predicts by the mean of two passes, which are the same."""

    def forward(self, pack: Any, batch: Any, view: str | None = None) -> Any:
        from weft.tasks.outputs import Output

        return Output((pack(batch).logits + pack(batch).logits) / 2)


@pytest.mark.parametrize("way", WAYS, ids=["greedy", "beams", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_method_that_mixes_passes_is_asked_for_every_token(kind: str, way: Decoding) -> None:
    run = moved(kind)
    rows = [np.array([0, 9, 20])]
    plain = generating.write(run.server.pack(), run.method.forward, rows, way)
    twice = Twice(rank=2, alpha=8.0, sites="q,v")
    mixed = generating.write(run.server.pack(), lambda p, b: twice.forward(p, b), rows, way)
    assert mixed == plain
    assert not list(tiny.hooks(run.bench.backbone.model))


@pytest.mark.parametrize("lacking", [[0], [1], [0, 2]])
def test_clients_that_lack_blocks_write_as_without_anything_kept(lacking: list[int]) -> None:
    """Lengths are read off the keys that the first block keeps: kept ones would give wrong texts in silence."""
    run = moved("llama")
    pack = run.pack([0, 1])
    hold = torch.ones(2, 3, dtype=torch.bool)
    hold[1, lacking] = False
    pack.hold(hold)
    rows = [np.array([0, 9, 20]), np.array([1, 9, 21])]
    found = generating.write(pack, run.method.forward, rows, Decoding(new_tokens=6))
    model = merged(run)
    whole = [greedy(model, run, int(i), 6) for i in rows[0]]
    for block in sorted(lacking, reverse=True):
        del model.model.layers[block]
    assert found == [whole, [greedy(model, run, int(i), 6) for i in rows[1]]]
    assert found[0][1] != found[1][1]


def test_logits_are_those_of_the_whole_pass_and_none_beside_the_answers() -> None:
    run = moved("llama")
    pack, table = run.server.pack(), run.bench.table
    rows = np.array([[0, 3, -1]])
    batch = generating.make_batch(pack.task, table, rows, None, pack.device)
    out = pack(batch)
    with torch.no_grad():
        every = merged(run)(**table.collate(rows[0])).logits
    places = table.places(rows[0])  # type: ignore[union-attr]
    mine: Tensor = out.logits[batch.mask]
    torch.testing.assert_close(mine, every[places], rtol=1e-9, atol=1e-9)
    assert not out.logits[~batch.mask].any()
    seen = out.each(lambda z, y: z.gather(1, y[:, None])[:, 0], batch.labels)
    torch.testing.assert_close(seen[batch.mask], mine.gather(1, batch.labels[batch.mask][:, None])[:, 0])


def test_distillation_of_two_passes_is_that_of_their_logits() -> None:
    from weft.tasks.losses import distillation
    from weft.tasks.outputs import Output

    run = moved("llama")
    pack = run.pack([0, 1])
    batch = next(iter(pack.batches(size=3)))
    with torch.no_grad():
        teacher, student = pack(batch, use={}), pack(batch)
        found = distillation(teacher, student, batch.mask, 2.0)
        wanted = distillation(teacher.logits, Output(student.logits), batch.mask, 2.0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert float(found.min()) > 0


def test_packed_and_one_at_a_time_leave_the_same() -> None:
    method = FedIT(rank=2, batch=3, sites="all", optim=Optim("adamw", lr=1e-2, eps=1e-6))
    packed, alone = (tiny.federation(method, "llama", task="generation", pack=k).run() for k in (6, 1))
    assert_same(state(packed), state(alone), 1e-10)


# with people ------------------------------------------------------------------------------------------------------------


def prompts(n: int, seed: int) -> list[dict[str, str]]:
    """Prompts whose answer is their last word, twice."""
    rng = np.random.default_rng(seed)
    rows = [[f"w{i}" for i in rng.integers(0, 12, 3)] for _ in range(n)]
    return [{"instruction": " ".join(row), "output": f"{row[-1]} {row[-1]}"} for row in rows]


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_real_sites_tune_what_writes_and_tell_sums_alone(machines: Machines) -> None:
    for number, name in enumerate(("north", "south")):
        machines.join(name, data=str(written(machines.root / f"{name}.jsonl", prompts(60, number))))
    about: dict[str, Any] = {
        "method": "fedit",
        "task": "generation",
        "samples": 4,
        "new_tokens": 4,
        "template": "plain",
        "classes": [],
    }
    parameters = {"method.rank": 4, "method.batch": 8, "method.lr": 1e-2, "method.sites": "all", "method.epochs": 2.0}
    model = tiny.folder("llama", "lm", num_hidden_layers=2)
    done = coordinate(machines, Told(), **about | parameters, model=model, precision="float32")
    assert [line["cohort"] for line in done.rounds] == [["north", "south"]] * 3
    found = [
        {e["metric"]: e["value"] for e in line["evaluations"] if (e["people"], e["pooling"]) == ("global test", "pooled")}
        for line in done.rounds
    ]
    assert found[-1]["perplexity"] < 0.5 * found[0]["perplexity"]
    assert "rouge_l" in found[-1]
    assert not (done.folder / "samples.jsonl").exists(), "what sites write stays there"
    assert done.adapter is not None
    assert len(done.generate(["w1 w2 w3"], new_tokens=3)) == 1


def test_a_run_keeps_what_was_written_and_goes_on_from_where_it_was_stopped(tmp_path: Path) -> None:
    data = str(written(tmp_path / "rows.jsonl", prompts(60, 0)))
    settings: dict[str, Any] = {
        "data": data,
        "model": tiny.folder("llama", "lm", num_hidden_layers=2),
        "task": "generation",
        "method": "fedit",
        "parameters": {"rank": 2, "steps": 2, "batch": 4},
        "clients": 3,
        "rounds": 2,
        "samples": 5,
        "new_tokens": 4,
        "baselines": ["zero-shot", "local"],
        "template": "plain",
    }
    whole = toy_runs.run(tmp_path / "whole", **settings)
    lines = [json.loads(line) for line in (whole.folder / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "wanted", "text", "view", "row", "round"} <= lines[0].keys()
    assert {line["round"] for line in lines} == {1}
    assert set(whole.metrics) >= {"perplexity", "rouge_l", "loss", "mean_client", "worst_client"}
    assert set(whole.summary["baselines"]) == {"zero-shot", "local"}
    assert {line["client"] for line in lines} == {None}
    alone = [json.loads(line) for line in (whole.folder / "baselines" / "local" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert {line["row"] for line in alone} == {line["row"] for line in lines}
    assert {line["client"] for line in alone} <= set(whole.rounds[0]["cohort"])
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", observer=Dies(after=0), **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    again = weft.resume(folder, observer=Told())
    assert digest(again.folder) == digest(whole.folder)
    assert (again.folder / "samples.jsonl").read_bytes() == (whole.folder / "samples.jsonl").read_bytes()
    adapter, sound = whole.adapter, (whole.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapter is not None
    for harm in ("adapter_model.safetensors", "weft.json"):
        (whole.folder / "adapter" / harm).write_bytes(b"torn")
        report = export_run(whole.folder, tmp_path / f"export without {harm}")
        assert (tmp_path / f"export without {harm}" / "adapter_model.safetensors").read_bytes() == sound
        assert report.kind == "peft"
        told = Told()
        weft.resume(whole.folder, observer=told)
        assert any("its adapter was damaged, and is made anew" in line for line in told.sentences)
        assert (whole.folder / "adapter" / "adapter_model.safetensors").read_bytes() == sound
    (whole.folder / "adapter" / "weft.json").write_bytes(b"torn")
    (whole.folder / "checkpoint").rename(whole.folder / "gone")
    with pytest.raises(weft.UserError, match="is damaged"):
        export_run(whole.folder, tmp_path / "nothing")


def test_scores_of_texts_need_texts(tmp_path: Path) -> None:
    about: dict[str, Any] = {"data": str(written(tmp_path / "rows.jsonl", prompts(20, 0))), "task": "generation"}
    with pytest.raises(weft.UserError, match="rouge_l is of generated texts, and --samples 0 lets none be written"):
        toy_runs.run(tmp_path, model=tiny.folder("llama", "lm"), samples=0, metrics=["perplexity", "rouge_l"], **about)
