"""Rules over every method: SCAFFOLD, FedDyn, Mime and MimeLite, each a mix-in that is put before the class of a method.

:func:`weft.rules.composed.composed` makes the method with a rule over it. What a server makes of a mean is
:class:`weft.federation.server_step.ServerStep`, and FedProx is a setting of the local optimizer (``Optim.prox``).
"""
