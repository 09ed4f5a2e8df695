"""Codecs that tests run over, as their texts; among them every stage by itself, and every kind of chain."""

from __future__ import annotations

ALONE = (
    "quant8",
    "qsgd",
    "qsgd:levels=1,bucket=5,norm=l2",
    "qsgd:levels=127,bucket=16",
    "adaptive",
    "adaptive:bits=2.5,bucket=4",
    "nnadq",
    "nnadq:weight=1e-06",
    "block8",
    "block8:block=4",
    "nf4",
    "nf4:block=3",
    "fp4",
    "half",
    "half:format=bf16",
    "sign",
    "topk:share=0.3",
    "topk:share=0.05",
    "randk:share=0.3",
    "randk:share=0.3,common=true",
)
CHAINS = (
    "topk:share=0.3+quant8",
    "topk:share=0.2+nf4:block=8",
    "topk:share=0.5+half",
    "randk:share=0.4+qsgd:levels=3,bucket=8",
    "randk:share=0.4+adaptive:bits=3+entropy",
    "topk:share=0.3+sign+entropy",
    "qsgd:levels=1+entropy",
    "quant8+entropy",
    "nnadq+entropy",
    "block8+entropy",
    "fp4+entropy",
    "adaptive+entropy",
    "shift+topk:share=0.3",
    "shift+randk:share=0.4+qsgd:levels=3,bucket=8",
    "shift+qsgd:levels=1,bucket=8+entropy",
    "shift:step=soteriafl+randk:share=0.3",
)
TEXTS = ("identity", *ALONE, *CHAINS)
