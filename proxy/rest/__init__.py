"""`/memory-manager/*`: the memory over HTTP, for one tenant at a time."""
