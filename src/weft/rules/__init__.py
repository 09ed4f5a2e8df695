"""Rules over every method: SCAFFOLD, FedDyn, Mime and MimeLite, each a mix-in that is put before the class of a method.

:func:`composed` makes the method with a rule over it, which is a method like any other. What a server makes of a mean is
:class:`weft.federation.server_step.ServerStep`, and FedProx is a setting of the local optimizer (``Optim.prox``). Options of
LoRA and statistics of batch norms are put before a method's class in the same way, by :func:`with_options` and
:func:`with_norms`, and a rule goes over all.
"""

from __future__ import annotations

from weft.rules.compose import RULES, check, composed, mixin, plain
from weft.rules.over_lora import with_options, without_options
from weft.rules.over_norms import with_norms

__all__ = ["RULES", "check", "composed", "mixin", "plain", "with_norms", "with_options", "without_options"]
