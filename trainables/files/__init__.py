"""Files that survive what happens to them: any storage, locks, outages, writers that are killed."""
