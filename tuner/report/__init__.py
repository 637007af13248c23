"""What people are told: figures with their intervals, tables, pictures."""
