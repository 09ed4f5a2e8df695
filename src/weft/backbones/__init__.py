"""Frozen foundation models: loading, description, token tables."""
