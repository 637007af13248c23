"""The commands of ``thaw``, one file each; `tuner.cli` puts them together."""
