"""For those who write methods: the laws of the contract over a method, and tiny federations to test it on.

``from weft.testing import laws``, and in a test file ``test_laws = laws.over(MyMethod())``. Beside them
:func:`weft.testing.federation.federation` plays a method in memory, on a random backbone of a few thousand parameters.
"""

from __future__ import annotations
