"""Models on disk: names, the catalogue, fetching."""
