"""A model of low-rank parts and a head as one PEFT LoRA adapter, and back.

PEFT knows one rank and α per layer, so everything that a site has (LoRAs at their weights, frozen deltas) is summed exactly by
concatenation. The head travels whole in ``modules_to_save``, with the base modules that the checkpoint lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch as st
import torch
from torch import Tensor

from weft.adaptation.adalora import AdaLoRA
from weft.adaptation.dora import DoRA
from weft.adaptation.dylora import DyLoRA
from weft.adaptation.from_weights import FromWeights, change
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA, Scaling
from weft.adaptation.orthogonal import Orthogonal
from weft.adaptation.part import Part
from weft.data.rows import BOTH
from weft.errors import WeftError
from weft.export import peft_adapter
from weft.export.about import damaged
from weft.export.peft_adapter import MAGNITUDE
from weft.export.trained import Trained, not_finite
from weft.storage import files
from weft.tasks.kinds import GENERATION, MASKED, TOKENS
from weft.tensors.forms import Value
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site
    from weft.export.about import About, Base

CONFIG, TENSORS = FILES = peft_adapter.FILES
WORDS = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}
"""What PEFT calls a task; it has no word for images, nor for hidden tokens."""


def fits(trained: Trained, backbone: Backbone) -> bool:
    """Whether PEFT's LoRA can say all of it, on a model that transformers can load."""
    heads = [p for p in trained.parts.values() if type(p) is Head]
    known = all(type(p) in (LoRA, DoRA, DyLoRA, AdaLoRA, Orthogonal, FromWeights, Delta, Head) for p in trained.parts.values())
    if (name := magnitudes(trained)) is not None:  # PEFT has one at a layer, of weight 1, and nothing beside it
        known = known and len(trained.parts) == len(heads) + 1 and trained.use[name] == 1.0
    known = known and bool(backbone.linears)  # of which PEFT needs one, be it to put nothing beside it
    return trained.rule is None and whole(trained, backbone) and known and plain_class(backbone) is not None


def whole(trained: Trained, backbone: Backbone) -> bool:
    """Whether all of the head is there that a base needs: one, or none at all."""
    heads = [p for p in trained.parts.values() if type(p) is Head]
    return len(heads) == 1 or (not heads and not backbone.heads)


def settled(trained: Trained, backbone: Backbone) -> Trained:
    """The same model, in which what LoRAs were cut from the weights that it was trained on is among their factors: it is of no
    other precision's weights then. Singular values (AdaLoRA) are in them too.
    """
    parts, values = dict(trained.parts), dict(trained.values)
    for name, part in trained.parts.items():
        if isinstance(part, AdaLoRA):
            parts[name] = part.plain()
            for site in part.sites(backbone):
                place = f"{name}/{site.called}"
                a, e = values[f"{place}/A"], values.pop(f"{place}/E")
                assert isinstance(a, Tensor) and isinstance(e, Tensor)
                values[f"{place}/A"] = a * e[:, None]
        if not isinstance(part, FromWeights):
            continue
        parts[name] = part.doubled()
        for site in part.sites(backbone):
            own = [f"{name}/{site.called}/{role}" for role in "AB"]
            a, b = (trained.values[n] for n in own)
            assert isinstance(a, Tensor) and isinstance(b, Tensor)
            a0, b0 = part.start(backbone, site)
            values[own[0]], values[own[1]] = change(a, b, a0.to(a), b0.to(b))
    return replace(trained, parts=parts, values=values)


def magnitudes(trained: Trained) -> str | None:
    """The part that is a DoRA, if there is one."""
    return next((name for name, part in trained.parts.items() if isinstance(part, DoRA)), None)


def plain_class(backbone: Backbone) -> str | None:
    """The class of transformers that loads the base for people without Weft; None if it is a class of Weft's own."""
    if backbone.names is not None:
        return backbone.model.plain
    if backbone.pieces:
        return None
    if backbone.reads == BOTH and backbone.vocabulary is None:
        return "AutoModelForVisualQuestionAnswering"
    if type(backbone.model).__module__.startswith("weft."):
        return None
    if backbone.options.task == TOKENS:
        return "AutoModelForTokenClassification"
    if backbone.options.task == GENERATION:
        return "AutoModelForSeq2SeqLM" if backbone.encoder_decoder else "AutoModelForCausalLM"
    if backbone.options.task == MASKED:
        return "AutoModelForMaskedLM"
    return "AutoModelForImageClassification" if backbone.reads == "images" else "AutoModelForSequenceClassification"


def loading(base: Base, classes: Sequence[str]) -> dict[str, Any]:
    """What ``from_pretrained`` has to be told of the base, by the lines in the README and by our own check of them."""
    found: dict[str, Any] = {}
    if base.options.task not in (GENERATION, MASKED):
        found = {"num_labels": len(classes), "id2label": dict(enumerate(classes))}
    if base.own_head:
        found["ignore_mismatched_sizes"] = True
    if base.code:
        found["trust_remote_code"] = True
    return found


def write(trained: Trained, backbone: Backbone, base: Base, folder: Path) -> dict[str, int]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; returns the rank at each site."""
    dora = magnitudes(trained)
    sums = low_rank_sums(trained, backbone) if dora is None else factors(trained, backbone, dora)
    heads = [n for n, p in trained.parts.items() if type(p) is Head]
    saved: dict[str, Tensor] = {}
    for name, value in trained.values.items():
        part, site, role = name.split("/")
        if part in heads or role == "m":
            assert isinstance(value, Tensor)
            saved[f"{site}.{role if part in heads else MAGNITUDE}"] = value
    tops = head_modules(backbone)
    loras = [p for p in trained.parts.values() if isinstance(p, LoRA)]
    peft_adapter.write(
        folder,
        sums,
        saved,
        use_rslora=bool(loras) and all(p.scaling == "rslora" for p in loras),
        use_dora=dora is not None,
        task_type=WORDS.get(str(plain_class(backbone))),
        base_model_name_or_path=base.reference,
        target_modules=endings(backbone, list(sums), tops),
        modules_to_save=tops or None,
        fan_in_fan_out=all(type(backbone.module(n)).__name__ == "Conv1D" for n in sums),
    )
    return {name: value.rank for name, value in sums.items()}


def low_rank_sums(trained: Trained, backbone: Backbone) -> dict[str, LowRank]:
    """Σ weight · value over everything low-rank at each site, exactly; sites and ranks where that is 0 are left out."""
    terms: dict[str, list[LowRank]] = {}
    for name, part in trained.parts.items():
        if isinstance(part, Head):
            continue
        for site in part.sites(backbone):
            value = _term(trained, name, site)
            alive = value.A.any(1) & value.B.any(0)
            if bool(alive.any()):
                value = value if bool(alive.all()) else LowRank(B=value.B[:, alive], A=value.A[alive], scale=value.scale)
                terms.setdefault(site.name, []).append(value)
    sums = {n: (some[0] if len(some) == 1 else LowRank.cat(some)).compress() for n, some in terms.items()}
    if not sums:  # PEFT has no adapter without a site: a head alone, or factors that were never trained
        site = backbone.linears[0]
        sums[site.name] = LowRank(B=torch.zeros(site.d_out, 1), A=torch.zeros(1, site.d_in))
    return sums


def factors(trained: Trained, backbone: Backbone, name: str) -> dict[str, LowRank]:
    """B, A and the scale of one part at each of its sites, as they are."""
    return {site.name: _term(trained, name, site) for site in trained.parts[name].sites(backbone)}


def _term(trained: Trained, name: str, site: Site) -> LowRank:
    part = trained.parts[name]
    if isinstance(part, Delta):
        delta = trained.values[f"{name}/{site.name}/delta"]
        assert isinstance(delta, LowRank)
        return delta
    a, b = trained.values[f"{name}/{site.name}/A"], trained.values[f"{name}/{site.name}/B"]
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return LowRank(B=b, A=a, scale=part.constants(site)["scale"] * trained.use[name])


def head_modules(backbone: Backbone) -> list[str]:
    """The outermost modules whose parameters all belong to the head: RoBERTa's ``classifier``, not its two layers."""
    own = {h.name for h in backbone.heads}
    parameters = [n for n, _ in backbone.model.named_parameters()]
    found: dict[str, None] = {}
    for name in (h.name for h in backbone.heads):
        while "." in name:
            parent = name.rsplit(".", 1)[0]
            if not all(n.rsplit(".", 1)[0] in own for n in parameters if n.startswith(parent + ".")):
                break
            name = parent
        found[name] = None
    return list(found)


def endings(backbone: Backbone, sites: list[str], tops: list[str]) -> list[str]:
    """The shortest module-name endings that PEFT resolves to exactly these sites; full names if there are none."""
    others = [n for n, _ in backbone.model.named_modules() if n and not any(n == t or n.startswith(t + ".") for t in tops)]
    for depth in (1, 2, 3):
        short = {".".join(n.split(".")[-depth:]) for n in sites}
        if {n for n in others if any(n == e or n.endswith("." + e) for e in short)} == set(sites):
            return sorted(short)
    return sites


def read(folder: Path, backbone: Backbone) -> Trained:
    """The model in an adapter that :func:`write` wrote: a frozen delta and a head.

    Raises:
        UserError: the files are damaged, or do not fit the backbone.
    """
    try:
        config = files.parsed(files.read(folder / CONFIG))
        tensors = st.load(files.read(folder / TENSORS))
        low_rank, saved = peft_adapter.parsed(config, tensors)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise damaged(folder, e) from e
    at, use, values = "names:" + ",".join(low_rank), {}, dict[str, Value]()
    parts: dict[str, Part] = {"delta": Delta(at)}
    if config.get("use_dora"):
        scaling: Scaling = "rslora" if config.get("use_rslora") else "usual"
        parts, use = {"lora": DoRA(config["r"], float(config["lora_alpha"]), at, scaling=scaling)}, {"lora": 1.0}
    for site, value in low_rank.items():
        values |= {f"lora/{site}/A": value.A, f"lora/{site}/B": value.B} if use else {f"delta/{site}/delta": value}
    for name, whole in saved.items():
        site, role = name.rsplit(".", 1)
        values[f"lora/{site}/m" if role == MAGNITUDE else f"head/{site}/{role}"] = whole
    trained = Trained({**parts, "head": Head()}, values, use)
    check_names(trained, backbone, folder)
    return trained


def check_names(trained: Trained, backbone: Backbone, folder: Path) -> None:
    """Every tensor of every part, each of its shape, and nothing else."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, part in trained.parts.items():
        for site in part.sites(backbone):
            for role, init in part.tensors(backbone, site).items():
                expected[f"{name}/{site.called}/{role}"] = tuple(init.shape)
    found = {n: tuple(v.shape) for n, v in trained.values.items()}
    odd = sorted(expected.keys() ^ found.keys())
    if odd:
        missing = odd[0] in expected
        raise damaged(folder, f"{odd[0]} is {'missing' if missing else 'not a tensor of this model'}")
    if strange := not_finite(trained.values):
        raise damaged(folder, f"{strange} is not finite")
    for name, shape in found.items():
        free = name.rsplit("/", 1)[1] in ("A", "B")  # the rank of a server's average may differ from a client's
        if shape != expected[name] and not free:
            raise damaged(folder, f"{name} has shape {shape} instead of {expected[name]}")


@contextmanager
def plainly(folder: Path) -> Iterator[None]:
    """What is loaded inside is loaded as by anybody who has nothing but transformers and PEFT, and without their advice.

    Args:
        folder: of what is loaded, for the error.

    Raises:
        WeftError: they do not load it.
    """
    import warnings

    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # not the stream that our own loader uses: what the adapter forgets to bring along must differ
            torch.default_generator.manual_seed(1)
            yield
    except Exception as e:
        raise WeftError(f"plain PEFT does not load what was exported to {folder} ({type(e).__name__}: {e})") from e
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def plain_model(folder: Path, backbone: Backbone, about: About) -> Any:
    """The base of an adapter as transformers loads it, in float32, and the adapter as PEFT does, without us.

    Args:
        backbone: says where the base is, and is not used. about: that of the adapter.

    Raises:
        WeftError: PEFT does not load it.
    """
    from peft import PeftModel

    base = plain_base(folder, backbone, about)
    with plainly(folder):
        return PeftModel.from_pretrained(base, str(folder)).eval()


def plain_base(folder: Path, backbone: Backbone, about: About) -> Any:
    """The base of an exported model as transformers loads it, in float32, with a new head for its classes.

    Args:
        folder, backbone, about: as of :func:`plain_model`.

    Raises:
        WeftError: it is not loaded.
    """
    import transformers

    kind = plain_class(backbone)
    assert kind is not None
    more = loading(about.base, about.classes) if backbone.names is None else {}
    with plainly(folder):
        base = getattr(transformers, kind).from_pretrained(backbone.path, dtype=torch.float32, **more)
        if about.base.pad_token_id != about.base.own_padding:
            base.config.pad_token_id = about.base.pad_token_id
        return base.eval()


@torch.no_grad()
def logits_of(model: Any, backbone: Backbone, inputs: Mapping[str, Tensor]) -> Tensor:
    """What any model of transformers gives: [n, C], or [n, T, C] of each token."""
    found: Tensor
    if backbone.names is None:
        found = model(**inputs).logits
    else:
        found = model(**inputs, input_ids=backbone.names.ids()).logits_per_image
    return found
