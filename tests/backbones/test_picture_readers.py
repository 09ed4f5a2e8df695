"""PaliGemma and Qwen-VL: the same logits, losses and texts as transformers', with every picture put through the tower once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache

import tiny
from command_line import weft as weft_says
from picture_folders import asked_about, two_questions_each
from weaving import batch_of, pack_of, values_for
from weft.adaptation.connector import ConnectorAdapter, copied
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.picture_reader import FAMILIES, READERS
from weft.backbones.pictured_replies import PicturedReplies
from weft.backbones.pixels import pixels
from weft.backbones.run_table import tabulate
from weft.data.rows import BOTH, Rows
from weft.errors import UserError
from weft.federation import generating
from weft.methods import FedDAT, FedIT, Pilot
from weft.methods.registry import build
from weft.tasks.generation_settings import Decoding
from weft.tasks.outputs import average
from weft.testing import models
from weft.testing.data import answered, rows

ROWS = 7
TOKEN = 97
QWEN = ("qwen2_vl", "qwen2_5_vl")
KINDS = ("paligemma", *QWEN)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def backbone_of(kind: str, **overrides: Any) -> Backbone:
    return tiny.backbone(kind, checkpoint="lm", task="generation", classes=1, **overrides)


def some(n: int = ROWS) -> Rows:
    return answered(rows(n, reads=BOTH))


def table_of(backbone: Backbone, own: Rows, most: int = 64) -> PicturedReplies:
    """In a template without words of its own."""
    template = backbone.options.template or "plain"
    found = tabulate(replace(backbone, options=replace(backbone.options, template=template)), own, most)
    assert isinstance(found, PicturedReplies)
    return found


def plain(backbone: Backbone) -> Any:
    """Transformers' own model."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(backbone.path, dtype=torch.float64).eval()


def theirs(
    backbone: Backbone, own: Rows, index: np.ndarray, inputs: Mapping[str, Tensor], begins: np.ndarray | None = None
) -> dict[str, Tensor]:
    """The inputs of transformers' own model: pictures, by its own processor, instead of what the tower makes of them.

    Args:
        begins: [m], where answers do; None = there are none.
    """
    assert own.images is not None
    found = {n: inputs[n] for n in ("input_ids", "attention_mask")}
    if backbone.kind in QWEN:
        from transformers import Qwen2VLImageProcessorPil

        processor = Qwen2VLImageProcessorPil.from_pretrained(backbone.path)
        made = processor(images=[own.images[i] for i in index.tolist()], return_tensors="pt")
        found |= {n: made[n] for n in ("pixel_values", "image_grid_thw")}
        found["mm_token_type_ids"] = (inputs["input_ids"] == TOKEN).int()
    else:
        alone = Rows(images=own.images, labels=np.zeros(len(own), np.int64))
        found |= pixels(backbone, alone).collate(index)
        behind = torch.zeros_like(found["input_ids"])
        if begins is not None:
            behind = (torch.arange(behind.shape[1]) >= torch.from_numpy(begins)[:, None]) * found["attention_mask"]
        found["token_type_ids"] = behind
    return found | {"pixel_values": found["pixel_values"].double()}


# what transformers computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_and_losses_are_those_of_transformers(kind: str) -> None:
    own, backbone, index = some(), backbone_of(kind), np.arange(ROWS)
    table = table_of(backbone, own)
    inputs = table.collate(index)
    real, wanted = inputs["attention_mask"].bool(), table.places(index)
    assert not real.all(), "rows are padded"
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 1:][wanted[:, :-1]] = inputs["input_ids"][:, 1:][wanted[:, :-1]]
    out = plain(backbone)(**theirs(backbone, own, index, inputs, table.begins[index]), labels=labels)
    mine = backbone.model(**inputs).logits
    torch.testing.assert_close(mine[real], out.logits[real], **EXACT)
    targets, mask = table.targets(index)
    torch.testing.assert_close(F.cross_entropy(mine[wanted].float(), targets[mask]), out.loss)  # which is in single precision


@torch.no_grad()
def test_a_paligemma_on_gemma_2_has_windows_and_a_soft_cap() -> None:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    from weft.backbones.paligemma import PaliGemmaReader

    shapes = models.WRITERS
    text = shapes["gemma2"] | {"model_type": "gemma2", "sliding_window": 4, "final_logit_softcapping": 0.5}
    config = PaliGemmaConfig(**shapes["paligemma"] | {"text_config": text})
    model = PaliGemmaForConditionalGeneration(config).double().eval()
    tiny.scramble(model)
    ids = torch.tensor([[TOKEN] * 4 + [1, 5, 6, 7, 8, 9, 2], [TOKEN] * 4 + [1, 9, 8, 7, 2, 0, 0]])
    given = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * 11, [1] * 9 + [0, 0]]),
        "token_type_ids": torch.tensor([[0] * 8 + [1] * 3, [0] * 7 + [1] * 2 + [0] * 2]),
    }
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = model(**given, pixel_values=pictures).logits
    model.__class__ = PaliGemmaReader
    found = model(**given, image_features=model.features(pictures)).logits  # type: ignore[operator]
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], **EXACT)
    assert found.abs().max() <= 0.5


@torch.no_grad()
def test_windows_of_a_qwen_2_5_do_not_change_the_order_of_a_picture_s_tokens() -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from weft.backbones.qwen_vl import Qwen25VLReader

    shapes = models.WRITERS["qwen2_5_vl"]
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(**shapes | {"vision_config": shapes["vision_config"] | {"window_size": 8}})
    )
    model = model.double().eval()
    tiny.scramble(model)
    pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.__class__ = Qwen25VLReader
    patches = pictures.view(2, 3, 4, 2, 2, 4, 2, 2).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(128, 3, 1, 4)
    grid = torch.tensor([[1, 8, 8]] * 2)
    wanted = model.model.visual(patches.expand(-1, -1, 2, -1).flatten(1), grid_thw=grid).pooler_output
    found = model.connected(model.features(pictures))  # type: ignore[operator]
    torch.testing.assert_close(found.flatten(0, 1), wanted, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_that_transformers_writes(kind: str) -> None:
    run = tiny.federation(FedIT(rank=2), kind, task="generation")
    backbone, own, index = run.bench.backbone, some(), np.array([2, 4, 6])
    pack, table = run.pack([0]), table_of(run.bench.backbone, own)
    pack.bench = replace(pack.bench, table=table)
    (found,) = generating.write(pack, run.method.forward, [index], Decoding(new_tokens=6))
    prompts = table.prompts(index)
    assert not prompts["attention_mask"].all(), "prompts are padded"
    width = prompts["input_ids"].shape[1]
    with torch.no_grad():
        written = plain(backbone).generate(
            **theirs(backbone, own, index, prompts), max_new_tokens=6, do_sample=False, pad_token_id=2, eos_token_id=2
        )[:, width:]
    assert found == [text.strip() for text in backbone.tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert any(found)
    pack.bench = replace(pack.bench, table=replace(table, features=torch.zeros_like(table.features)))
    (unseen,) = generating.write(pack, run.method.forward, [index], Decoding(new_tokens=6))
    assert found != unseen, "a picture matters"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_row_without_a_picture_is_read_as_text_beside_others_that_have_one(kind: str) -> None:
    own, backbone, index = some(), backbone_of(kind), np.array([2, 4])
    table, model = table_of(backbone, own), plain(backbone)
    inputs = table.collate(index)
    given = {n: t.clone() for n, t in inputs.items()}
    given["input_ids"][1][given["input_ids"][1] == TOKEN] = 5
    found = backbone.model(**given).logits
    first, second = (inputs["attention_mask"][i].bool() for i in range(2))
    torch.testing.assert_close(found[0][first], backbone.model(**inputs).logits[0][first], **EXACT)
    alone = {n: t[1:] for n, t in given.items() if n != "image_features"}
    torch.testing.assert_close(found[1][second], model(**alone).logits[0][second], **EXACT)
    apart = backbone.model(**table.collate(np.array([2, -1, 4]))).logits
    torch.testing.assert_close(apart[[0, 2]], backbone.model(**inputs).logits, **EXACT)


# federations --------------------------------------------------------------------------------------------------------------


PREFIXES = build("fedavg", {"tune.kind": "prefix", "tune.tokens": 2})


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_prefixes_are_keys_and_values_of_earlier_tokens(kind: str) -> None:
    """Not of PaliGemma: behind earlier tokens its own forward takes none for a prompt."""
    parts: dict[str, Part] = {"prefix": Prefix(2)}
    bench, index = tiny.federation(FedIT(rank=2), kind, task="generation").bench, np.array([[0, 3]])
    values = values_for(bench, parts, seed=0, scale=0.5)
    found = pack_of(bench, [parts], [values])(batch_of(bench, index)).logits
    cache, model = DynamicCache(), bench.backbone.model
    for block, site in enumerate(bench.backbone.attentions):
        both = (values[f"prefix/{site.name}/{role}"].unflatten(-1, (2, -1)).transpose(0, 1) for role in ("key", "value"))
        cache.update(*(x.expand(2, -1, -1, -1).contiguous() for x in both), block)
    assert isinstance(bench.table, PicturedReplies)
    inputs = bench.table.collate(index[0])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    places = model.positions(ids, mask)
    wanted = model(
        **inputs | {"attention_mask": F.pad(mask, (2, 0), value=1)},
        position_ids=torch.arange(ids.shape[1])[None] if places is None else places,
        past_key_values=cache,
    ).logits[bench.table.places(index[0])]
    torch.testing.assert_close(found.reshape_as(wanted), wanted, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [FedIT(rank=2), FedDAT(reduction=4), PREFIXES], ids=["lora", "adapters", "prefixes"])
def test_packs_are_their_clients_one_by_one(kind: str, method: Any) -> None:
    one, many = (tiny.federation(method, kind, task="generation", pack=k, rounds=2).run() for k in (1, 6))
    assert one.server.shared
    for name, value in one.server.shared.items():
        assert isinstance(value, Tensor)
        torch.testing.assert_close(many.server.shared[name], value, rtol=1e-9, atol=1e-9)
    assert not list(models.hooks(many.bench.backbone.model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_is_no_single_pass_sees_the_picture_of_each_next_token(kind: str) -> None:
    run = tiny.federation(FedIT(rank=2), kind, task="generation")
    pack, index = run.pack([0]), np.array([2, 4, 6])
    pack.bench = replace(pack.bench, table=table_of(run.bench.backbone, some()))

    def twice(p: Any, b: Any) -> Any:
        return average([p(b), p(b)])

    for decoding in (Decoding(new_tokens=4), Decoding(new_tokens=4, beams=2)):
        once = generating.write(pack, run.method.forward, [index], decoding)
        assert any(once[0])
        assert generating.write(pack, twice, [index], decoding) == once


@pytest.mark.parametrize("kind", KINDS)
def test_the_connector_is_a_place_for_parts_which_begin_as_it(kind: str) -> None:
    backbone = backbone_of(kind)
    (site,) = ConnectorAdapter().sites(backbone)
    module = backbone.module(site.name)
    x = torch.randn(1, 5, site.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = {role: v.double().unsqueeze(0) for role, v in copied(backbone, site).items()}
    assert set(w) == set(dict(module.named_parameters()))
    found = ConnectorAdapter().apply(module, w, x, x)
    assert found.shape == (1, 5, site.d_out)
    torch.testing.assert_close(found, module(x), **EXACT)
    halved = ConnectorAdapter(0.5).tensors(backbone, site)
    last = [role for role, init in halved.items() if not torch.equal(init.draw(0, "x"), copied(backbone, site)[role])]
    assert len({role.rpartition(".")[0] for role in last}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_pilot_trains_the_connector_in_packs_as_one_by_one(kind: str) -> None:
    def run(pack: int) -> dict[str, Tensor]:
        facts = [{"domain": domain} for domain in "abab"]
        made = tiny.federation(Pilot(rank=2), kind, task="generation", rounds=3, facts=facts, sizes=(3, 2, 4, 3), pack=pack)
        made.run()
        return dict(made.server.memo)

    one, many, backbone = run(1), run(4), backbone_of(kind)
    begun = copied(backbone, backbone.check_connector())
    assert set(one) == {f"{task}|{role}" for task in range(2) for role in begun}
    for n, value in one.items():
        assert (value - begun[n.partition("|")[2]].double()).abs().max() > 1e-6
        torch.testing.assert_close(many[n], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_described_is_the_language_model(kind: str) -> None:
    backbone = backbone_of(kind)
    assert backbone.reads == BOTH
    assert backbone.picture_tokens == 4
    assert backbone.blocks == [f"model.language_model.layers.{i}" for i in range(3)]
    assert all(s.name.startswith("model.language_model.") for s in (*backbone.linears, *backbone.norms))
    assert not backbone.heads


# prompts ------------------------------------------------------------------------------------------------------------------


def paligemma_processor(path: str) -> Any:
    """Of transformers, with a tokenizer that knows line breaks."""
    from transformers import AutoTokenizer, PaliGemmaProcessor, SiglipImageProcessorPil

    words = AutoTokenizer.from_pretrained(path)
    words.add_tokens(["\n"])
    pictures = SiglipImageProcessorPil(size={"height": 8, "width": 8}, image_seq_length=4)
    pictures.image_seq_length = 4
    return PaliGemmaProcessor(pictures, words)


def test_a_prompt_of_paligemma_is_laid_out_as_its_processor_does() -> None:
    backbone, own = backbone_of("paligemma"), some()
    assert own.texts is not None
    assert own.answers is not None
    own = replace(own, texts=["", *own.texts[1:]])
    processor = paligemma_processor(backbone.path)
    table = table_of(replace(backbone, tokenizer=processor.tokenizer), own)
    for i, (text, answer) in enumerate(zip(own.texts or (), own.answers or (), strict=True)):
        wanted = processor(images=Image.new("RGB", (8, 8)), text=f"<image>{text}", suffix=answer)
        row = slice(table.offsets[i], table.offsets[i + 1])
        assert table.ids[row].tolist() == wanted["input_ids"][0]
        assert table.types is not None
        assert table.types[row].tolist() == wanted["token_type_ids"][0]
        assert table.answer[row].tolist() == [one == 1 for one in wanted["token_type_ids"][0]]


CHAT = (
    "{% for message in messages %}w90 {{ message['role'] }}\nw91 {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}<start><image><end>{% else %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}w92{% endif %}"
)


def test_a_prompt_of_qwen_vl_is_that_of_its_chat_template() -> None:
    from transformers import AutoTokenizer

    backbone, own = backbone_of("qwen2_vl"), some()
    words = AutoTokenizer.from_pretrained(backbone.path)
    words.chat_template = CHAT
    found = tabulate(replace(backbone, tokenizer=words), own, 64)
    assert isinstance(found, PicturedReplies)
    for i, text in enumerate(own.texts or ()):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        said = words.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        ).replace("<image>", "<image>" * 4)
        assert found.ids[found.offsets[i] :][: found.begins[i]].tolist() == words(said, add_special_tokens=False)["input_ids"]


def test_a_template_of_one_s_own_has_paligemma_s_picture_in_front() -> None:
    backbone, own = backbone_of("paligemma"), some()
    other = replace(backbone, options=replace(backbone.options, template="w7 {instruction} w8 {output}"))
    found = tabulate(other, own, 64)
    assert isinstance(found, PicturedReplies)
    for i in range(ROWS):
        prompt = found.ids[found.offsets[i] :][: found.begins[i]].tolist()
        assert prompt[:6] == [TOKEN] * 4 + backbone.tokenizer("w7")["input_ids"]
        assert prompt[-1:] == backbone.tokenizer("w8", add_special_tokens=False)["input_ids"]
        assert prompt.count(TOKEN) == 4


def test_rows_of_paligemma_are_no_longer_than_asked_for_and_keep_their_pictures() -> None:
    own = replace(some(4), texts=[" ".join(["w1"] * 90)] * 4, answers=["w2"] * 4)
    table = table_of(backbone_of("paligemma"), own, 20)
    assert all(16 < width <= 20 for width in table.widths.tolist())
    assert (table.ids == TOKEN).sum() == 16
    assert table.notes == ("4 of 4 prompts are shortened to --max-length 20.",)


def test_no_rows_make_a_table_without_rows() -> None:
    own = some(2)
    assert own.images is not None
    none = Rows(texts=[], answers=[], images=own.images.take([]), ids=np.zeros(0, np.int64))
    assert len(table_of(backbone_of("paligemma"), none)) == 0


@pytest.mark.parametrize("kind", QWEN)
def test_positions_are_those_of_transformers_wherever_rows_are_padded(kind: str) -> None:
    backbone = backbone_of(kind)
    table, model = table_of(backbone, some()), plain(backbone).model
    index = np.array([2, 4, 6])
    for inputs in (table.collate(index), table.prompts(index)):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        wanted, _ = model.get_rope_index(
            ids, mm_token_type_ids=(ids == TOKEN).int(), image_grid_thw=torch.tensor([[1, 4, 4]] * 3), attention_mask=mask
        )
        found = backbone.model.positions(ids, mask)
        assert torch.equal(found[:, mask.bool()], wanted[:, mask.bool()])


def test_pictures_of_a_qwen_are_of_448_pixels_unless_its_processor_wants_fewer_or_more(tmp_path: Path) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil

    from weft.backbones.qwen_vl import QwenVLReader

    config = Qwen2VLConfig()
    for least, most, side in (
        (56 * 56, 28 * 28 * 1280, 448),
        (56 * 56, 300 * 300, 280),
        (600 * 600, 900 * 900, 588),
        (2 * 2, 9 * 9, 28),
    ):
        Qwen2VLImageProcessorPil(size={"shortest_edge": least, "longest_edge": most}).save_pretrained(tmp_path)
        made = QwenVLReader.processor(str(tmp_path), config, False)
        picture = made(images=[np.zeros((30, 90, 3), np.uint8)], return_tensors="np")["pixel_values"]
        assert picture.shape == (1, 3, side, side)


def test_a_qwen_s_tokenizer_without_tokens_around_a_picture_is_one_sentence() -> None:
    backbone = backbone_of("qwen2_vl")

    class Lacking:
        def __getattr__(self, name: str) -> Any:
            return getattr(backbone.tokenizer, name)

        def __call__(self, text: Any, **more: Any) -> Any:
            return backbone.tokenizer(text, **more)

        def convert_ids_to_tokens(self, ids: Any) -> Any:
            return [None] * 2 if isinstance(ids, list) else backbone.tokenizer.convert_ids_to_tokens(ids)

    with pytest.raises(UserError, match="has no tokens that begin and end a picture: add them"):
        tabulate(replace(backbone, tokenizer=Lacking()), some(), 64)


@torch.no_grad()
def test_where_a_language_model_multiplies_all_that_enters_it_a_picture_is_divided_by_as_much() -> None:
    """As releases of transformers have it whose embeddings do not multiply words by themselves."""
    model = backbone_of("paligemma").model
    from weft.backbones.paligemma import PaliGemmaReader

    other = PaliGemmaReader(model.config).double().eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 4, 24, dtype=torch.float64)
    torch.testing.assert_close(other.connected(x), model.connected(x))
    other.set_input_embeddings(nn.Embedding(100, 32))
    torch.testing.assert_close(other.connected(x), model.connected(x) / 32**0.5)


# others are refused -------------------------------------------------------------------------------------------------------


def test_other_models_that_write_about_pictures_are_told_which_are_known(tmp_path: Path) -> None:
    from transformers import Idefics3Config

    Idefics3Config().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"\(idefics3\) generates no text: choose .* or, for questions about pictures, a LLaVA"
    ) as e:
        load(str(tmp_path), device="cpu", task="generation")
    assert FAMILIES in str(e.value)
    assert len(str(e.value).split(". ")) == 1


def test_pictures_for_a_model_of_texts_are_refused_with_the_families_that_read_them() -> None:
    texts = tiny.backbone("llama", checkpoint="lm", task="generation", classes=1)
    with pytest.raises(UserError, match=r"the data are texts and images, but .* choose another --model, such as") as e:
        tabulate(texts, some(), 64)
    assert FAMILIES in str(e.value)


def test_every_family_that_is_known_is_named() -> None:
    told = FAMILIES.lower().replace("-", "").replace(".", "")
    assert all(kind.replace("_", "") in told for kind in READERS)


# runs ---------------------------------------------------------------------------------------------------------------------


def saved_as_its_makers_do(kind: str, path: Path) -> Path:
    """A folder with a processor of both, as transformers 5 saves it, in which that of pictures is one entry."""
    shutil.copytree(backbone_of(kind).path, path)
    alone = path / "preprocessor_config.json"
    (path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
    alone.unlink()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_files_writes_and_predicts_what_it_wrote(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import weft

    folder = tmp_path / "questions"
    question = asked_about(folder, two_questions_each(16), (12, 9))
    run = weft.run(
        data=str(folder), method="fedit", model=str(saved_as_its_makers_do(kind, tmp_path / "model")), task="generation",
        clients=2, partition="iid", rounds=1, max_length=50, samples=8, new_tokens=2, precision="float32", baselines=[],
        quiet=True, runs=tmp_path / "runs", template="" if kind == "paligemma" else "plain",
    )  # fmt: skip
    assert run.adapter is not None
    wrote = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    asked = [(question[o["row"]], str(folder / f"{o['row'] // 2}.png"), o["text"]) for o in wrote if o["client"] is None]
    assert asked
    given = [word for text, picture, _ in asked for word in (text, picture)]
    told = json.loads(weft_says(capsys, "predict", run.folder, *given, "--precision", "float32", "--json").out)
    assert [(one["question"], one["picture"], one["text"]) for one in told] == asked
