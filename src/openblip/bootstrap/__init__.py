"""CapFilt: bootstrap a noisy image-text collection into a clean one (Li et al. 2022, section 3.3).

`stages` are the three batch functions (write, score, decide), `pipeline` runs them on the pictures of a shard,
`job` makes shards of a run resumable, `engines` map a job over shards on one machine or on a Ray cluster, `run`
ties them together, `loop` is the paper's loop around it all.
"""
