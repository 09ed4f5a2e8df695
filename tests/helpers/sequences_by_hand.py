"""The network over sequences of items, and prompts behind it, of PyTorch's own layers: no code of the package is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Values = Mapping[str, Tensor]


def user(vectors: Tensor, w: Values, layers: int, heads: int) -> Tensor:
    """[d] of the vectors [T, d] of one sequence.

    Args:
        w: ``position.weight``, ``norm.*`` and ``layers.N.*``.
    """
    n, d = vectors.shape
    x = F.layer_norm(vectors + w["position.weight"][:n], (d,), w["norm.weight"], w["norm.bias"])
    later = nn.Transformer.generate_square_subsequent_mask(n, dtype=x.dtype)
    for i in range(layers):
        own = {name.removeprefix(f"layers.{i}."): v for name, v in w.items() if name.startswith(f"layers.{i}.")}
        into, bias = (torch.cat([own[f"{n}.{kind}"] for n in "qkv"]) for kind in ("weight", "bias"))
        seen = attended(x, x, into, bias, own["o.weight"], own["o.bias"], heads, later)
        x = F.layer_norm(x + seen, (d,), own["norm1.weight"], own["norm1.bias"])
        inner = F.linear(F.gelu(F.linear(x, own["fc1.weight"], own["fc1.bias"])), own["fc2.weight"], own["fc2.bias"])
        x = F.layer_norm(x + inner, (d,), own["norm2.weight"], own["norm2.bias"])
    return x[-1]


def attended(
    x: Tensor, to: Tensor, into: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Multi-head attention of queries [n, d] to keys and values [m, d], sequence first and without a batch."""
    found, _ = F.multi_head_attention_forward(
        x, to, to, x.shape[1], heads, into, bias, None, None, False, 0.0, out, out_bias, need_weights=False, attn_mask=mask
    )
    return found


def logits(
    histories: Sequence[Sequence[int]],
    codes: Tensor,
    e: Tensor,
    w: Values,
    *,
    layers: int = 2,
    heads: int = 2,
    temperature: float = 0.07,
    prompts: str = "none",
    own: Values | None = None,
    prompt_heads: int = 4,
) -> Tensor:
    """[n, C] of sequences of items, by a table E and the encoder's parameters.

    Args:
        codes: [C, S], which rows of E make each item. prompts, own: ``full`` or ``light``, and their tensors.
    """
    items = e[codes].mean(1)
    users = []
    for history in histories:
        u = user(items[list(history)], w, layers, heads)
        if prompts != "none":
            assert own is not None
            p = [own[f"prompt/{n}"] for n in ("P", "in.weight", "in.bias", "out.weight", "out.bias")]
            seen = attended(u[None], p[0], p[1], p[2], p[3], p[4], prompt_heads)[0]
            if prompts == "light":
                u = u + seen
            else:
                context = {n.removeprefix("context/"): v for n, v in own.items() if n.startswith("context/")}
                h = user(context["items"][[i + 1 for i in history]], context, layers, heads)
                joined = own["join/W.weight"] @ torch.cat([seen, h, u]) + own["join/W.bias"]
                u = F.layer_norm(joined, joined.shape, own["join/LN.weight"], own["join/LN.bias"])
        users.append(u)
    cosines = torch.cosine_similarity(torch.stack(users)[:, None], items[None], dim=-1)
    return cosines / temperature
