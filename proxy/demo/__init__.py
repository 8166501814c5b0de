"""`infold demo`: a long conversation, a provider that answers from its prompt alone, and Infold between the two."""
