"""PostgreSQL: SQL stands beside the function that runs it, one file per family of tables."""
