"""`python -m fastguide` is the command `fastguide`."""

from fastguide.cli import main

main()
