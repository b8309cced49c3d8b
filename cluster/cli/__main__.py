"""`python -m cluster.cli`: the same as `argosy`, for processes that must use this very interpreter."""

from cluster.cli import main

main()
