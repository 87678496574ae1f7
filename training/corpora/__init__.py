"""Corpora of many sources, one file each: where they are, whose, on what terms, with which labels."""
