"""Parts that know nothing of markets; each has users on two floors or more."""
