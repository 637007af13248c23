"""What a sweep may vary: the spec a user writes, and the space it declares."""
