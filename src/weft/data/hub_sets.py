"""The sets known by a short name: of texts and of pictures with classes, of texts to generate from, of answers to compare, of
questions about pictures, of sequences. Nothing heavy is imported here: ``weft data`` lists them at once.

Ids, columns and label codes were taken from the sets' own documents and from memory, without a connection to
the hub, and ids move: each is a default, and any other set can be named as ``owner/name`` or
``owner/name:config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TEXT = "text classification"
PAIR = "text pair classification"
IMAGE = "image classification"
GENERATION = "generation"
PREFERENCE = "preference"
ITEMS = "next item"
QUESTIONS = "visual questions"
SEEN = "not verified against the hub (id and columns seen in public documents)"
VAL_ONLY = (
    "not verified against the hub (splits and columns from memory); it has no training rows, so that those of its val split are "
    "trained on, and those of testA, people, are tested on"
)
PICTURES_SEEN = "not verified against the hub (id and columns seen in public documents; its pictures were never loaded)"
ELSEWHERE = "not verified against the hub, where no copy is known: give --data its file or folder"
RECALLED = "not verified against the hub (from memory)"


@dataclass(frozen=True)
class Entry:
    """One set: what to tell a person, then how to load it."""

    name: str
    hub_id: str | None
    config: str | None
    kind: str
    classes: int
    rows: Mapping[str, int]  # split -> rows, about
    client_key: str | None
    licence: str
    verified: str
    offline: bool = False
    image: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    train: str = "train"  # the split to train on
    test: str = "test"  # the split to test on
    validation: str | None = None
    label_names: Mapping[int, str] | None = None  # for label codes that the set itself doesn't name
    renamed: Mapping[str, str] = field(default_factory=dict)  # names of classes that the set misspells
    one_of: tuple[str, ...] | None = None  # rows that agree in these columns are frames of one clip: the middle one is used
    configs: tuple[str, ...] = field(default=())  # several configs, each the rows of one natural client
    metrics: tuple[str, ...] = ()  # that papers report it in, the headline first
    numbers: bool = False  # its label is a number to predict
    parallel: bool = False  # row i of every config is the same example (translations): train on it in one config only


def _glue(
    config: str,
    kind: str,
    rows: tuple[int, int],
    texts: tuple[str, str | None],
    names: tuple[str, ...],
    metrics: tuple[str, ...] = (),
) -> Entry:
    """GLUE hides its test labels (all -1), so the validation split is the test set of every paper."""
    split = "validation_matched" if config == "mnli" else "validation"
    return Entry(
        name=config,
        hub_id="nyu-mll/glue",
        config=config,
        kind=kind,
        classes=len(names),
        rows={"train": rows[0], "test": rows[1]},
        client_key=None,
        licence="GLUE: per task, research",
        verified=SEEN,
        text=texts[0],
        pair=texts[1],
        label="label",
        test=split,
        label_names=dict(enumerate(names)),
        metrics=metrics,
    )


def _pictures(
    name: str,
    hub_id: str | None,
    classes: int,
    rows: Mapping[str, int],
    licence: str,
    *,
    verified: str = PICTURES_SEEN,
    client_key: str | None = None,
    config: str | None = None,
    **columns: Any,
) -> Entry:
    """A set of pictures; most call their columns ``image`` and ``label``."""
    own = {"image": "image", "label": "label"} | columns
    return Entry(name, hub_id, config, IMAGE, classes, rows, client_key, licence, verified, **own)


def _answers(
    name: str,
    hub_id: str | None,
    columns: tuple[str | None, str | None, str],
    rows: Mapping[str, int],
    licence: str,
    *,
    config: str | None = None,
    client_key: str | None = None,
    verified: str = SEEN,
    metrics: tuple[str, ...] = ("perplexity", "rouge_l"),
    configs: tuple[str, ...] = (),
) -> Entry:
    """A set to generate from; its columns are what is asked, an input beside it, and the answer (or the chats)."""
    own: dict[str, Any] = dict(zip(("text", "pair", "label"), columns, strict=True))
    return Entry(
        name, hub_id, config, GENERATION, 1, rows, client_key, licence, verified, metrics=metrics, configs=configs, **own
    )


def _questions(
    name: str,
    hub_id: str | None,
    classes: int,
    rows: Mapping[str, int],
    licence: str,
    *,
    label: str = "answer",
    client_key: str | None = None,
    verified: str = PICTURES_SEEN,
    **columns: Any,
) -> Entry:
    """A set of questions about pictures; ``exact_match`` is of answers that are written.

    Args:
        classes: answers that there are, of several people's the most frequent ones, see :mod:`weft.data.questions`; about.
    """
    own = {"image": "image", "text": "question", "label": label} | columns
    metrics = ("vqa_accuracy", "accuracy", "exact_match", "perplexity")
    return Entry(name, hub_id, None, QUESTIONS, classes, rows, client_key, licence, verified, metrics=metrics, **own)


NLI = ("entailment", "neutral", "contradiction")
XNLI_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
MASAKHANEWS_LANGUAGES = (
    "amh", "eng", "fra", "hau", "ibo", "lin", "lug", "orm", "pcm", "run", "sna", "som", "swa", "tir",
    "xho", "yor",
)  # fmt: skip

MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus",
)  # fmt: skip
OPUS_PAIRS = ("en-es", "en-fr", "en-it", "en-ru", "en-zh")  # of a hundred; the others are named as Helsinki-NLP/opus-100:de-en

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "pydocs", None, None, TEXT, 9, {"train": 6_000, "unseen": 600}, "module", "PSF-2.0",
        "read from the standard library of the Python that runs Weft", offline=True,
    ),
    Entry(
        "docstrings", None, None, GENERATION, 1, {"train": 4_600, "unseen": 430}, "module", "PSF-2.0",
        "read from the standard library of the Python that runs Weft", offline=True, metrics=("perplexity", "rouge_l"),
    ),
    Entry(
        "docstring_preferences", None, None, PREFERENCE, 1, {"train": 4_600, "unseen": 430}, "module", "PSF-2.0",
        "read from the standard library of the Python that runs Weft", offline=True,
    ),
    Entry(
        "shops", None, None, ITEMS, 356, {"train": 2_129, "validation": 420, "test": 420}, "domain", "none needed: drawn here",
        "drawn by Weft: what customers of two shops take", offline=True,
    ),
    Entry(
        "glyphs", None, None, IMAGE, 36, {"train": 3_456, "unseen": 576}, "style", "none needed: drawn here, from free fonts",
        "drawn from the fonts that matplotlib ships", offline=True,
    ),
    Entry(
        "glyph_questions", None, None, QUESTIONS, 24, {"train": 3_840, "test": 960, "unseen": 800}, "type",
        "none needed: drawn here, from free fonts", "drawn from the fonts that matplotlib ships", offline=True,
    ),
    Entry(
        "glyph_boxes", None, None, GENERATION, 1, {"train": 960, "test": 240, "unseen": 200}, "style",
        "none needed: drawn here, from free fonts", "drawn from the fonts that matplotlib ships", offline=True, image="image",
        metrics=("box_accuracy", "iou", "perplexity"),
    ),
    Entry(
        "drawings", None, None, IMAGE, 20, {"train": 2_400, "unseen": 400}, "domain", "none needed: drawn here",
        "drawn from polygons that Weft has", offline=True,
    ),
    Entry(
        "digits", None, None, IMAGE, 10, {"train": 1_797}, None, "CC BY 4.0",
        "handwritten digits that scikit-learn ships", offline=True,
    ),
    Entry(
        "20newsgroups", "SetFit/20_newsgroups", None, TEXT, 20, {"train": 11_314, "test": 7_532}, None,
        "none stated", SEEN, text="text", label="label",
    ),
    Entry(
        "ag_news", "fancyzhx/ag_news", None, TEXT, 4, {"train": 120_000, "test": 7_600}, None,
        "research, non-commercial", SEEN, text="text", label="label",
        label_names={0: "World", 1: "Sports", 2: "Business", 3: "Sci/Tech"},
    ),
    _glue("cola", TEXT, (8_551, 1_043), ("sentence", None), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    Entry(
        "imdb", "stanfordnlp/imdb", None, TEXT, 2, {"train": 25_000, "test": 25_000}, None,
        "none stated", RECALLED, text="text", label="label", label_names={0: "negative", 1: "positive"},
    ),
    Entry(
        "masakhanews", "masakhane/masakhanews", None, TEXT, 7,
        {"train": 22_058, "validation": 3_152, "test": 6_242}, "lang",
        "AFL-3.0", SEEN, text="text", validation="validation", configs=MASAKHANEWS_LANGUAGES,
    ),
    _glue("mnli", PAIR, (392_702, 9_815), ("premise", "hypothesis"), NLI),
    _glue(
        "mrpc", PAIR, (3_668, 408), ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1:equivalent")
    ),
    Entry(
        "news_category", "heegyu/news-category-dataset", None, TEXT, 42, {"train": 209_527}, None,
        "CC0", RECALLED, text="headline", label="category",
    ),
    _glue("qnli", PAIR, (104_743, 5_463), ("question", "sentence"), ("entailment", "not_entailment")),
    _glue(
        "qqp", PAIR, (363_846, 40_430), ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1:duplicate")
    ),
    _glue("rte", PAIR, (2_490, 277), ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    Entry(
        "semeval2010", "SemEvalWorkshop/sem_eval_2010_task_8", None, TEXT, 19,
        {"train": 8_000, "test": 2_717}, None, "unknown", SEEN, text="sentence", label="relation",
    ),
    Entry(
        "sentiment140", "stanfordnlp/sentiment140", None, TEXT, 2, {"train": 1_600_000, "test": 498}, "user",
        "none stated, research", SEEN, text="text", label="sentiment",
        label_names={0: "negative", 4: "positive"},
    ),
    _glue("sst2", TEXT, (67_349, 872), ("sentence", None), ("negative", "positive")),
    replace(
        _glue("stsb", PAIR, (5_749, 1_500), ("sentence1", "sentence2"), ("similarity",), ("pearson", "spearman")),
        label_names=None, numbers=True,
    ),
    _glue("wnli", PAIR, (635, 71), ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    Entry(
        "xnli", "facebook/xnli", None, PAIR, 3,
        {"train": 392_702, "validation": 37_350, "test": 75_150}, "lang",
        "CC BY-NC 4.0", SEEN, text="premise", pair="hypothesis", label="label", validation="validation",
        label_names=dict(enumerate(NLI)), configs=XNLI_LANGUAGES, parallel=True,
    ),
    _answers(
        "alpaca", "tatsu-lab/alpaca", ("instruction", "input", "output"), {"train": 52_002}, "CC BY-NC 4.0",
    ),
    _answers(
        "alpaca-gpt4", "vicgalle/alpaca-gpt4", ("instruction", "input", "output"), {"train": 52_002}, "CC BY-NC 4.0",
    ),
    _answers(
        "dolly", "databricks/databricks-dolly-15k", ("instruction", "context", "response"), {"train": 15_011}, "CC BY-SA 3.0",
        client_key="category",
    ),
    _answers(
        "flan", "Muennighoff/flan", ("inputs", None, "targets"), {"train": 1_764_800}, "Apache-2.0; each task keeps its terms",
        client_key="task",
    ),
    _answers(
        "gsm8k", "openai/gsm8k", ("question", None, "answer"), {"train": 7_473, "test": 1_319}, "MIT",
        config="main", metrics=("final_answer", "perplexity"),
    ),
    _answers(
        "math", "EleutherAI/hendrycks_math", ("problem", None, "solution"), {"train": 7_500, "test": 5_000}, "MIT",
        client_key="type", configs=MATH_SUBJECTS, metrics=("final_answer", "perplexity"),
    ),
    _answers(
        "multi30k", "bentrevett/multi30k", ("en", None, "de"), {"train": 29_000, "validation": 1_014, "test": 1_000},
        "none stated, research", verified=RECALLED, metrics=("bleu", "chrf"),
    ),
    _answers(
        "natural-instructions", "Muennighoff/natural-instructions", ("definition", "inputs", "targets"),
        {"train": 5_000_000, "test": 1_000_000}, "Apache-2.0; each task keeps its terms", client_key="task_name",
    ),
    _answers(
        "opus", "Helsinki-NLP/opus-100", (None, None, "translation"), {"train": 5_000_000, "validation": 10_000, "test": 10_000},
        "unknown", client_key="pair", verified=RECALLED, configs=OPUS_PAIRS, metrics=("bleu", "chrf"),
    ),
    _answers(
        "qmsum", "pszemraj/qmsum-cleaned", ("input", None, "output"), {"train": 1_257, "validation": 272, "test": 281}, "MIT",
        metrics=("rouge_l", "rouge_1", "rouge_2"),
    ),
    _answers(
        "rosetta-alpaca", None, ("instruction", "input", "output"), {"train": 52_002}, "none stated", client_key="language",
        verified=ELSEWHERE,
    ),
    _answers(
        "sharegpt", "Aeala/ShareGPT_Vicuna_unfiltered", (None, None, "conversations"), {"train": 120_000}, "none stated",
    ),
    _answers(
        "wikitext", "Salesforce/wikitext", (None, None, "text"), {"train": 36_718, "validation": 3_760, "test": 4_358},
        "CC BY-SA 3.0", config="wikitext-2-raw-v1", metrics=("perplexity", "token_accuracy"), verified=RECALLED,
    ),
    _answers(
        "wizard", "WizardLMTeam/WizardLM_evol_instruct_V2_196k", (None, None, "conversations"), {"train": 143_000}, "MIT",
    ),
    Entry(
        "hh-rlhf", "Anthropic/hh-rlhf", None, PREFERENCE, 1, {"train": 160_800, "test": 8_552}, None, "MIT", SEEN, label="chosen",
    ),
    Entry(
        "ultrafeedback", "HuggingFaceH4/ultrafeedback_binarized", None, PREFERENCE, 1, {"train": 61_135, "test": 2_000}, None,
        "MIT", SEEN, text="prompt", label="chosen", train="train_prefs", test="test_prefs",
    ),
    _pictures(
        "caltech101", "flwrlabs/caltech101", 101, {"train": 8_680}, "CC BY 4.0",
    ),
    _pictures(
        "cifar10", "uoft-cs/cifar10", 10, {"train": 50_000, "test": 10_000}, "unknown",
        config="plain_text", image="img",
    ),
    _pictures(
        "cifar100", "uoft-cs/cifar100", 100, {"train": 50_000, "test": 10_000}, "unknown",
        config="cifar100", image="img", label="fine_label", renamed={"cra": "crab"},
    ),
    _pictures(
        "domainnet", "wltjr1007/DomainNet", 345, {"train": 409_832, "test": 176_743}, "fair use, non-commercial",
        client_key="domain", metrics=("accuracy", "top5"),
    ),
    _pictures(
        "dtd", "mcimpoi/dtd_split_1", 47, {"train": 1_880, "validation": 1_880, "test": 1_880}, "CC BY 4.0",
    ),
    _pictures(
        "flowers102", "dpdl-benchmark/oxford_flowers102", 102, {"train": 1_020, "validation": 1_020, "test": 6_149},
        "none stated, research",
    ),
    _pictures(
        "food101", "ethz/food101", 101, {"train": 75_750, "test": 25_250}, "Foodspotting terms, research",
        test="validation",
    ),
    _pictures(
        "office-caltech10", None, 10, {"train": 2_533}, "research", verified=ELSEWHERE, client_key="domain",
    ),
    _pictures(
        "officehome", "flwrlabs/office-home", 65, {"train": 15_588}, "fair use notice", client_key="domain",
    ),
    _pictures(
        "pacs", "flwrlabs/pacs", 7, {"train": 9_991}, "unknown, research", client_key="domain",
    ),
    _pictures(
        "pets", "timm/oxford-iiit-pet", 37, {"train": 3_680, "test": 3_669}, "CC BY-SA 4.0",
    ),
    _pictures(
        "ucf101", "flwrlabs/ucf101", 101, {"train": 9_537, "test": 3_783}, "research",
        one_of=("video_id", "clip_id"),
    ),
    _pictures(
        "vlcs", None, 5, {"train": 10_729}, "research", verified=ELSEWHERE, client_key="domain",
    ),
    _questions(
        "cocoqa", None, 430, {"train": 78_736, "test": 38_948}, "research", verified=ELSEWHERE, client_key="type",
    ),
    _questions(
        "gqa", None, 1_842, {"train": 943_000, "test": 132_062}, "CC BY 4.0", verified=ELSEWHERE, client_key="type",
    ),
    _questions(
        "ocr-vqa", "howard-hou/OCR-VQA", 3_129, {"train": 802_000, "validation": 100_000, "test": 100_000}, "unknown",
        text="questions", label="answers", client_key="genre", validation="validation",
    ),
    _questions(
        "path-vqa", "flaviagiammarino/path-vqa", 3_129, {"train": 19_654, "validation": 6_259, "test": 6_719}, "MIT",
        validation="validation",
    ),
    Entry(
        "refcoco", "lmms-lab/RefCOCO", None, GENERATION, 1, {"train": 25_000, "test": 5_657}, None, "COCO's terms", VAL_ONLY,
        image="image", text="answer", label="bbox", train="val", test="testA", metrics=("box_accuracy", "iou", "perplexity"),
    ),
    Entry(
        "scienceqa", "derek-thomas/ScienceQA", None, GENERATION, 1, {"train": 6_218, "validation": 2_097, "test": 2_017},
        "subject", "CC BY-NC-SA 4.0", PICTURES_SEEN, image="image", text="question", pair="hint", label="answer",
        validation="validation", metrics=("choice_accuracy", "perplexity"),
    ),
    _questions(
        "textvqa", "lmms-lab/textvqa", 3_129, {"train": 34_602, "test": 5_000}, "CC BY 4.0", label="answers", test="validation",
    ),
    _questions(
        "vqa-rad", "flaviagiammarino/vqa-rad", 480, {"train": 1_793, "test": 451}, "CC0",
    ),
    _questions(
        "vqav2", "HuggingFaceM4/VQAv2", 3_129, {"train": 443_757, "test": 214_354}, "CC BY 4.0", label="answers",
        client_key="answer_type", test="validation",
    ),
)  # fmt: skip


def metrics_of(name: str) -> tuple[str, ...]:
    """The metrics that a set of the catalogue is reported in; none for any other data."""
    return next((entry.metrics for entry in ENTRIES if entry.name == name), ())


def catalogue() -> list[Entry]:
    """The sets known by name: those without network, texts, texts to generate from, answers to compare, pictures, questions.

    Each kind is in alphabetical order.
    """
    return list(ENTRIES)
