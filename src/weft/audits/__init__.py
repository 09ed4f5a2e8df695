"""Attacks on a run, by those who see what it has sent or what has come of it: :mod:`weft.audits.attacks` names them."""

from __future__ import annotations
