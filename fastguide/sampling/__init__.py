"""What the door, `fastguide.sample`, is made of: a run's course, its conditions, its checks."""
