"""`python -m rlm` is the same as `rlm`."""

from rlm.cli import main

main(prog_name="rlm")
