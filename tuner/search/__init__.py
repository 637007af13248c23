"""The search: what is tried next, what is ended early, and Ray Tune that runs it over lanes."""
