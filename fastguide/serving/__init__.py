"""Many callers: requests that are packed into batches, and pools of devices."""
