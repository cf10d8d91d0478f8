"""What a user would do without arcloop, and other projects' code on equal work."""
