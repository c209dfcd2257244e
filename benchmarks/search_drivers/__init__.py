"""Programs that run a peer of the image index in the peer's own Python; they import nothing of OpenBLIP."""
