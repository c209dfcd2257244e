"""CapFilt: bootstrap a noisy image-text collection into a clean one (Li et al. 2022, section 3.3).

`stages` and `policy` are the three batch functions (write, score, decide), `pipeline` runs them on samples,
`job` makes a run of chunks that are resumed whole, `engines` map them over processes or a Ray cluster, `run` ties
these together, `summary` counts what came of it, `truth` judges it where the truth is known, `loop` is the paper's
loop around it all.
"""
