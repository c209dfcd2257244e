"""BLIP-2 at work: training in two stages and fine-tuning, features kept on disk, writing, matching, measuring."""
