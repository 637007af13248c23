"""The user's pictures as the driver sees them: packed, dealt to sides, inspected, shown."""
