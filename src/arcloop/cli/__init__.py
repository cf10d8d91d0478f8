"""The command line `arcloop`."""
