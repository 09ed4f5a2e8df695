"""Text by the models of a pack: the library's own generation, with the clients' parts at work in it.

A method says how it predicts in :meth:`Method.forward`. If that is one pass with its parts at given weights, as of nearly all
methods, the parts are woven in for as long as text is generated, and the keys and values of earlier tokens are kept. A method
that makes more of it (a mean of two passes, say), or has a part that looks at whole rows, is asked for every next token anew,
over the whole text so far.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.logits_process import TopPLogitsWarper
from transformers.modeling_outputs import CausalLMOutputWithPast

from weft.backbones.reply_table import Pairs, Replies
from weft.errors import WeftError
from weft.federation import plans
from weft.federation.batch import Batch, make_batch
from weft.federation.one_pass import one_pass
from weft.tasks.generation import Generation
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tensors.keyed import generator, numpy_generator

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.pack import Pack
    from weft.tasks.generation_settings import Decoding

TOKENS = 8192
"""Of all rows that text is generated for at once, prompts and answers."""


def write(
    pack: Pack, forward: Callable[[Pack, Batch], Output], rows: Sequence[np.ndarray], decoding: Decoding, streamer: Any = None
) -> list[list[str]]:
    """What each client's model writes after the prompts of its own list of table rows: K lists of texts, in the order given.

    Args:
        forward: predicts. streamer: of transformers, is handed each token of a single row.
    """
    table = replies(pack)
    found: list[dict[int, str]] = [{} for _ in rows]
    share = max(TOKENS // max(len(pack.clients), 1), 1)
    plan = [list(plans.chunks_by_length(table.widths[r] + decoding.new_tokens, share)) for r in rows]
    for j in range(max((len(p) for p in plan), default=0)):
        places = {i: p[j] for i, p in enumerate(plan) if j < len(p)}
        index = np.full((len(places), max(map(len, places.values()))), -1, dtype=np.int64)
        for row, (i, mine) in zip(index, places.items(), strict=True):
            row[: len(mine)] = rows[i][mine]
        texts = _generate(pack, forward, index, list(places) if len(places) < len(rows) else None, decoding, streamer)
        for own, (i, mine) in zip(texts, places.items(), strict=True):
            found[i] |= dict(zip(mine.tolist(), own, strict=False))
    return [[some[i] for i in sorted(some)] for some in found]


def observe(
    pack: Pack,
    forward: Callable[[Pack, Batch], Output],
    rows: Sequence[np.ndarray],
    chosen: Sequence[np.ndarray] | None = None,
) -> list[Observed | None]:
    """As :meth:`Pack.observe`, with the texts that a language model writes.

    Args:
        chosen: of each client's rows those that text is written for, bool [n_k]; None = none, or the task writes no text.
    """
    seen = pack.observe(forward, list(rows))
    if chosen is None or not isinstance(pack.task, Generation):
        return seen
    table = replies(pack)
    texts = write(pack, forward, [r[c] for r, c in zip(rows, chosen, strict=True)], pack.task.decoding)
    return [
        None if one is None else pack.task.with_texts(one, some, own, [table.wanted[i] for i in r[some]])
        for one, some, own, r in zip(seen, chosen, texts, rows, strict=True)
    ]


def few(seed: int, rows: np.ndarray, n: int, *purpose: object) -> np.ndarray:
    """At most n of these table rows, drawn by a stream of the purpose's own, in their order."""
    if len(rows) <= n:
        return rows
    draw = numpy_generator(seed, "texts", *purpose)
    return rows[np.sort(draw.choice(len(rows), n, replace=False))]


def replies(pack: Pack) -> Replies:
    """The pack's table, of prompts and answers.

    Raises:
        WeftError: it is another.
    """
    if not isinstance(pack.bench.table, Replies):
        raise WeftError(f'backbone "{pack.backbone.name}" generates no text for these rows')
    return pack.bench.table


@torch.no_grad()
def _generate(
    pack: Pack,
    forward: Callable[[Pack, Batch], Output],
    index: np.ndarray,
    clients: list[int] | None,
    decoding: Decoding,
    streamer: Any,
) -> list[list[str]]:
    """Texts after the rows ``index`` ([k, b], -1 = padding) of these clients."""
    table, backbone, (k, b) = replies(pack), pack.backbone, index.shape
    inputs = backbone.to_model(table.prompts(index.reshape(-1)))
    batch = make_batch(pack.task, table, index, clients, pack.device)
    width = 0 if backbone.encoder_decoder else inputs["input_ids"].shape[1]
    more: dict[str, Any] = {"streamer": streamer}
    if decoding.temperature:
        who = range(len(pack.clients)) if clients is None else clients
        names = [pack.clients[i].id for i in who]
        streams = [
            generator(pack.bench.seed, "text", pack.round.index, name, int(table.row_ids[i]) if i >= 0 else -1)
            for name, own in zip(names, index, strict=True)
            for i in own
        ]
        more["logits_processor"] = [Keyed(streams, decoding)]
    if isinstance(table, Pairs) and (begun := table.beginnings(index.reshape(-1))) is not None:
        more["decoder_input_ids"] = begun.to(inputs["input_ids"].device)
    once = one_pass(pack, forward, batch)
    with only(backbone.model, settings(backbone, decoding, width, more.get("decoder_input_ids"))):
        # who looks at whole rows has to see all that is written so far
        if once is not None and not pack.weave.whole_rows:
            # a block that is left out for some rows leaves no keys and values behind, and lengths are read off the first block's
            with pack.woven(batch.clients, k, once.use):
                found = backbone.model.generate(**inputs, **more, use_cache=not pack.held)
        else:
            with _asking(pack, forward, batch, inputs, decoding.beams):
                found = backbone.model.generate(**inputs, **more, use_cache=False)
    texts = backbone.tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
    return [[texts[i * b + j].strip() if index[i, j] >= 0 else "" for j in range(b)] for i in range(k)]


def settings(backbone: Backbone, decoding: Decoding, width: int, begun: Tensor | None = None) -> GenerationConfig:
    """How the library is to generate: nothing of what the checkpoint recommends, but for its special tokens.

    Args:
        width: tokens of the prompt that lie in the same row as what is generated. begun: what an encoder-decoder goes on from.
    """
    own = backbone.model.generation_config
    ends = [backbone.tokenizer.eos_token_id]
    for token in own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]:
        if token is not None and token not in ends:
            ends.append(token)
    kept = {n: getattr(own, n, None) for n in ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")}
    if kept["decoder_start_token_id"] is None:
        kept["decoder_start_token_id"] = getattr(backbone.model.config, "decoder_start_token_id", None)
    if begun is not None:
        width = begun.shape[1] - 1
        kept |= {"decoder_start_token_id": begun[:, 0].tolist(), "forced_bos_token_id": None}
    return GenerationConfig(
        max_new_tokens=max(min(decoding.new_tokens, backbone.max_length - width), 1),
        num_beams=decoding.beams,
        do_sample=False,
        pad_token_id=backbone.tokenizer.pad_token_id,
        eos_token_id=ends,
        **kept,
    )


class Keyed(LogitsProcessor):
    """Sampling in which every row draws from a stream of its own: the same text whatever is generated beside it.

    The largest of log p + Gumbel noise is a draw from p.

    Args:
        streams: one for each row.
    """

    def __init__(self, streams: Sequence[torch.Generator], decoding: Decoding):
        self.streams, self.temperature = streams, decoding.temperature
        self.nucleus = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.double() / self.temperature
        if self.nucleus is not None:
            z = self.nucleus(input_ids, z)
        drawn = torch.stack([torch.rand(z.shape[-1], generator=g, dtype=torch.float64) for g in self.streams]).to(z.device)
        return z - torch.log(-torch.log(drawn.clamp(min=1e-300)))


@contextmanager
def _asking(
    pack: Pack, forward: Callable[[Pack, Batch], Output], batch: Batch, prompts: Mapping[str, Tensor], beams: int
) -> Iterator[None]:
    """The model answers as ``forward`` predicts, from all tokens so far."""
    model = pack.backbone.model
    former = vars(model).get("forward")

    def put(new: Any) -> None:
        if new is None:
            vars(model).pop("forward", None)
        else:
            model.forward = new

    def answer(**given: Any) -> CausalLMOutputWithPast:
        inputs = {n: given[n] for n in (*prompts, "position_ids") if given.get(n) is not None}
        if pack.backbone.encoder_decoder:  # the encoder has parts too, and runs with them
            inputs = {n: t.repeat_interleave(beams, 0) for n, t in prompts.items()}
            inputs["decoder_input_ids"] = given["decoder_input_ids"]
        put(former)
        try:
            with pack.reading(inputs):
                logits = forward(pack, batch).logits
        finally:
            put(answer)
        return CausalLMOutputWithPast(logits=logits.flatten(0, 1).unsqueeze(1))

    # the library hands over, of positions and the like, what it finds among a model's arguments
    answer.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
    put(answer)
    try:
        yield
    finally:
        put(former)


@contextmanager
def only(model: Any, wanted: GenerationConfig) -> Iterator[None]:
    """Generation by these settings alone, and without advice: the library takes what they leave open from the checkpoint."""
    before, level = model.generation_config, transformers.logging.get_verbosity()
    model.generation_config = wanted
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        model.generation_config = before
        transformers.logging.set_verbosity(level)
