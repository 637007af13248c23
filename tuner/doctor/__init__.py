"""What may keep sweeps from running, and what was left behind."""
