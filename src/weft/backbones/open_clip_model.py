"""CLIPs of open_clip: their tower of pictures as it is (RN50, ConvNeXt …), their texts through transformers' text tower.

The tower of pictures has attention or convolutions of its own, so that no part can sit inside it: it is frozen, and embeds each
picture once. The tower of texts is the one that transformers has, with the tensors renamed, so that all that reaches into it
works.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPPreTrainedModel, CLIPTextModel

from weft import distribution
from weft.backbones import timm_model
from weft.backbones.clip import Similarity
from weft.backbones.common_start import CommonStart
from weft.backbones.finding import OPEN_CLIP
from weft.backbones.reading import Read, reason
from weft.backbones.transforms import Transforms
from weft.errors import UserError

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
"""What may differ from open_clip's defaults in a text tower of which transformers has the like."""

NAMES = {
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Of modules of the text tower: open_clip's -> transformers'."""


class OpenCLIPConfig(CLIPConfig):
    model_type = "open_clip"


class SimilarityOpenCLIP(Similarity, CLIPPreTrainedModel):
    whole = True

    def __init__(self, config: Any, visual: nn.Module):
        super().__init__(config)
        self.vision_model = visual
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.vision_model(pixel_values)
        return found

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Every place of the last map by itself through what the pooled one goes through: the projections of values and of the
        output, where attention pools (C. Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022, arXiv 2112.01071), or
        norm and projection, where a mean does (Q. Yu et al., "Convolutions Die Hard", NeurIPS 2023, arXiv 2308.02487).

        Raises:
            UserError: pictures are pooled in another way.
        """
        visual = self.vision_model
        if hasattr(visual, "attnpool"):  # a ResNet of open_clip
            pool, last = visual.attnpool, visual.forward_intermediates(pixel_values, [4], intermediates_only=True)
            places = last["image_intermediates"][0].flatten(2).mT
            found: Tensor = pool.c_proj(pool.v_proj(places))
            return found
        if not timm_model.pools_by_mean(getattr(visual, "trunk", visual)):
            raise UserError(
                f'the tower of pictures of "{self.config.name_or_path}" ({type(visual).__name__}) gives no embedding of single '
                "patches: choose another method, or another --model, such as clip-vit-b32."
            )
        places = visual.trunk.forward_features(pixel_values).flatten(2).mT
        maps = places.flatten(0, 1)[:, :, None, None]
        found = visual.head(visual.trunk.forward_head(maps))
        return found.view(*places.shape[:2], -1)

    def text_features(self, input_ids: Tensor, common: CommonStart | None = None) -> Tensor:
        found: Tensor = self.text_projection(self.last_states(input_ids, common))
        return found


def read(where: Path, name: str, task: str) -> Read:
    """
    Args:
        where: of :func:`weft.backbones.finding.open_clip_folder`.

    Raises:
        UserError: open_clip is not installed, or something in the folder is damaged, lacking or of an unknown kind.
    """
    if task not in ("auto", "similarity"):
        raise UserError(
            f'backbone "{name}" is a CLIP of open_clip, which tells classes apart by their names alone: leave --task out, or '
            "choose another --model."
        )
    try:
        import open_clip
        from open_clip.model import CLIPTextCfg
        from open_clip.transform import PreprocessCfg, image_transform_v2
    except ImportError as e:
        raise UserError(
            f'backbone "{name}" is a CLIP of open_clip, which is not installed: {distribution.install("vision")}.'
        ) from e
    if not any((where / file).is_file() for file in WEIGHTS):
        raise UserError(f'the folder of backbone "{name}" holds neither {" nor ".join(WEIGHTS)}: get one of them.')
    try:
        text = CLIPTextCfg(**json.loads((where / OPEN_CLIP).read_text())["model_cfg"]["text_cfg"])
        odd = [f.name for f in dataclasses.fields(text) if getattr(text, f.name) != f.default and f.name not in TEXT]
        if odd:
            raise UserError(
                f'the text tower of backbone "{name}" is of a kind that Weft does not know ({odd[0]}): choose a CLIP with the '
                "text tower of the first ones, or a SigLIP as transformers has it."
            )
        theirs = open_clip.create_model(f"local-dir:{where}", weights_only=True).eval()
        given = theirs.visual.preprocess_cfg
        made = image_transform_v2(PreprocessCfg(**given), is_train=False)
        processor = Transforms(made, both(given["size"]), given["mean"], given["std"])
        tokenizer = own_tokenizer(where)
        model = converted(theirs, text, both(given["size"]), tokenizer.pad_token_id)
        model.config.name_or_path = name
    except UserError:
        raise
    except pickle.UnpicklingError as e:
        raise UserError(
            f'the weights of backbone "{name}" are damaged, or hold more than tensors, which is never read: get them as '
            f"{WEIGHTS[0]}."
        ) from e
    except Exception as e:  # whatever open_clip makes of files that somebody has written
        raise UserError(f'backbone "{name}" could not be loaded: {reason(e)}') from e
    return Read(model, tokenizer, processor)


def both(size: int | Sequence[int]) -> list[int]:
    """Height and width."""
    return [size, size] if isinstance(size, int) else list(size)


def converted(theirs: Any, text: Any, size: list[int], padding: int | None) -> SimilarityOpenCLIP:
    """
    Args:
        theirs: a model of open_clip. text: the configuration of its text tower. size: of a picture. padding: the id that
            texts are padded with.
    """
    tower = getattr(theirs, "text", theirs)
    quick = type(tower.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    projection = tower.text_projection
    config = OpenCLIPConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "hidden_act": "quick_gelu" if quick else "gelu",
            "pad_token_id": padding,
            "bos_token_id": None,
            "eos_token_id": 2,  # which makes transformers read a text at its highest token, as open_clip does
        },
        vision_config={"image_size": size},
        projection_dim=projection.shape[1],
    )
    model = SimilarityOpenCLIP(config, theirs.visual)
    tensors: dict[str, Tensor] = {}
    for name, value in tower.state_dict().items():
        if not name.startswith(("token_embedding.", "transformer.", "ln_final.")):
            continue
        for one, other in NAMES.items():
            name = name.replace(one, other)
        if "attn.in_proj_" in name:
            tensors |= {
                name.replace("attn.in_proj_", f"self_attn.{p}_proj."): v for p, v in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            tensors[name] = value
    model.text_model.load_state_dict(tensors | {"embeddings.position_embedding.weight": tower.positional_embedding})
    with torch.no_grad():
        model.text_projection.weight.copy_(projection.T)
        model.logit_scale.copy_(theirs.logit_scale.reshape(()))
    return model


def own_tokenizer(where: Path) -> Any:
    """The folder's, or else that of the first CLIP, which comes with open_clip."""
    from transformers import AutoTokenizer, CLIPTokenizer

    if (where / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(where)
    from open_clip.tokenizer import SimpleTokenizer

    plain = SimpleTokenizer()
    start, end = (next(w for w, i in plain.encoder.items() if i == t) for t in (plain.sot_token_id, plain.eot_token_id))
    return CLIPTokenizer(
        vocab=plain.encoder, merges=list(plain.bpe_ranks), bos_token=start, eos_token=end, unk_token=end, pad_token=end
    )
