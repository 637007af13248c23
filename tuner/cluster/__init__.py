"""The machines: Ray joined or started, and the lanes on it."""
