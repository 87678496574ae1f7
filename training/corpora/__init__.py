"""Corpora of many sources, one file each."""
