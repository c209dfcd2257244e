"""Claims of the papers in the scene world, where the truth of every text is known; the demo; runs on real data."""
