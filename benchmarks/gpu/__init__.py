"""One prepared run on a GPU: checks, tests, measurements and a training, in eight minutes (`benchmarks/gpu.sh`)."""
