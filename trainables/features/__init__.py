"""The feature store: what frozen layers computed, kept on disk and mapped back."""
