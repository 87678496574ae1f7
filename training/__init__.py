"""Where the backbones come from: raw videos to pretrained weights.

Installed as `uscl_zoo.training`, and under no other name. Imports run from here to `uscl_zoo`,
never back.
"""

if __name__ != "uscl_zoo.training":
    # from a checkout it would be a second package, whose classes are none of the first one's; with
    # its name in the error, `python -m training` prints the one line
    raise ImportError("use uscl_zoo.training, the one name of this package", name=__name__)
