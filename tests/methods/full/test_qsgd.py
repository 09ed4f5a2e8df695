"""QSGD is FedPAQ of one step, with other levels: its tests are in ``test_fedpaq.py``."""

from __future__ import annotations

from bytes_of import Case, factors_and_head

BYTES = Case({"rank": 2, "at": "q,ffn.in"}, factors_and_head, factors_and_head)
