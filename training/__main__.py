"""`python -m uscl_zoo.training …`, which torchrun starts: the same as `uscl …`."""

from uscl_zoo.cli import main

main()
