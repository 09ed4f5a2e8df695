"""What a trainable part is: where it sits, which tensors it has, and its arithmetic with a client axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor, nn

from weft.tensors.init import Init
from weft.typed import check

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


Mode = Literal["adds", "replaces", "reads", "embeds", "enters", "prefixes", "parameters", "normalises"]
"""What ``apply`` makes of a module, n = rows × positions of one client:

adds: a term to be added to the output, x [k, n, d_in] and out [k, n, d_out] -> [k, n, d_out].
replaces: the output itself; the frozen module does not run, and ``out`` is ``x``.
reads: as ``replaces``, in the place of the parts that do, but only in passes that name the part.
embeds: the output of a token embedding, x token ids [k, rows, T] and out [k, rows, T, d] -> [k, rows, T, d]. Ids below 0, which a
    part has put into the inputs, stand for its own tokens (the frozen module sees 0 in their place).
enters: what a block takes in, x = out = hidden states [k, rows, T, d] -> [k, rows, T', d].
prefixes: p keys and values that all tokens of a row attend to beside the row's own, x = out = the latter's keys [k · rows, heads,
    T, d] -> [k, p, d_in + d_out], keys beside values. Of the p a client has its constant ``tokens``, the first ones; the others
    are padding.
parameters: nothing; the part's tensors stand in the module in the place of its parameters of the same names.
normalises: nothing; a batch norm goes by the part's statistics, and in training by those of the rows, see
    :class:`weft.adaptation.norm_statistics.Statistics`. No optimizer holds its tensors.

A part that adds or replaces, or stands for parameters, can have any weight in a pass; others are on or off.
"""


class Part(Protocol):
    """One kind of trainable thing at named sites of the backbone.

    A part describes itself without the client axis; the pack stacks the tensors of its K clients to ``[K, …]`` and zero-pads
    those that differ in size (ranks), so that ``apply`` must give the same result for a zero-padded tensor.
    """

    def sites(self, backbone: Backbone) -> list[Site]:
        """Where it sits."""
        ...

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        """Role -> shape and start value of each tensor at ``site``."""
        ...

    def inputs(self, backbone: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's inputs with this part on: tokens of its own among those of a row, or of the text tower."""
        ...

    def room(self, backbone: Backbone) -> int:
        """How many tokens of its own stand in a row."""
        ...

    @property
    def dropout(self) -> float:
        """The share of what it reads that it drops in steps of training."""
        ...

    @property
    def rates(self) -> Mapping[str, float]:
        """Role -> multiple of an optimizer's learning rate at which its tensors move; 1 where none is given."""
        ...

    def constants(self, site: Site) -> Mapping[str, float]:
        """Numbers that may differ between clients (a LoRA's α/r); reach ``apply`` as tensors [k] under the same name."""
        ...

    def elsewhere(self, backbone: Backbone, site: Site) -> Mapping[str, str]:
        """Role -> "site/role" of tensors at other sites of the part that reach ``apply`` here too, under the first role."""
        ...

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        """Role -> numbers of a matrix that a position is multiplied by there, in the part's own arithmetic."""
        ...

    def drawn(self, w: Mapping[str, Tensor], keys: Tensor) -> Mapping[str, Tensor]:
        """Role -> what a step of training sees in the place of that tensor at one site, if ``in_steps``.

        Args:
            w: all tensors [K, …] there and constants [K]. keys: [K] int64, of the step of each client.
        """
        ...

    def penalty(self, w: Mapping[str, Tensor]) -> Tensor | None:
        """[K] what one site adds to the loss of a step, if ``in_steps``; the mean over all sites is taken. None = nothing."""
        ...

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        """The part's contribution at one site.

        Args:
            module: the frozen module of the backbone.
            w: role -> [k, …] tensors and constant -> [k] tensors of the clients in the rows; where ``dropout`` is above 0, in a
                step of training ``keys`` too: [k, b] of the rows, or [k, 1] where the module sees none; if ``whole_rows``,
                ``own``: bool [k, b, n / b], which of the positions are tokens of a row, and neither padding nor a padding row's.
            x, out: the module's input and frozen output, see ``mode``.

        Returns:
            what ``mode`` says.
        """
        ...

    mode: ClassVar[Mode]
    always: bool  # stays on whatever ``use`` says: heads and frozen deltas
    alone: ClassVar[bool]  # a pass is one client's: there is nothing that several could share
    in_steps: ClassVar[bool]  # steps of training see other tensors (``drawn``), or another loss (``penalty``)
    whole_rows: ClassVar[bool]  # what it adds to a token depends on the others of its row: ``apply`` is told which these are


class Additive:
    """Defaults of parts that add a term to the frozen output. Parts are dataclasses: values that their fields do not take are
    refused.
    """

    mode: ClassVar[Mode] = "adds"
    always = False
    dropout = 0.0
    alone: ClassVar[bool] = False
    in_steps: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = False

    if TYPE_CHECKING:  # of the part

        def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]: ...

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check(self)

    def inputs(self, backbone: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs

    def room(self, backbone: Backbone) -> int:
        return 0

    @property
    def rates(self) -> Mapping[str, float]:
        return {}

    def constants(self, site: Site) -> Mapping[str, float]:
        return {}

    def elsewhere(self, backbone: Backbone, site: Site) -> Mapping[str, str]:
        return {}

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        """Of all its matrices; tokens and vectors are multiplied by nothing."""
        if self.mode in ("embeds", "enters", "prefixes"):
            return {}
        sizes = self.tensors(backbone, site).items()
        return {role: init.numel for role, init in sizes if len(init.shape) > 1 and init.kind != "lowrank"}

    def drawn(self, w: Mapping[str, Tensor], keys: Tensor) -> Mapping[str, Tensor]:
        return {}

    def penalty(self, w: Mapping[str, Tensor]) -> Tensor | None:
        return None
