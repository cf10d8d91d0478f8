"""The command line: `arcloop VERB`."""
