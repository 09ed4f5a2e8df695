"""LLaVA: the same logits and texts as transformers', with every picture put through the tower once."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from command_line import refused
from command_line import weft as weft_says
from picture_folders import asked_about, two_questions_each
from weft.backbones import pictured_replies
from weft.backbones.backbone import Backbone
from weft.backbones.llava import CONNECTOR
from weft.backbones.pictured_replies import PicturedReplies
from weft.backbones.pixels import pixels
from weft.backbones.run_table import tabulate
from weft.data.rows import BOTH, Rows
from weft.errors import UserError
from weft.federation import generating
from weft.methods import FedDAT, FedIT
from weft.tasks.generation_settings import Decoding
from weft.testing.data import answered, rows

ROWS = 7


def llava() -> Backbone:
    return tiny.backbone("llava", checkpoint="lm", task="generation", classes=1)


def some(n: int = ROWS) -> Rows:
    return answered(rows(n, reads=BOTH))


def table_of(own: Rows, most: int = 64) -> PicturedReplies:
    found = tabulate(llava(), own, most)
    assert isinstance(found, PicturedReplies)
    return found


def plain_table(own: Rows, most: int) -> PicturedReplies:
    """In a template without words of its own."""
    backbone = llava()
    found = tabulate(replace(backbone, options=replace(backbone.options, template="plain")), own, most)
    assert isinstance(found, PicturedReplies)
    return found


@pytest.fixture(scope="module")
def plain() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(llava().path, dtype=torch.float64).eval()


def theirs(own: Rows, index: np.ndarray, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of transformers' own model: pictures instead of what the tower makes of them."""
    pictures = pixels(llava(), Rows(images=own.images, labels=np.zeros(len(own), np.int64)))
    kept = {n: t for n, t in inputs.items() if n != "image_features"}
    return kept | {"pixel_values": pictures.collate(index)["pixel_values"].double()}


def test_logits_are_those_of_transformers(plain: Any) -> None:
    own = some()
    table, index = table_of(own), np.arange(ROWS)
    inputs = table.collate(index)
    with torch.no_grad():
        mine, wanted = llava().model(**inputs).logits, plain(**theirs(own, index, inputs)).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(mine[real], wanted[real], rtol=1e-12, atol=1e-12)


def test_a_prompt_has_as_many_tokens_for_a_picture_as_the_tower_gives() -> None:
    table, backbone = table_of(some()), llava()
    token = backbone.model.config.image_token_id
    assert backbone.reads == BOTH
    assert backbone.picture_tokens == 4
    for i in range(ROWS):
        own = table.ids[table.offsets[i] : table.offsets[i + 1]]
        places = np.flatnonzero(own == token)
        assert places.tolist() == list(range(places[0], places[0] + 4))
        assert places[-1] < table.begins[i]
        answer = table.answer[table.offsets[i] : table.offsets[i + 1]]
        assert answer[table.begins[i] :].all()
        assert not answer[: table.begins[i]].any()


def test_a_picture_of_two_questions_goes_through_the_tower_once() -> None:
    table = table_of(some())
    assert table.picture.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert table.features.shape[:2] == (4, 4)
    seen = table.collate(np.array([1, -1, 0]))["image_features"]
    assert torch.equal(seen[0], seen[2])
    assert not seen[1].any()
    own = some()
    assert own.images is not None
    mixed = table_of(replace(own, images=own.images.take([2, 0, 2, 0, 4, 4, 2])))
    assert mixed.picture.tolist() == [0, 1, 0, 1, 2, 2, 0]
    found, wanted = mixed.collate(np.array([3, 6])), table.collate(np.array([0, 2]))
    torch.testing.assert_close(found["image_features"], wanted["image_features"])


def test_the_mark_of_a_picture_in_a_question_is_no_second_picture() -> None:
    own = some()
    assert own.texts is not None
    marked = replace(own, texts=[f"<image> {text}" for text in own.texts])
    assert np.array_equal(table_of(marked).ids == 97, table_of(own).ids == 97)


def test_texts_are_those_that_transformers_writes(plain: Any) -> None:
    run = tiny.federation(FedIT(rank=2), "llava", task="generation")
    pack, table = run.pack([0]), plain_table(some(), 64)
    pack.bench = replace(pack.bench, table=table)
    index = np.array([2, 4, 6])
    (found,) = generating.write(pack, run.method.forward, [index], Decoding(new_tokens=5))
    prompts = table.prompts(index)
    with torch.no_grad():
        seen = plain.model.multi_modal_projector(table.features[torch.from_numpy(table.picture[index])].double())
        ids = prompts["input_ids"]
        embeds = plain.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == 97).unsqueeze(-1), seen)
        written = plain.generate(
            inputs_embeds=embeds, attention_mask=prompts["attention_mask"], max_new_tokens=5, do_sample=False, pad_token_id=2
        )
    assert found == [text.strip() for text in run.bench.backbone.tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert any(found)
    pack.bench = replace(pack.bench, table=replace(table, features=torch.zeros_like(table.features)))
    (unseen,) = generating.write(pack, run.method.forward, [index], Decoding(new_tokens=5))
    assert all(one != other for one, other in zip(found, unseen, strict=True)), "a picture matters for each of the texts"


@pytest.mark.parametrize("method", [FedIT(rank=2), FedDAT(reduction=4)])
def test_packs_are_their_clients_one_by_one(method: Any) -> None:
    one, many = (tiny.federation(method, "llava", task="generation", pack=k, rounds=2).run() for k in (1, 6))
    for name, value in one.server.shared.items():
        assert isinstance(value, Tensor)
        torch.testing.assert_close(many.server.shared[name], value, rtol=1e-9, atol=1e-9)


def test_a_method_that_is_no_single_pass_sees_the_picture_of_each_next_token() -> None:
    """The mean of two passes is asked for every token anew; the picture matters in each."""
    run = tiny.federation(FedIT(rank=2), "llava", task="generation")
    pack, index = run.pack([0]), np.array([2, 4, 6])
    from weft.tasks.outputs import average

    pack.bench = replace(pack.bench, table=plain_table(some(), 64))

    def twice(p: Any, b: Any) -> Any:
        return average([p(b), p(b)])

    for decoding in (Decoding(new_tokens=4), Decoding(new_tokens=4, beams=2)):
        plain = generating.write(pack, run.method.forward, [index], decoding)
        assert generating.write(pack, twice, [index], decoding) == plain


def test_a_picture_goes_through_the_connector_with_the_prompt_and_not_with_each_token() -> None:
    run = tiny.federation(FedIT(rank=2), "llava", task="generation")
    pack, index = run.pack([0]), run.clients[0].data.train[:2]
    seen: list[int] = []
    handle = run.bench.backbone.module(CONNECTOR).register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    try:
        generating.write(pack, run.method.forward, [index], Decoding(new_tokens=4))
    finally:
        handle.remove()
    assert seen == [2]


@torch.no_grad()
@pytest.mark.parametrize(("layer", "strategy"), [(-1, "default"), (-2, "full"), ([-2, -1], "default"), ([0, 1, 2], "full")])
def test_features_are_of_the_layers_and_places_that_the_configuration_names(layer: Any, strategy: str) -> None:
    from transformers import LlavaForConditionalGeneration

    from weft.backbones.llava import LlavaReader

    config = copy.deepcopy(llava().model.config)
    config.vision_feature_layer, config.vision_feature_select_strategy = layer, strategy
    torch.manual_seed(0)
    theirs = LlavaForConditionalGeneration(config).double().eval()
    mine = LlavaReader(config).double().eval()
    mine.load_state_dict(theirs.state_dict())
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = 4 + (strategy == "full")
    ids = torch.tensor([[1, *[config.image_token_id] * tokens, 5, 6], [1, 7, *[config.image_token_id] * tokens, 8]])
    features = mine.features(pictures)
    assert features.shape[:2] == (2, tokens)
    found = mine(input_ids=ids, image_features=features).logits
    torch.testing.assert_close(found, theirs(input_ids=ids, pixel_values=pictures).logits, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_row_without_a_picture_s_tokens_leaves_the_others_theirs() -> None:
    """As one of padding does, wherever it stands in a batch."""
    table, model = table_of(some()), llava().model
    whole = model(**table.collate(np.array([2, 4]))).logits
    apart = model(**table.collate(np.array([2, -1, 4]))).logits
    torch.testing.assert_close(apart[[0, 2]], whole, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_positions_that_are_given_and_outputs_that_are_asked_for_count() -> None:
    table, model = table_of(some()), llava().model
    inputs = table.collate(np.array([0]))
    places = torch.arange(inputs["input_ids"].shape[1])[None]
    whole = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, position_ids=places).logits, whole)
    assert (model(**inputs, position_ids=2 * places).logits - whole).abs().max() > 1e-6
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, whole[:, -2:])


@torch.no_grad()
def test_many_pictures_go_through_the_tower_in_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table_of(some())
    monkeypatch.setattr(pictured_replies, "AT_ONCE", 3)
    own = table_of(some())
    assert own.features.shape == whole.features.shape
    torch.testing.assert_close(own.features, whole.features)


def test_rows_keep_their_numbers_and_what_was_asked_has_no_mark() -> None:
    own = replace(some(), ids=np.arange(ROWS) * 3 + 1)
    table = table_of(own)
    assert table.row_ids.tolist() == [1, 4, 7, 10, 13, 16, 19]
    assert table.asked == tuple(own.texts or ())
    assert table.wanted == tuple(own.answers or ())


def test_a_tokenizer_without_a_token_for_pictures_is_one_sentence() -> None:
    backbone = llava()
    inner = backbone.tokenizer

    class Lacking:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def __call__(self, text: Any, **more: Any) -> Any:
            return inner("w1" if text == "<image>" else text, **more)

    with pytest.raises(UserError, match="has no token 97 for pictures: add it, and save it anew"):
        tabulate(replace(backbone, tokenizer=Lacking()), some(), 64)


def test_what_is_described_is_the_language_model() -> None:
    backbone = llava()
    assert backbone.blocks == [f"model.language_model.layers.{i}" for i in range(3)]
    assert all(s.name.startswith("model.language_model.") for s in (*backbone.linears, *backbone.norms))
    assert backbone.module(CONNECTOR) is not None
    assert not backbone.heads


def test_prompts_are_shortened_to_what_a_picture_leaves_and_sentences_have_the_length_that_was_given() -> None:
    own = replace(some(4), answers=["w2"] * 4)
    short = replace(own, texts=["w1 w1"] * 4)
    width = int(plain_table(short, 40).widths.max())
    assert plain_table(short, width).notes == ()
    assert plain_table(short, width - 1).notes[0] == f"4 of 4 prompts are shortened to --max-length {width - 1}."
    long = replace(own, texts=["w1", "w1", *[" ".join(["w1"] * 90)] * 2])
    for given, most in ((20, 20), (1000, llava().max_length)):
        table = plain_table(long, given)
        assert all(most - 3 < width <= most for width in table.widths[2:].tolist())
        assert all((table.ids[a:b] == 97).sum() == 4 for a, b in itertools.pairwise(table.offsets))
        assert table.notes == (f"2 of 4 prompts are shortened to --max-length {most}.",)
    with pytest.raises(UserError, match="4 of 4 answers are longer than --max-length 12 leaves room for"):
        plain_table(replace(own, answers=[" ".join(["w1"] * 30)] * 4), 12)


def test_a_row_whose_picture_is_not_seen_is_counted_in_a_note() -> None:
    table = plain_table(replace(some(4), texts=["w1"] * 4, answers=["w2"] * 3 + [" ".join(["w2"] * 9)]), 14)
    assert [int((table.ids[a:b] == 97).sum()) for a, b in itertools.pairwise(table.offsets)] == [4, 4, 4, 0]
    assert table.notes[-1] == "1 of 4 rows are shortened so far that their pictures are not seen: give a larger --max-length."


def test_too_little_room_for_a_picture_and_a_question() -> None:
    with pytest.raises(UserError, match="a picture has 4 tokens, so that --max-length 5 leaves none for a question"):
        table_of(some(), 5)


def test_questions_without_pictures_are_for_another_model() -> None:
    with pytest.raises(UserError, match=r"the data are texts, but backbone .* reads texts and images"):
        tabulate(llava(), answered(rows(4)), 32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on files, which lie in ``questions`` beside it."""
    import weft

    where = tmp_path_factory.mktemp("pictured")
    folder = where / "questions"
    asked_about(folder, two_questions_each(30))
    return weft.run(
        data=str(folder), method="fedit", model=llava().path, task="generation", template="plain", clients=2, partition="iid",
        rounds=1, max_length=40, samples=20, new_tokens=2, precision="float32", baselines=[], quiet=True, runs=where / "runs",
    )  # fmt: skip


def test_a_run_on_files_is_exported_in_our_own_form_and_scored_the_same(finished: Any) -> None:
    """Whoever loads the base without Weft would give it pictures, and not what the tower makes of them."""
    import weft
    from weft.export import load as load_model

    assert finished.adapter is not None
    assert {path.name for path in finished.adapter.iterdir()} >= {"weft_adapter.safetensors", "weft.json"}
    source = weft.data.load(str(finished.folder.parents[1] / "questions"), wanted="answers")
    model = load_model(finished.adapter)
    assert len(model.observe(source.train)) == len(source.train)


def asked(run: Any) -> list[tuple[str, str, str]]:
    """Question, picture and text of what was written for the test of the run."""
    import weft

    folder = run.folder.parents[1] / "questions"
    source = weft.data.load(str(folder), wanted="answers")
    question = dict(zip(source.train.ids.tolist(), source.train.texts or (), strict=True))
    lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    # two rows of the file are about one picture
    return [(question[one["row"]], str(folder / f"{one['row'] // 2}.png"), one["text"]) for one in lines if one["client"] is None]


def test_a_trained_model_writes_of_a_question_and_a_picture_what_the_run_wrote(
    finished: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from weft.export import load as load_model

    rows = asked(finished)
    assert len({text for *_, text in rows}) > 1
    model = load_model(finished.folder, precision="float32")
    assert model.predict([(question, picture) for question, picture, _ in rows]) == [text for *_, text in rows]
    shuffled = model.predict([(question, rows[i - 1][1]) for i, (question, *_) in enumerate(rows)])
    assert shuffled != [text for *_, text in rows], "the pictures make a difference"
    given = [word for question, picture, _ in rows for word in (question, picture)]
    told = json.loads(weft_says(capsys, "predict", finished.folder, *given, "--precision", "float32", "--json").out)
    assert [(one["question"], one["picture"], one["text"]) for one in told] == rows
    shown = weft_says(capsys, "predict", finished.folder, *given[:2], "--precision", "float32").out
    assert given[0] in shown
    assert rows[0][2] in shown


def test_questions_without_pictures_and_chats_are_refused(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from weft.export import load as load_model

    refused(weft_says(capsys, "predict", finished.folder, "w1"), "each question and its picture in turn")
    refused(weft_says(capsys, "predict", finished.folder, "w1", "none.png"), "none.png does not exist")
    picture = next((finished.folder.parent.parent / "questions").glob("*.png"))
    swapped = weft_says(capsys, "predict", finished.folder, picture, "w1")
    refused(swapped, f"{picture} is a file, and stands where its question should", "each question before its picture")
    refused(weft_says(capsys, "chat", finished.folder), "asked about pictures, one question each: use weft predict")
    with pytest.raises(UserError, match="give a question and a picture of each row"):
        load_model(finished.folder).generate(["w1"])


def test_the_farewell_proposes_a_question_and_a_picture(finished: Any) -> None:
    from io import StringIO

    from rich.console import Console

    from weft.cli import plan
    from weft.runs.shelf import Shelf

    out = Console(file=StringIO(), width=500)
    plan.farewell(out, finished, Shelf())
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert f"Try it: weft predict {finished.folder} 'a question' picture.png" in said
