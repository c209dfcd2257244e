"""faiss's flat index over given vectors: each query compared with all of them.

    PYTHON_OF_FAISS drive_faiss.py VECTORS.npy QUERIES.npy TOP THREADS

The last line of the output is JSON: seconds of each query, and the numbers that it found.
"""

from __future__ import annotations

import json
import sys
import time


def main(vectors: str, queries: str, top: str, threads: str) -> None:
    """Search for each query, print times and numbers."""
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(int(threads))
    held, asked = np.load(vectors), np.load(queries)
    index = faiss.IndexFlatIP(held.shape[1])
    index.add(held)
    index.search(asked[:1], int(top))
    times, numbers = [], []
    for one in asked:
        began = time.perf_counter()
        numbers.append(index.search(one[None], int(top))[1][0].tolist())
        times.append(time.perf_counter() - began)
    print(json.dumps({"version": faiss.__version__, "query_s": times, "numbers": numbers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
