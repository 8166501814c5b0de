"""The HTTP side of Infold: bytes in, bytes out, and the wiring between them."""
