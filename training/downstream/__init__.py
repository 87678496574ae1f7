"""Judging pretrained weights on subjects they have not seen."""
