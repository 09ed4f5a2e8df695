"""What is tuned, as a setting: for methods that work on any parts, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from weft.adaptation.bias import Bias, BiasScope
from weft.adaptation.bottleneck import Activation, Bottleneck, Placement, Scaling
from weft.adaptation.compacter import Compacter
from weft.adaptation.lora import LoRA
from weft.adaptation.norm import Norm
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.adaptation.scale import Scale
from weft.adaptation.soft_words import SoftWords
from weft.adaptation.tokens import ClassContext, ImageTokens
from weft.adaptation.weights import Weights
from weft.errors import UserError
from weft.typed import Count, NonNegative, Positive, check

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


Kind = Literal[
    "lora", "bottleneck", "compacter", "prefix", "bias", "norm", "scale", "ssf", "tokens", "context", "words", "weights", "head"
]


@dataclass(frozen=True)
class Tune:
    """One kind of part, and its settings; those of other kinds are without effect.

    Attributes:
        kind: ``lora``, ``bottleneck`` (adapters in each block), ``compacter`` (such of Kronecker products), ``prefix`` (keys and
            values in front of those of a row), ``bias`` (BitFit), ``norm`` (weights and biases of norms), ``scale`` (IA³),
            ``ssf`` (scale and shift), ``tokens`` (among the patches of pictures), ``context`` (before the class names of a
            CLIP), ``words`` (before a text), ``weights`` (the backbone's own), or ``head`` (nothing but the task's head).
        rank, alpha: of LoRA; the update is (α/r)·B A.
        at: linear layers that get LoRA, see ``Backbone.sites``.
        reduction: the hidden size over the bottleneck's.
        products: of a compacter, n. Its rank is 1, as the paper's.
        placement: of bottlenecks: ``block`` (after each block), ``ffn`` (in its feed-forward), ``sublayers`` (in its attention
            too) or ``parallel`` (beside its feed-forward, He et al., ICLR 2022).
        activation: of bottlenecks, ``relu`` or ``gelu_new``.
        up_std: of the start values of a bottleneck's second matrix; None = as its first, but 0 of ``parallel`` ones; 0 = the
            model begins as the frozen one.
        scaling: what a bottleneck's output is multiplied by; ``learned``: a number that begins at 1; None = 4 of ``parallel``
            ones, and 1 of others.
        hidden: width of the MLP that makes the prefix, or the words; None = without one.
        biases: which biases: ``all`` of the encoder, ``blocks``, ``linear`` or ``norm``.
        add_missing: give linear layers without a bias (LLaMA, T5) a zero one instead of refusing such a backbone.
        scaled: linear layers that are scaled, see ``Backbone.sites``; None = as the paper has it: ``k,v,ffn.out`` of ``scale``,
            and of ``ssf`` all linear layers, convolutions and norms.
        tokens: how many, of a prefix, among patches, in the context or before a text.
        deep: new tokens among the patches at every block.
        weights: which of the backbone's own: ``all``, those in the ``blocks``, or patterns of their names (``*.layer.5.*``);
            several joined by commas.
        head: train the task's head too, where the backbone has one.
    """

    kind: Kind = "lora"
    rank: Count = 8
    alpha: Positive = 16.0
    at: str = "q,v"
    reduction: Count = 16
    products: Count = 4
    placement: Placement = "block"
    activation: Activation = "relu"
    up_std: NonNegative | None = None
    scaling: Scaling | None = None
    hidden: Count | None = None
    biases: BiasScope = "all"
    add_missing: bool = False
    scaled: str | None = None
    tokens: Count = 10
    deep: bool = False
    weights: str = "all"
    head: bool = True

    def __post_init__(self) -> None:
        check(self)

    def parts(self, backbone: Backbone, head: Part) -> dict[str, Part]:
        """The parts by name: that of the kind, called like it, and the head.

        Args:
            head: the task's.

        Raises:
            UserError: nothing is to be trained but the head, and the backbone has none.
        """
        if self.kind == "head" and not backbone.heads:
            raise UserError(f'backbone "{backbone.name}" has no head to train: choose another tune.kind, such as lora.')
        made = PARTS.get(self.kind)
        found: dict[str, Part] = {} if made is None else {self.kind: made(self)}
        return found | ({"head": head} if self.kind == "head" or (self.head and backbone.heads) else {})


PARTS: dict[str, Callable[[Tune], Part]] = {
    "lora": lambda t: LoRA(t.rank, t.alpha, t.at),
    "bottleneck": lambda t: Bottleneck(
        t.reduction, placement=t.placement, activation=t.activation, up_std=t.up_std, scaling=t.scaling
    ),
    "compacter": lambda t: Compacter(
        t.products, reduction=t.reduction, placement=t.placement, activation=t.activation, scaling=t.scaling
    ),
    "prefix": lambda t: Prefix(t.tokens, t.hidden),
    "bias": lambda t: Bias(t.biases, t.add_missing),
    "norm": lambda t: Norm(),
    "scale": lambda t: Scale(t.scaled),
    "ssf": lambda t: Scale(t.scaled, shift=True),
    "tokens": lambda t: ImageTokens(t.tokens, t.deep),
    "context": lambda t: ClassContext(t.tokens),
    "words": lambda t: SoftWords(t.tokens) if t.hidden is None else SoftWords(t.tokens, encoder="mlp", hidden=t.hidden),
    "weights": lambda t: Weights(t.weights),
}
"""The part that each kind stands for."""
