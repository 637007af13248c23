"""What runs on the workers: data, backbones, the training loop, and its Ray Train and Ray Tune glue."""
