"""The context domain: what a conversation is, what of it a model should see, and where the rest is kept."""
