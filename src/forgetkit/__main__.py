"""`python -m forgetkit`."""

from forgetkit.cli import main

main()
