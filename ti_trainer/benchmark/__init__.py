"""What the bench command runs: our loop, the plain loop, and the peers."""
