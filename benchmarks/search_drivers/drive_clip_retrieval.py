"""clip-retrieval over a folder: inference, index and queries, with the time within its model apart.

    PYTHON_OF_CLIP_RETRIEVAL drive_clip_retrieval.py IMAGES TEXTS.json WORK TOP

The last line of the output is JSON. A query is what its `clip filter` does: the text through the model, the
faiss index, the rows of its metadata; with the model and the index opened once.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from timing import timed

MODEL = "ViT-B/32"


def main(images: str, texts: str, work: str, top: str) -> None:
    """Index the folder, search for each text, print the times."""
    import faiss
    import pandas
    import torch
    from all_clip import load_clip
    from clip_retrieval.clip_index import clip_index
    from clip_retrieval.clip_inference import mapper, worker
    from clip_retrieval.clip_inference.main import main as clip_inference

    loading, computing = [0.0], [0.0]
    mapper.load_clip = worker.load_clip = timed(load_clip, loading)
    mapper.ClipMapper.__call__ = timed(mapper.ClipMapper.__call__, computing)
    model, _, tokenizer = load_clip(clip_model=MODEL, use_jit=False)
    embeddings, index = f"{work}/embeddings", f"{work}/index"
    began = time.perf_counter()
    clip_inference(images, embeddings, clip_model=MODEL, enable_text=False, batch_size=16, num_prepro_workers=2)
    clip_index(embeddings, index)
    indexed = time.perf_counter() - began - loading[0]
    rows = pandas.concat(pandas.read_parquet(file) for file in sorted(Path(index, "metadata").glob("*.parquet")))
    paths = rows["image_path"].tolist()
    found = faiss.read_index(f"{index}/image.index")
    whole, of_model = [], []
    for text in json.loads(Path(texts).read_text(encoding="utf-8")):
        began = time.perf_counter()
        with torch.no_grad():
            vector = model.encode_text(tokenizer([text]))
            vector /= vector.norm(dim=-1, keepdim=True)
        of_model.append(time.perf_counter() - began)
        _, numbers = found.search(vector.float().numpy(), int(top))
        assert [paths[number] for number in numbers[0] if number >= 0], "clip-retrieval finds nothing"
        whole.append(time.perf_counter() - began)
    told = {
        "version": version("clip-retrieval"),
        "images": len(paths),
        "load_s": loading[0],
        "index_s": indexed,
        "index_model_s": computing[0],
        "query_s": whole,
        "query_model_s": of_model,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
