"""One trial: the loop, its losses and scores, checkpoints, folds and seeds, and what is measured before it."""
