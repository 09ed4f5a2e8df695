"""All that the author of a method imports: the contract, the parts to adapt a model with, and what they are made of.

These names follow semantic versioning; other modules of Weft may change without notice. Rules of aggregation are in
:mod:`weft.aggregation`, low-rank values in :mod:`weft.tensors.lowrank`.
"""

from __future__ import annotations

from weft.adaptation.attention_adapter import AttentionAdapter
from weft.adaptation.beside_head import BesideHead
from weft.adaptation.bias import Bias, BiasScope
from weft.adaptation.bottleneck import Activation, Bottleneck, Placement
from weft.adaptation.boundary import Boundary
from weft.adaptation.compacter import Compacter
from weft.adaptation.connector import ConnectorAdapter
from weft.adaptation.connector_mixture import ConnectorMixture
from weft.adaptation.exits import Exit
from weft.adaptation.head import ChosenHead, Head, TaskHead
from weft.adaptation.hyper_adapter import HyperAdapter
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.norm import Norm
from weft.adaptation.optim import Optim
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.adaptation.residual import Residual
from weft.adaptation.routed import Routed
from weft.adaptation.scale import Scale
from weft.adaptation.soft_words import SoftWords, WordEncoder, WordPlace
from weft.adaptation.sparse_weights import SparseWeights
from weft.adaptation.stacked_bottleneck import StackedBottleneck
from weft.adaptation.tokens import ClassContext, ImageTokens, Place
from weft.adaptation.tune import Tune
from weft.adaptation.values import Values
from weft.adaptation.weights import Weights
from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.backbones.word_table import WordTable
from weft.data.languages import family_of, language_of, name_of
from weft.devices import PROFILES, dealt
from weft.errors import UserError, WeftError, nearest
from weft.federation.batch import Batch, make_batch
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation, named
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.method import Method, Weighting
from weft.federation.pack import Pack
from weft.federation.pruned import Pruned
from weft.federation.round import Round
from weft.federation.scope import GIVEN, PERSONAL, SENT, SHARED, TEMPORARY, Scope
from weft.federation.server import ServerState
from weft.federation.split import SplitMethod
from weft.federation.tuned import Tuned
from weft.tasks.losses import distillation, mean_of
from weft.tasks.outputs import Output, average
from weft.tasks.several_tasks import Several
from weft.tasks.task import Task, goodness
from weft.tensors.forms import Value
from weft.tensors.init import Init, drawn_like
from weft.tensors.integers import Bounded, Integers, Shape
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked
from weft.typed import Called, Count, NonNegative, Portion, Positive, Share, Whole

__all__ = [
    "GIVEN",
    "PERSONAL",
    "PROFILES",
    "SENT",
    "SHARED",
    "TEMPORARY",
    "Activation",
    "Adaptation",
    "AttentionAdapter",
    "Backbone",
    "Batch",
    "Bench",
    "BesideHead",
    "Bias",
    "BiasScope",
    "Bottleneck",
    "Boundary",
    "Bounded",
    "Called",
    "ChosenHead",
    "ClassContext",
    "ClientInfo",
    "ClientState",
    "Compacter",
    "ConnectorAdapter",
    "ConnectorMixture",
    "Count",
    "Delta",
    "Exit",
    "Head",
    "HyperAdapter",
    "ImageTokens",
    "Init",
    "Integers",
    "LoRA",
    "LowRank",
    "Masked",
    "Message",
    "Method",
    "MethodInfo",
    "NonNegative",
    "Norm",
    "Optim",
    "Output",
    "Pack",
    "Part",
    "Place",
    "Placement",
    "Portion",
    "Positive",
    "Prefix",
    "Pruned",
    "Residual",
    "Round",
    "Routed",
    "Scale",
    "Scope",
    "ServerState",
    "Several",
    "Shape",
    "Share",
    "Site",
    "SoftWords",
    "SparseWeights",
    "SplitMethod",
    "StackedBottleneck",
    "Task",
    "TaskHead",
    "Tune",
    "Tuned",
    "Update",
    "UserError",
    "Value",
    "Values",
    "WeftError",
    "Weighting",
    "Weights",
    "Whole",
    "WordEncoder",
    "WordPlace",
    "WordTable",
    "average",
    "dealt",
    "distillation",
    "drawn_like",
    "family_of",
    "goodness",
    "language_of",
    "make_batch",
    "mean_of",
    "name_of",
    "named",
    "nearest",
]
