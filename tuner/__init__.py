"""What runs on the driver: sweeps, their records, and the command line."""
