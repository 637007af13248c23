"""From a user's pictures to batches: sources, packing, splits, views, batches."""
