"""User-defined images without privilege: see CONTRIBUTING.md for the map of the modules."""
