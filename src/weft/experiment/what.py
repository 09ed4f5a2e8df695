"""Settings of what is trained: method, backbone and task, and what is compared with it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from weft.experiment.declare import Group, Name, setting


def _apart(given: Any) -> Any:
    """Names that were typed in one word, joined by commas; the class in ``f1:CLASS`` may have commas of its own."""
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return given
    each = [[word] if "f1:" in word else word.split(",") for word in words]
    return [name.strip() for names in each for name in names if name.strip()]


Baseline = Literal["local", "central", "probe", "zero-shot"]


class What(Group):
    """What is trained."""

    title: ClassVar[str] = "What"

    method: str = setting("fedit", "Slug of a method: `weft methods` lists them.", flags=("-m",), everyday=True, common=True)
    parameters: dict[str, Any] = setting(
        {},
        "A method's own settings: `weft methods NAME` lists them.",
        "In a file: the table `[method]`.",
        option=False,
        common=True,
    )
    baseline: Baseline | None = setting(
        None,
        "Run this instead: `local` (each client alone), `central` (all rows in one place), `probe` (linear head), `zero-shot`.",
        "The first two have as many turns as the federation gives, `central` with the steps of all clients; `probe` is a linear "
        "head on the frozen backbone, federated; `zero-shot` is a CLIP, or a language model, as it is.",
    )
    baselines: Annotated[list[Baseline], Field(strict=False), AfterValidator(lambda given: list(dict.fromkeys(given)))] = setting(
        [], "Run these beside it, joined by commas; `none` for no comparison.", unset="none", everyday=True
    )
    model: Name = setting(
        "minilm",
        "Backbone: short name, hub id or local folder; several, joined by commas, are dealt to the clients in turn.",
        "Encoders of pictures joined by plus signs stand side by side as one: see [below](#encoders-side-by-side); a ViLT and a "
        "language model joined by one are [a VAuLT](#a-vilt-behind-a-language-model).",
        everyday=True,
        common=True,
    )
    task: Literal[
        "auto",
        "classification",
        "similarity",
        "fill",
        "tokens",
        "regression",
        "generation",
        "masked",
        "preference",
        "next-item",
        "several",
        "vqa",
    ] = setting(
        "auto",
        "What is predicted: `classification` (a linear head), `similarity` (a CLIP and class names), `fill` (a masked word), "
        "`tokens`, `regression`, `generation`, `masked`, `preference`, `next-item`, `several`, `vqa`.",
        "`fill` takes the class whose word a masked language model puts in the place of a mask, `tokens` gives each word a tag, "
        "`regression` each row a number, `generation` writes an answer to each prompt, `masked` finds hidden words, `preference` "
        "learns the better of two answers (DPO), `next-item` ranks what may come next in a sequence, `several` learns the tasks "
        "that a file of them names, `vqa` answers questions about pictures. `auto` is tokens where words are tagged, generation "
        "where rows hold prompts and answers, preference where they hold two answers, next-item where they are sequences of "
        "items, vqa where they are questions about pictures, fill where the method is of label words, masked where it is of "
        "hidden words, and similarity where there is a text tower, unless the method trains a head.",
        common=True,
    )
    metrics: Annotated[list[str], Field(strict=False), BeforeValidator(_apart)] = setting(
        [],
        "What is scored, joined by commas, the headline first: `accuracy`, `macro_f1`, `matthews`, `top5`, `f1:CLASS`.",
        "Of tags: `entity_f1`, `precision`, `recall`, `token_accuracy`, `macro_f1`, `f1:TYPE`; of numbers: "
        "`pearson`, `spearman`, `r2`, `mse`; of answers: `perplexity`, `token_accuracy`, `rouge_1`, `rouge_2`, `rouge_l`, "
        "`exact_match`, `token_f1`, `final_answer`, `choice_accuracy`, `iou`, `box_accuracy`, `bleu`, `chrf`; "
        "of preferences: `reward_accuracy`, `reward_margin`; of next items: `recall@K` and `ndcg@K`, of any K; "
        "of questions about pictures: `vqa_accuracy`, `accuracy`. "
        "One with the name of a class is given by itself. "
        "By default those that a set of the catalogue is reported in, such as `matthews` of `cola`.",
        unset="of the data, or usual for the task",
        common=True,
    )
    template: str = setting(
        "",
        "Generation: `chat`, `alpaca`, `plain`, or a file with `{instruction}` and `{output}`; similarity: the sentence around a "
        "class; fill: the one around a text.",
        "`chat` is the tokenizer's own template; a file may also have `{input}`. By default chat where the tokenizer has one, "
        "alpaca for other decoders, plain for encoder-decoders; `a photo of a {}.` for similarity; and `{} It was {mask}.` for "
        "fill, where `{pair}` is the second text of a pair.",
        unset="as suits the backbone",
        common=True,
        when=("task", ["generation", "preference", "similarity", "fill"]),
    )
    label_words: str = setting(
        "",
        "Fill: the words that stand for classes, as `CLASS=word+word,CLASS=word`.",
        "Each is one token of the backbone; the logits of several words of a class are averaged.",
        unset="the names of the classes",
        common=True,
        when=("task", ["fill"]),
    )
    calibrate: bool = setting(
        False,
        "Fill: take off the logits of an empty text, so that words that are usual there gain nothing.",
        common=True,
        when=("task", ["fill"]),
    )
    blocks: str = setting(
        "",
        "Path of the backbone's list of blocks, if `weft models NAME` shows a wrong one.",
        "See [below](#backbones).",
        unset="guessed",
        common=True,
    )
    roles: str = setting(
        "",
        "Roles of its linear layers by the ends of their names, as `Wqkv=q+k+v,wo=o,skip=none`.",
        "See [below](#backbones).",
        unset="guessed",
        common=True,
    )
    head: str = setting(
        "", "Names of the modules that make its head, joined by commas.", "See [below](#backbones).", unset="guessed", common=True
    )
    recipes: bool = setting(True, "Use recipes for backbone and data.", everyday=True)
