"""One trial: the loop, its losses and scores, checkpoints, replicas over folds and seeds, what is measured before."""
