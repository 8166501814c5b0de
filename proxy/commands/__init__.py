"""`infold items, search, state, ...`: the memory on the command line, for one tenant at a time."""
