"""What is on disk of every sweep: its journal, what is read back from it, and how it travels."""
