"""Attacks on what a run has sent, by those who see it: :mod:`weft.audits.token_recovery`."""

from __future__ import annotations
