"""``python -m tuner`` is ``thaw``."""

from tuner.cli import main

main()
