"""Bodies and events of the dialects we speak, turned into values and back; pure, and the raw bytes are kept."""
