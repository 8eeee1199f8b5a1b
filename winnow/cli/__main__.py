"""`python -m winnow.cli`, which needs no installed command."""

from winnow.cli import main

main()
