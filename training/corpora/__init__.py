"""Corpora of many sources, a file each: where they are, whose, on what terms, with what labels."""
