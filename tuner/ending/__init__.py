"""The end of a sweep: the champion tested once, compared, written, registered."""
