"""Terminal output, plot style and HTML pages."""
