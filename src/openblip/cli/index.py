"""Commands of an image index: `index build`, `add`, `remove`, `search`, `duplicates` and `info`.

On a terminal they print lines to read; into a pipe or a file they print JSON, one object a line.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from openblip.cli.arguments import Data, Device, Dtype, Model, OptionalData, Tokenizer, need, person
from openblip.cli.progress import progress
from openblip.cli.results import check_counts, limit_threads, open_predictor, scores_line, show_table, tell
from openblip.core.errors import UserError, require
from openblip.core.text import counted, json_bytes, rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openblip.index import Hit, ImageIndex
    from openblip.index.building import Changes
    from openblip.index.entries import Place

__all__ = [
    "index_add",
    "index_build",
    "index_duplicates",
    "index_info",
    "index_remove",
    "index_search",
    "metadata_of",
]

_MOST_TOLD = 20
"""broken images that are told one by one"""
_WHAT_DATA = "what to index: folders, captions files, tars, images, globs in quotes, or a dataset such as coco:test"

Index = Annotated[
    str,
    arg(
        metavar="INDEX",
        help="folder of the index, or postgresql://USER@HOST/DATABASE#NAME",
        help_behavior_hint="(required)",
    ),
]
IndexModel = Annotated[
    str | None,
    arg(metavar="MODEL", help="the model of the index, where it has moved", help_behavior_hint=""),
]
Paths = Annotated[tuple[str, ...], arg(metavar="PATH ...", help_behavior_hint="")]
Folder = Annotated[str, arg(metavar="FOLDER", help="only images in or below it", help_behavior_hint="")]
Since = Annotated[
    str,
    arg(metavar="DATE", help="only images taken then or later: 2024, 2024-05, 2024-05-01", help_behavior_hint=""),
]
Until = Annotated[str, arg(metavar="DATE", help="only images taken then or earlier", help_behavior_hint="")]
Words = Annotated[
    str, arg(metavar="WORDS", help="only images whose captions have all these words", help_behavior_hint="")
]
Meta = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(metavar="NAME=VALUE", help="only images with that metadata", help_behavior_hint="(repeat it for more)"),
]


def index_build(
    data: Data = (),
    /,
    *,
    model: Model,
    out: Index,
    store: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None,
    tokenizer: Tokenizer = None,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Index images for search; the same command again resumes, or brings the index up to date.

    Args:
        data: folders, captions files, tars, images, globs in quotes, or published datasets.
        store: a database postgresql://USER@HOST/DATABASE; --out is then the name of the index in it.
        batch_size: images at a time.
    """
    need(data, _WHAT_DATA)
    from openblip.index.address import check_address, is_address

    if store is not None:
        out = f"{store}#{out}"
    if store is not None or is_address(out):
        check_address(out)
    from openblip.index.building import create
    from openblip.index.image_index import ImageIndex

    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)
    create(out, predictor, model, tokenizer=tokenizer or "")
    with ImageIndex.open(out, predictor) as index:
        _update(index, _places(data))


def index_add(
    data: OptionalData = (),
    /,
    *,
    index: Index,
    model: IndexModel = None,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Add images to an index, and bring those of the same place up to date.

    Args:
        data: as for index build; left out, all that the index was made from.
        batch_size: images at a time.
    """
    check_counts(batch_size=batch_size)
    with _open(index, model, device=device, dtype=dtype, batch_size=batch_size) as opened:
        places, unread = (_places(data), 0) if data else _known_places(opened)
        _update(opened, places, unread)


def _open(index: Path | str, model: str | None, **how: Any) -> ImageIndex:
    from openblip.index.image_index import ImageIndex

    limit_threads()
    return ImageIndex.open(index, model, **how)


def _places(specs: Sequence[str]) -> list[Place]:
    from openblip.index.entries import Place

    return [Place(spec) for spec in dict.fromkeys(specs)]


def _known_places(index: ImageIndex) -> tuple[list[Place], int]:
    """Where the images of an index came from, and how many of these places cannot be read.

    The images of such a place stay, since a disk may come back, and the others are brought up to date.
    """
    found: list[Place] = []
    unread = 0
    for spec in index.catalog.places():
        try:
            found += _places([spec])
        except UserError as error:
            if held := len(index.catalog.ids_of_place(index.catalog.place(spec))):
                unread += 1
                kept = f"{counted(held, 'image')} from there stay until openblip index remove"
                print(f"openblip: {error}; {kept}", file=sys.stderr)
    return found, unread


def _update(index: ImageIndex, places: Sequence[Place], unread: int = 0) -> None:
    """Bring an index up to date with places and say what came of it; exit with 1 when anything was skipped."""
    from openblip.index.building import update

    began, all_broken = time.perf_counter(), 0
    for place in places:
        with progress(len(place)) as show:
            changes = update(index, place, progress=show)
        all_broken += len(changes.broken)
        for sample in changes.broken[:_MOST_TOLD]:
            tell(sample)
        if (more := len(changes.broken) - _MOST_TOLD) > 0:
            all_of_them = f"openblip index info --index {index.name} lists all"
            print(f"openblip: and {more} more; {all_of_them}", file=sys.stderr)
        _tell_changes(place.spec, changes)
    took = f"{index.predictor.computing}, {time.perf_counter() - began:.1f} s"
    print(f"openblip: {index.catalog.count()} images in {index.name} ({took})", file=sys.stderr)
    if all_broken or unread:
        raise SystemExit(1)


def _tell_changes(spec: str, changes: Changes) -> None:
    counts = {name: getattr(changes, name) for name in ("added", "changed", "removed", "same")}
    counts["skipped"] = len(changes.broken)
    if person():
        print(f"{spec}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    else:
        print(json_bytes({"data": spec, **counts}).decode())


def index_remove(paths: Paths = (), /, *, index: Index) -> None:
    """Remove images from an index; the files stay, and `index add` brings their images back.

    Args:
        paths: files, or folders and tars with all images in them.
    """
    need(paths, "the images, folders or tars to remove")
    from openblip.index.catalog import Catalog, remove
    from openblip.index.stores import open_database

    with closing(Catalog(open_database(index))) as catalog:
        removed = remove(catalog, paths)
        print(f"openblip: {counted(removed, 'image')} removed from {catalog.database.name}", file=sys.stderr)


def index_search(
    query: Annotated[Positional[str], arg(metavar="[QUERY]", help_behavior_hint="")] = "",
    /,
    *,
    index: Index,
    image: Annotated[Path | None, arg(metavar="IMAGE", help_behavior_hint="")] = None,
    top: int = 10,
    rerank: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    folder: Folder = "",
    since: Since = "",
    until: Until = "",
    words: Words = "",
    meta: Meta = (),
    json: bool = False,
    paths: bool = False,
    sheet: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    explain: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    cache_mb: float = 1024.0,
    model: IndexModel = None,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Search an index by a text, by an image, or by both.

    Args:
        query: a text, or several with weights: "+car -red", "+car -0.5*red".
        image: an image that hits are to be similar to.
        top: hits to print, the best first.
        rerank: candidates that ITM reads; left out, 32, and 0 orders by ITC alone.
        json: print JSON lines on a terminal too.
        paths: print paths alone, one a line.
        sheet: a new .html file with the hits as images.
        explain: a new folder of drawings of where the model looks in each hit for the words of the query.
        cache_mb: of image features for ITM that the index keeps on disk, in MB.
        batch_size: images at a time.
    """
    if not query and image is None:
        raise UserError('say what to search for: a text such as "a red bus", or --image FILE')
    check_counts(top=top, batch_size=batch_size)
    check_counts(0, cache_mb=cache_mb, rerank=rerank or 0)
    from openblip.index.filters import Filters

    if explain is not None:
        require("matplotlib", "report")
        if not query:
            raise UserError("--explain draws where the model looks for words; give a text to search for")
    filters = Filters(folder=folder, since=since, until=until, words=words, metadata=metadata_of(meta))
    how = {"device": device, "dtype": dtype, "batch_size": batch_size, "cache_bytes": int(cache_mb * 1e6)}
    with _open(index, model, **how) as opened:
        if explain is not None:
            opened.predictor.adapter.need("explain").need("match")
        hits = opened.search(text=query or None, image=image, count=top, rerank=rerank, filters=filters)
        for place, hit in enumerate(hits, 1):
            _print_hit(place, hit, paths=paths, lines=person() and not json)
        if explain is not None:
            _draw(opened, query, hits, explain)
        if sheet is not None:
            _write_sheet(opened, query, image, hits, sheet)
    if not hits:
        why = f"no image in {opened.name} passes the filters" if filters else f"{opened.name} holds no images"
        print(f"openblip: {why}", file=sys.stderr)


def metadata_of(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f'--meta takes NAME=VALUE, not "{pair}"')
        found[name] = value
    return found


def _print_hit(place: int, hit: Hit, *, paths: bool, lines: bool) -> None:
    if paths:
        print(hit.path)
    elif lines:
        scores = scores_line(hit.score, hit.itc, hit.itm)
        print(f"{place:3d}. {hit.path}   {scores}" + (f"   {hit.caption}" if hit.caption else ""))
    else:
        record = {
            "rank": place,
            "path": hit.path,
            **rounded({"score": hit.score, "itc": hit.itc, "itm": hit.itm}),
            "caption": hit.caption,
            "date": hit.date,
            "metadata": hit.metadata,
            "id": hit.id,
        }
        print(json_bytes(record).decode())


def _write_sheet(index: ImageIndex, query: str, image: Path | None, hits: Sequence[Hit], sheet: Path) -> None:
    from openblip.report.page import write_report
    from openblip.report.page_images import PageImage, page_image
    from openblip.report.search import search_sheet

    def shown(hit: Hit) -> PageImage | None:
        try:
            name = hit.caption or Path(hit.path).name
            return page_image(index.image(hit.id, min_side=300), alt=name, max_side=300)
        except UserError:
            return None

    asked = " and ".join([*([query] if query else []), *([f"images like {image.name}"] if image else [])])
    write_report(sheet, search_sheet(asked, hits, map(shown, hits), Path(index.name).name))
    print(f"openblip: the contact sheet is {sheet}", file=sys.stderr)


def _draw(index: ImageIndex, query: str, hits: Sequence[Hit], folder: Path) -> None:
    from openblip.explain.cam import match_maps
    from openblip.explain.drawing import draw_maps
    from openblip.index.queries import parse_query

    predictor = index.predictor
    texts = [predictor.clean(words) for words, weight in parse_query(query) if weight > 0]
    for place, hit in enumerate(hits, 1):
        shown = index.image(hit.id)
        memory = predictor.remember(shown)
        maps = [one for text in texts for one in match_maps(predictor.model, predictor.tokenizer, memory, text)]
        told = "" if hit.itm is None else f" ({hit.itm:.0%} by ITM)"
        draw_maps(folder / f"{place:03d}-{Path(hit.path).stem}.png", shown, maps, title=f"{query}{told}")
    print(f"openblip: drawings of where the model looks are in {folder}", file=sys.stderr)


def index_duplicates(
    *,
    index: Index,
    by: Literal["look", "vectors"] = "look",
    distance: int = 4,
    similarity: Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    folder: Folder = "",
    since: Since = "",
    until: Until = "",
    words: Words = "",
    meta: Meta = (),
    json: bool = False,
    paths: bool = False,
) -> None:
    """List groups of images that are nearly the same, the largest file of each first.

    Args:
        by: look compares perceptual hashes and confirms them by vectors; vectors compares all vectors with all.
        distance: bits of 64 in which perceptual hashes may differ.
        similarity: least cosine of the vectors; left out, 0.9 to confirm and 0.97 alone.
        json: print JSON lines on a terminal too.
        paths: print the paths of all but the first of each group, one a line.
    """
    if not 0 <= distance <= 16:
        raise UserError(f"--distance is from 0 to 16 bits, not {distance}")
    if similarity is not None and not -1 <= similarity <= 1:
        raise UserError(f"--similarity is a cosine from -1 to 1, not {similarity:g}")
    from openblip.index.filters import Filters

    filters = Filters(folder=folder, since=since, until=until, words=words, metadata=metadata_of(meta))
    with _open(index, None) as opened:
        groups = opened.duplicates(by=by, distance=distance, similarity=similarity, filters=filters)
    for place, group in enumerate(groups, 1):
        if paths:
            print("\n".join(record.path for record in group[1:]))
        elif person() and not json:
            print("\n".join([f"{place}.", *(f"  {record.path}   {record.size:,} bytes" for record in group)]))
        else:
            images = [{"path": record.path, "bytes": record.size, "hash": record.hash} for record in group]
            print(json_bytes({"group": place, "images": images}).decode())
    more = sum(len(group) - 1 for group in groups)
    print(f"openblip: {len(groups)} groups, {more} images beyond the first of each", file=sys.stderr)


def index_info(*, index: Index, json: bool = False) -> None:
    """Say what an index holds, of which model it is, and which images could not be read.

    Args:
        json: print JSON on a terminal too.
    """
    from openblip.index.catalog import Catalog
    from openblip.index.stores import open_database

    with closing(Catalog(open_database(index))) as catalog:
        settings, broken = catalog.settings, catalog.broken()
        told = {
            "images": catalog.count(),
            "removed": catalog.count(removed=True),
            "broken": len(broken),
            "vectors": catalog.num_vectors,
            "vectors of an image": f"{settings['shape'][0]} x {settings['shape'][1]}",
            "model": settings["model"],
            "fingerprint": settings["fingerprint"],
            "created": settings["created"],
            "data": catalog.places(),
            "bytes": catalog.database.nbytes(),
        }
    if person() and not json:
        show_table(
            catalog.database.name,
            ("", "value"),
            {k: ", ".join(v) if k == "data" else str(v) for k, v in told.items()},
        )
        for sample in broken:
            print(f"  {sample.key} ({sample.cause}): {sample.detail}")
        return
    listed = [{"path": sample.key, "cause": sample.cause, "detail": sample.detail} for sample in broken]
    print(json_bytes({**told, "broken_images": listed}).decode())
