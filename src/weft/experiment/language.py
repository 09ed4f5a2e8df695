"""Settings of generation: what an answer costs in training, and how text is written when a model is scored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weft.experiment.declare import Count, Group, Whole, setting


class Language(Group):
    """Of language models alone."""

    title: ClassVar[str] = "Language models"

    answer_loss: Literal["tokens", "examples"] = setting(
        "tokens",
        "Generation: a step's loss is the mean over its answer `tokens`, or over `examples`.",
        "The former is transformers' own, and what most papers' code does; in the latter each example weighs the same.",
        common=True,
        when=("task", ["generation"]),
    )
    preference_beta: Annotated[float, Field(gt=0, strict=False)] = setting(
        0.1,
        "Preference: beta of DPO; the larger, the closer a model stays to the one that training starts from.",
        "OpenFedLLM uses 0.1.",
        common=True,
        when=("task", ["preference"]),
    )
    samples: Whole = setting(
        32,
        "Generation: rows of an evaluation that text is written for; 0 for none.",
        everyday=True,
        common=True,
        when=("task", ["generation"]),
    )
    new_tokens: Count = setting(
        64, "Generation: longest text that is written, in tokens.", everyday=True, common=True, when=("task", ["generation"])
    )
    beams: Count = setting(
        1, "Generation: beams of the search; 1 takes the likeliest token each time.", common=True, when=("task", ["generation"])
    )
    temperature: Annotated[float, Field(ge=0, strict=False)] = setting(
        0.0,
        "Generation: of sampling; 0 samples nothing.",
        "Each row draws from a stream of its own.",
        common=True,
        when=("task", ["generation"]),
    )
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] = setting(
        1.0, "Generation: sample among the likeliest tokens that have this share together.", common=True, when=("temperature", [])
    )
