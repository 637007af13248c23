"""MLflow as a projection of the journal: its server or database, its runs, what it has been told."""
