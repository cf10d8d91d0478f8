"""Scripts that a user would write without arcloop, and other libraries on the same tasks."""
