"""Results of a sweep: ranking, tables, plots, the page, and the best job."""
