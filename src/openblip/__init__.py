"""OpenBLIP: BLIP and BLIP-2, maintained, complete and fast."""

__version__ = "0.1.0"
