"""One place of a backbone where a part can sit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One place of the backbone where a part can sit.

    Attributes:
        name: the module's path inside the Hugging Face model.
        role: what it is: one of ``LINEAR_ROLES`` (several joined by ``+`` when fused, as GPT-2's ``c_attn``),
            ``block`` or ``ffn.norm`` (the two places of a bottleneck), ``head``, ``norm``, ``entry`` (what goes into a block),
            ``attention`` (where queries meet keys, d_in = width of a token's keys over all heads, d_out = that of its values),
            ``words`` (the token embedding), ``patches`` (the convolution over them), ``convolution`` (any other), ``embedding``
            (of a whole image), ``connector`` (between a tower of pictures and a language model), ``values`` (tensors that sit
            nowhere) …
        d_in, d_out: feature sizes of input and output.
        block: index of the transformer block that holds it; None outside the stack.
        bias: whether the module owns a bias vector.
        per_row: it is called with the rows of the batch and nothing else (DeBERTa's query and key also see a table of positions).
        tower: ``text`` for the text tower of a backbone with two; "" everywhere else.
        stack: of an encoder-decoder ``encoder``, ``decoder``, or ``cross``, for a decoder's look at what the encoder has read.
        key: what a part's tensors here are called by in place of the path, if it is to be one name on any backbone.
        reads: path of a module of the same block that runs before it, and whose input a part that adds reads here in place of its
            own; d_in is then of that.
    """

    name: str
    role: str
    d_in: int
    d_out: int
    block: int | None
    bias: bool = False
    per_row: bool = True
    tower: str = ""
    stack: str = ""
    key: str = ""
    reads: str = ""

    @property
    def called(self) -> str:
        """The middle of the names of tensors here, "part/site/role"."""
        return self.key or self.name

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.role.split("+"))

    def parameter(self, role: str) -> str:
        """The name in the model of the module's own parameter."""
        return f"{self.name}.{role}" if self.name else role
