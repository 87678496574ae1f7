"""Checkpoints: cards, the registry, and where verified weights come from."""
