"""The commands of ``thaw``, by subject, and what they share; `tuner.cli` puts them together."""
