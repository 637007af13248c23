"""Trained models: as a file, in MLflow's registry, as champion or challenger, and what they say of pictures."""
