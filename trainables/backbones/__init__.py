"""Pretrained CNNs and the places where they can be cut in two."""
