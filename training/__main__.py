"""`python -m training …` from a checkout, and what torchrun starts: the same as `uscl …`."""

from uscl_zoo.cli import main

main()
