"""What drivers share on the host: mounts, user ids, control groups, watching. Knows no driver."""
