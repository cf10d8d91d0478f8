"""Side-by-side measurements. `make bench` runs all of them and prints ratios."""
