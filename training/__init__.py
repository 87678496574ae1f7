"""Where the backbones come from: raw videos to pretrained weights.

Installed as `uscl_zoo.training`. Imports run from here to `uscl_zoo`, never back.
"""
