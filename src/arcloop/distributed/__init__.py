"""Process group, launcher, collectives and synchronised batch norm."""
