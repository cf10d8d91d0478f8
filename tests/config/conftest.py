collect_ignore = ["plugin"]  # the source of a package, which test_plugins.py installs
