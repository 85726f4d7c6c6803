"""The store on disk: parts, runs and the DuckDB index over them."""
