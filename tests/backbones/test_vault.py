"""VAuLT: a ViLT behind a language model gives what transformers' two models give one after the other, and is trained alone."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, ViltForQuestionAnswering

import tiny
import weft
from command_line import weft as shell
from exporting import FAST, FEDIT, assert_answers_about_pictures_as, exported
from picture_folders import asked_about
from weft.adaptation.tune import Tune
from weft.backbones.backbone import Backbone
from weft.backbones.finding import find
from weft.backbones.flops import flops, powers
from weft.backbones.load import load
from weft.backbones.pictured_table import Pictured
from weft.backbones.run_table import tabulate
from weft.data.rows import BOTH, Rows, Source
from weft.errors import UserError
from weft.export import Predictor
from weft.export import load as load_export
from weft.export.merged import merge
from weft.methods.adapters.feddat import FedDAT
from weft.methods.full.fedavg import FedAvg
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.selective.fedbf import FedBF
from weft.testing.compare import assert_same
from weft.testing.models import root, scramble
from weft.testing.sites import remote

CLASSES, N = 3, 9
PATCHES = (8 // 4) ** 2


@functools.cache
def of_letters(layers: int = 2) -> str:
    """Folder of a random BERT as wide as glyph-vilt, with the tokenizer of that: it knows the words of glyph_questions."""
    words = AutoTokenizer.from_pretrained(find("glyph-vilt")[0])
    shape = {"hidden_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, pad_token_id=words.pad_token_id, **shape))
    scramble(model)
    place = root() / f"bert-of-letters-{layers}"
    model.save_pretrained(place)
    words.save_pretrained(place)
    return str(place)


def joined(language: str = "bert", **shape: Any) -> str:
    return f"{tiny.folder('vilt')}+{tiny.folder(language, **shape)}"


@functools.cache
def vault(language: str = "bert", precision: str = "float64") -> Backbone:
    return load(joined(language), classes=tiny.names(CLASSES), device="cpu", precision=precision)


def table(b: Backbone, rows: Rows | None = None) -> Pictured:
    found = tabulate(b, rows or tiny.rows(N, CLASSES, reads=BOTH), 8)
    assert isinstance(found, Pictured)
    return found


def inputs_of(b: Backbone, rows: Rows | None = None) -> dict[str, Tensor]:
    return b.to_model(table(b, rows).collate(np.arange(N)))


@torch.no_grad()
def plain_logits(b: Backbone, place: str, inputs: dict[str, Tensor]) -> Tensor:
    """By the two models of transformers, from their own folders but for the new head."""
    vilt, language = place.split("+")
    words = AutoModel.from_pretrained(language).double().eval()
    plain = ViltForQuestionAnswering.from_pretrained(vilt, num_labels=CLASSES).double().eval()
    plain.classifier.load_state_dict(b.model.classifier.state_dict())
    plain.vilt.pooler.load_state_dict(b.model.vilt.pooler.state_dict())
    text = {n: inputs[n] for n in ("input_ids", "attention_mask")}
    seen = words(**text).last_hidden_state
    found: Tensor = plain(inputs_embeds=seen, attention_mask=text["attention_mask"], pixel_values=inputs["pixel_values"]).logits
    return found


# the model -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("language", ["bert", "roberta", "distilbert", "electra"])
def test_logits_are_those_of_a_vilt_given_the_last_hidden_states_of_a_language_model(language: str) -> None:
    b = vault(language)
    inputs = inputs_of(b)
    assert not inputs["attention_mask"].all(), "some rows are padded"
    found = b.model(**inputs).logits
    torch.testing.assert_close(found, plain_logits(b, joined(language), inputs), rtol=0.0, atol=1e-12)
    assert found.std(0).min() > 1e-3, "logits that are all alike would prove nothing"


@torch.no_grad()
def test_the_reference_is_bert_s_own_class_and_words_are_read_in_their_context() -> None:
    """The hidden state of a word is another one where its neighbours are others, which no table of words can say."""
    b = vault()
    language = BertModel.from_pretrained(joined().split("+")[1]).double().eval()
    ids = torch.tensor([[2, 10, 11, 3], [2, 10, 12, 3]])
    seen = language(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(b.model.language(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state, seen)
    assert (seen[0, 1] - seen[1, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_both_the_question_and_the_picture_count_and_padding_does_not() -> None:
    b, rows = vault(), tiny.rows(N, CLASSES, reads=BOTH)
    assert rows.texts is not None
    assert rows.images is not None
    asked = Rows(texts=rows.texts[::-1], images=rows.images, labels=rows.labels)
    shown = Rows(texts=rows.texts, images=rows.images.take(range(N - 1, -1, -1)), labels=rows.labels)
    first, second, third = (b.model(**inputs_of(b, own)).logits for own in (rows, asked, shown))
    assert (first - second).abs().max() > 1e-3
    assert (first - third).abs().max() > 1e-3
    alone = torch.cat([b.model(**b.to_model(table(b).collate(np.array([i])))).logits for i in range(N)])
    torch.testing.assert_close(alone, first, rtol=0.0, atol=1e-12)


def test_questions_are_tokenised_by_the_language_model() -> None:
    """A RoBERTa's tokenizer has other special tokens, in another order, than the one that lies beside the ViLT."""
    b, rows = vault("roberta"), tiny.rows(N, CLASSES, reads=BOTH)
    assert rows.texts is not None
    own = AutoTokenizer.from_pretrained(joined("roberta").split("+")[1])
    inputs = table(b, rows).collate(np.arange(N))
    for i in range(N):
        ids = inputs["input_ids"][i][inputs["attention_mask"][i].bool()]
        assert ids.tolist() == own(rows.texts[i], truncation=True, max_length=8)["input_ids"]
    others = table(vault("bert"), rows).collate(np.arange(N))
    assert not torch.equal(others["input_ids"], inputs["input_ids"])


def test_what_the_description_finds_lies_in_the_vilt() -> None:
    b = vault()
    assert (b.reads, b.pools, b.picture_tokens, b.max_length) == (BOTH, "first", PATCHES + 1, 64)
    assert b.blocks == [f"vilt.encoder.layer.{i}" for i in range(3)]
    sites = [*b.linears, *b.norms, *b.heads, *b.outer, *b.bottlenecks]
    assert not [s.name for s in sites if s.name.startswith("language")]
    assert {h.name for h in b.heads} == {"classifier.0", "classifier.1", "classifier.3"}
    assert not [name for name in b.own if name.startswith("language")]
    assert [name for name in b.own if name.startswith("vilt.")]
    assert not [n for n, _ in b.model.named_parameters() if "text_embeddings.word_embeddings" in n], "ViLT's own words are gone"
    assert any("whose last hidden states stand in the place of words" in note for note in b.notes)


def test_the_longest_row_is_what_both_models_take() -> None:
    short, narrow = (tiny.folder(kind, max_position_embeddings=20) for kind in ("bert", "vilt"))
    for place in (f"{tiny.folder('vilt')}+{short}", f"{narrow}+{tiny.folder('bert')}"):
        assert load(place, device="cpu", precision="float32").max_length == 20


def test_the_hash_is_of_both_checkpoints_in_their_order() -> None:
    one, other = vault(), load(joined("bert", num_hidden_layers=2), classes=3, device="cpu", precision="float64")
    assert [p.name for p in one.pieces] == joined().split("+")
    assert one.pieces[0].weight_hash == other.pieces[0].weight_hash
    assert one.pieces[1].weight_hash != other.pieces[1].weight_hash
    assert one.weight_hash != other.weight_hash
    assert load(joined(), classes=3, device="cpu", precision="float32").weight_hash == one.weight_hash


# what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        (
            lambda: joined("bert", hidden_size=16),
            {},
            r"have 16 numbers for a token, and the ViLT .* reads 32: choose a language model",
        ),
        (lambda: "+".join(reversed(joined().split("+"))), {}, "name the ViLT first and behind it one language model"),
        (lambda: f"{joined()}+{tiny.folder('bert')}", {}, "name the ViLT first and behind it one language model"),
        (lambda: f"{tiny.folder('vilt')}+{tiny.folder('vilt')}", {}, "name the ViLT first and behind it one language model"),
        (lambda: joined("gpt2"), {}, r"\(gpt2\) predicts no hidden tokens: choose an encoder of texts such as BERT"),
        (lambda: joined("vit"), {}, r"\(vit\) predicts no hidden tokens"),
        (joined, {"task": "classification"}, "answers questions about pictures: leave --task out"),
        (joined, {"task": "generation"}, r"generates no text"),
        (joined, {"roles": "nothing=q"}, 'no linear layer of a block ends in "nothing"'),
    ],
)
def test_what_is_no_vilt_behind_a_language_model_is_one_sentence(name: Any, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as found:
        load(name(), classes=3, device="cpu", precision="float32", **more)
    assert "\n" not in str(found.value)


def broken(tmp_path: Path, change: Any) -> str:
    """A copy of a BERT's folder whose tensors were changed."""
    folder = Path(tiny.folder("bert"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return f"{tiny.folder('vilt')}+{tmp_path}"


def lost(tensors: dict[str, Tensor]) -> None:
    del tensors["encoder.layer.1.output.dense.weight"]


def resized(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.layer.1.output.dense.bias"] = torch.zeros(5)


def infinite(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.layer.1.output.dense.bias"][0] = float("inf")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lost, r"lacks 1 tensor, such as bert\.encoder\.layer\.1\.output\.dense\.weight"),
        (resized, r"bert\.encoder\.layer\.1\.output\.dense\.bias"),
        (infinite, "holds NaN, infinite or huge values"),
    ],
)
def test_a_damaged_language_model_is_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    """No gradient reaches it, so that a tensor that is drawn at random would not be missed otherwise."""
    with pytest.raises(UserError, match=sentence):
        load(broken(tmp_path, change), classes=3, device="cpu", precision="float32")


def test_blocks_of_the_language_model_that_its_configuration_leaves_out_are_said(tmp_path: Path) -> None:
    place = broken(tmp_path, lambda tensors: None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    notes = load(place, classes=3, device="cpu", precision="float32").notes
    assert len(notes) > len(vault().notes)


# what it costs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 11])
def test_operations_are_exact_at_a_length_that_they_were_not_counted_at_and_the_language_model_is_before_the_blocks(
    width: int,
) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    b = vault()
    inputs = table(b).collate(np.array([0]))
    inputs |= {n: torch.ones(1, width, dtype=torch.long) for n in ("input_ids", "attention_mask")}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        b.model(**b.to_model(inputs))
    heads = sum(2 * m.weight.numel() for m in b.model.classifier if isinstance(m, torch.nn.Linear))
    found = flops(b).forward @ powers(np.array(width + PATCHES + 1), np.array(0))
    assert int(found.sum()) + heads == counter.get_total_flops()
    alone = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), alone, torch.no_grad():
        b.model.language(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert int(found[0]) == alone.get_total_flops()


# training -----------------------------------------------------------------------------------------------------------------------

METHODS = {
    "fedit": FEDIT,
    "feddat": FedDAT(batch=4, optim=FAST),
    "bias": FedBF(batch=4, optim=FAST),
    "weights": FedAvg(tune=Tune("weights"), batch=4, optim=FAST),
    "bottleneck": FedAvg(tune=Tune("bottleneck"), batch=4, optim=FAST),
}


@pytest.mark.parametrize("kind", METHODS)
def test_training_moves_the_vilt_and_leaves_the_language_model(kind: str) -> None:
    b = vault(precision="float32")
    before = {n: p.clone() for n, p in b.model.named_parameters()}
    run = tiny.federation(METHODS[kind], b, sizes=(6, 5), rounds=1).run()
    assert not [name for name in run.server.shared if "language" in name]
    assert [name for name in run.server.shared if "vilt.encoder.layer" in name]
    assert all(torch.equal(p, before[n]) for n, p in b.model.named_parameters()), "the model itself is as it was"


@pytest.mark.parametrize("method", [FedIT(rank=2, batch=4, optim=FAST), FedDAT(reduction=4, batch=4, optim=FAST)])
def test_packs_are_their_clients_one_by_one(method: Any) -> None:
    many = tiny.federation(method, vault(), sizes=(6, 5, 0, 3), rounds=2, pack=4).run()
    single = tiny.federation(method, vault(), sizes=(6, 5, 0, 3), rounds=2, pack=1).run()
    for name, value in many.server.shared.items():
        torch.testing.assert_close(single.server.shared[name], value, rtol=1e-9, atol=1e-9)


def test_sites_message_by_message_give_the_same() -> None:
    here = tiny.federation(FEDIT, vault(), sizes=(6, 5), rounds=2).run()
    away = remote(FEDIT, model=vault(), sizes=(6, 5), rounds=2)[0].run()
    assert_same(here.server.shared, away.server.shared, 1e-9)  # type: ignore[arg-type]


def test_clients_with_a_vilt_stand_beside_clients_with_a_language_model_in_front(tmp_path: Path) -> None:
    """What is trained has one name and one shape in both, so that it is averaged."""
    source = Source("asked", ("a", "b", "c"), tiny.rows(40, CLASSES, reads=BOTH))
    run = weft.run(
        "fedit", data=source, model=f"{tiny.folder('vilt')},{joined()}", clients=2, rounds=1, device="cpu", precision="float32",
        runs=tmp_path, quiet=True, start_head="random", baselines=[], partition="iid",
    )  # fmt: skip
    assert run.rounds[0]["refused"] == {}
    assert len(run.rounds[0]["cohort"]) == 2


def test_a_step_is_pytorch_s_on_the_two_models_of_transformers() -> None:
    """The gradient of the head by the loss of a step, with the language model as a constant."""
    b = vault()
    inputs = inputs_of(b)
    with torch.enable_grad():
        weight = b.model.classifier[3].weight.detach().clone().requires_grad_()
        logits = torch.func.functional_call(b.model, {"classifier.3.weight": weight}, kwargs=inputs).logits
    (slope,) = torch.autograd.grad(logits.square().sum(), weight)
    vilt, language = joined().split("+")
    words = BertModel.from_pretrained(language).double().eval()
    plain = ViltForQuestionAnswering.from_pretrained(vilt, num_labels=CLASSES).double().eval()
    plain.classifier.load_state_dict(b.model.classifier.state_dict())
    seen = words(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.detach()
    found = plain(inputs_embeds=seen, attention_mask=inputs["attention_mask"], pixel_values=inputs["pixel_values"]).logits
    (wanted,) = torch.autograd.grad(found.square().sum(), plain.classifier[3].weight)
    torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-12)


# exports, runs, the command line ------------------------------------------------------------------------------------------------


def here(folder: Path, **more: Any) -> Predictor:
    return load_export(folder, device="cpu", precision="float32", **more)


@pytest.mark.parametrize("kind", ["fedit", "feddat", "weights"])
def test_an_exported_model_answers_as_its_run_did_in_our_own_form(kind: str, tmp_path: Path) -> None:
    """No class of transformers is such a model, so that PEFT has nothing to put an adapter on."""
    run = tiny.federation(METHODS[kind], vault(precision="float32"), sizes=(6, 5), rounds=1).run()
    report = exported(run, tmp_path)
    assert report.difference <= report.tolerance
    assert_answers_about_pictures_as(run, here(tmp_path), of_everybody=kind != "feddat")  # feddat's are a new client's
    about = json.loads((tmp_path / "weft.json").read_text())
    assert (about["kind"], about["task"]) == ("weft", "vqa")
    assert (about["base"]["path"], about["base"]["hub_id"]) == (joined(), None)
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match="leave --merged out"):
        merge(tmp_path, tmp_path / "merged", precision="float32")


def test_a_base_that_comes_with_weft_keeps_its_name_beside_a_folder(tmp_path: Path) -> None:
    language = of_letters()
    b = load(f"glyph-vilt+{language}", classes=tiny.names(3), device="cpu", precision="float32")
    exported(tiny.federation(FEDIT, b, sizes=(6, 5), rounds=1).run(), tmp_path)
    assert json.loads((tmp_path / "weft.json").read_text())["base"]["path"] == f"glyph-vilt+{language}"
    assert here(tmp_path).backbone.weight_hash == b.weight_hash
    with pytest.raises(UserError, match="are not those that this model was trained on"):
        here(tmp_path, base=f"glyph-vilt+{of_letters(1)}")


def test_a_run_on_questions_about_letters_learns_and_a_pack_gives_what_its_clients_give_alone(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "data": "glyph_questions", "model": f"glyph-vilt+{of_letters()}", "clients": 4, "rounds": 2,
        "limit": 120, "device": "cpu", "precision": "float32", "runs": tmp_path, "quiet": True, "baselines": [],
        "start_head": "random", "parameters": {"lr": 1e-2},
    }  # fmt: skip
    run = weft.run("feddat", **common)
    losses = [line["loss"] for line in run.rounds]
    assert losses[-1] < losses[0]
    assert 0 <= run.metrics["accuracy"] <= 1
    alone = weft.run("feddat", **common, pack=1, name="alone")
    assert [line["loss"] for line in alone.rounds] == [pytest.approx(loss, rel=1e-4) for loss in losses]


def test_the_command_line_runs_predicts_and_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "asked"
    asked_about(folder, [[{"question": f"w{i % 7} w{i % 3}", "answer": "ab"[i % 2]}] for i in range(24)])
    where = ["--model", joined(), "--runs", tmp_path / "runs", "--device", "cpu", "--name", "asked"]
    typed = ["run", "--method", "fedit", "--task", "vqa", "--data", folder, "--rounds", "1", "--clients", "2"]
    done = shell(capsys, *typed, "--baselines", "none", "--partition", "iid", *where)
    assert done.code == 0, done.err
    (one,) = json.loads(shell(capsys, "predict", tmp_path / "runs" / "asked", "--json", "w1 w2", folder / "0.png").out)
    assert one["label"] in "ab"
    about = json.loads(shell(capsys, "models", joined(), "--json").out)
    assert (about["class"], about["reads"], about["input"]["name"]) == ("VaultClassifier", BOTH, "language")
    found = shell(capsys, "models", joined())
    assert found.code == 0
    assert "last hidden states" in " ".join(found.out.split())
