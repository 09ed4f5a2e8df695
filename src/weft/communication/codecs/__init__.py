"""How tensors are written down, by the name that a message's header says.

- :mod:`~weft.communication.codecs.codec`: the protocol that all of them keep.
- :mod:`~weft.communication.codecs.known`: codecs by name, and one from its text, ``topk:share=0.01+qsgd:levels=7+entropy``.
- :mod:`~weft.communication.codecs.configured`: settings as text, and back.
- :mod:`~weft.communication.codecs.chain`: stages, and several of them joined.
- :mod:`~weft.communication.codecs.arrived`: what a message says of its tensors, before they are made.
- :mod:`~weft.communication.codecs.laid`, ``bits``, ``scales``, ``rans``: what stages are made of.

All other files hold a stage or a codec each, or a family of them that differ in a table.
"""

from __future__ import annotations

# They register themselves, in the order in which people are shown them
# isort: off
from weft.communication.codecs.known import CODECS, ENDS, codec, for_downloads, register
from weft.communication.codecs.codec import Codec
from weft.communication.codecs.identity import Identity
from weft.communication.codecs.quant8 import Quant8
from weft.communication.codecs.bucketed import QSGD
from weft.communication.codecs.adaptive import Adaptive
from weft.communication.codecs.nnadq import NNADQ
from weft.communication.codecs.blockwise import FP4, NF4, Block8
from weft.communication.codecs.half import Half
from weft.communication.codecs.sign import Sign
from weft.communication.codecs.topk import TopK
from weft.communication.codecs.randk import RandK
from weft.communication.codecs.entropy import Entropy
from weft.communication.codecs.shift import Learning
# isort: on

__all__ = [
    "CODECS",
    "ENDS",
    "FP4",
    "NF4",
    "NNADQ",
    "QSGD",
    "Adaptive",
    "Block8",
    "Codec",
    "Entropy",
    "Half",
    "Identity",
    "Learning",
    "Quant8",
    "RandK",
    "Sign",
    "TopK",
    "codec",
    "for_downloads",
    "register",
]
