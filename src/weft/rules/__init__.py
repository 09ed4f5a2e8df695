"""Rules over every method: SCAFFOLD, FedDyn, Mime and MimeLite, each a mix-in that is put before the class of a method.

:func:`composed` makes the method with a rule over it, which is a method like any other. What a server makes of a mean is
:class:`weft.federation.server_step.ServerStep`, and FedProx is a setting of the local optimizer (``Optim.prox``).
"""

from __future__ import annotations

from weft.rules.compose import RULES, check, composed, mixin, plain

__all__ = ["RULES", "check", "composed", "mixin", "plain"]
