"""Whether what a user names is there, decided from names and files alone: no library of models is imported for it.

The command line calls these before it imports torch, so that a mistake is answered at once; whoever opens a model,
images or data calls them again, so that both say the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from openblip.core.errors import UserError, nearest, require
from openblip.core.kinds import instead_of_model, looks_like, read_head, refuse_other_kinds
from openblip.core.text import read_json

__all__ = [
    "DATA_BY_CONTENT",
    "DATA_ROOT",
    "NAMED",
    "QUERY",
    "TABLES",
    "WEIGHT_SUFFIXES",
    "adapter_folder",
    "check_config_file",
    "check_data",
    "check_device",
    "check_folder",
    "check_image",
    "check_model",
    "check_new_file",
    "check_run_folder",
    "check_run_settings",
    "description_file",
    "gguf_file",
    "local_path",
    "missing_data",
    "nested_model",
    "no_data",
    "nothing_in",
    "run_checkpoints",
    "wrong_place",
]

QUERY = re.compile(r"^(?P<path>.*?)\?(?P<query>\w+=[^?]*)$", re.DOTALL)
"""a data spec with settings: PATH?name=value&..."""
DATA_ROOT = "OPENBLIP_DATA"
"""the variable that names the folder of the published datasets"""
NAMED = re.compile(r"(?P<name>[A-Za-z][\w-]+):(?P<split>[\w.-]*)")
"""a split of a published dataset, NAME:SPLIT"""
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")
"""endings of captions files"""
DATA_BY_CONTENT = {"is a tar archive": ".tar", "is a parquet file": ".parquet"}
"""what `looks_like` says of files of data that are no text, and the ending under which they are read"""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
_FILE = "file://"
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "xla", "meta")
"""kinds of device that torch may know; whether one is present is checked later"""


def local_path(name: str) -> str:
    """`name` without "file://" and its escapes."""
    if not name.startswith(_FILE):
        return name
    return unquote(name[len(_FILE) :].removeprefix("localhost"), errors="surrogateescape")


def check_model(source: Path | str) -> None:
    """Refuse what is neither here nor a name that the hub could know: models of the hub have an owner, OWNER/NAME.

    (BERT and others of its oldest models have none, and BLIP's are not among them.)

    Raises:
        UserError: there is no such folder or file, and it is no hub name; the file is of another kind.
    """
    path, on_hub = Path(source), _HUB_NAME.fullmatch(str(source))
    if not path.exists() and (on_hub is None or on_hub[1] is None or path.suffix in WEIGHT_SUFFIXES):
        raise UserError(f"there is no model at {path}; give a model's folder, a checkpoint file or a hub name")
    if path.is_dir():
        description_file(path)
    elif path.is_file() and path.suffix != ".gguf" and (found := instead_of_model(read_head(path))):
        raise UserError(f"{path} is no checkpoint: it {found}")


def description_file(folder: Path) -> Path:
    """The config.json of a model's folder.

    Raises:
        UserError: there is none; where it is the folder of a run, its model is named.
    """
    file, nested = folder / "config.json", nested_model(folder)
    if not file.is_file():
        raise UserError(adapter_folder(folder) or f"{folder} is no model folder: it has no config.json{nested}")
    described = read_json(file) if nested else None
    if isinstance(described, dict) and "model_type" not in described:
        raise UserError(f"{folder} is the folder of a run{nested}")
    return file


def nested_model(folder: Path) -> str:
    """A hint for who names the folder of a run: its model lies in it."""
    nested = folder / "model"
    return f"; did you mean {nested}?" if (nested / "config.json").is_file() else ""


def check_device(name: str) -> None:
    """Refuse what no device is called.

    Raises:
        UserError: names the nearest kind.
    """
    kind, _, index = name.partition(":")
    if kind not in _DEVICES or (index and not index.isdecimal()):
        raise UserError(f'unknown device "{name}"{nearest(kind, ["auto", "cpu", "cuda", "mps"])}')


def adapter_folder(source: Path | str) -> str | None:
    """A sentence about a folder that holds a PEFT adapter (such as LoRA) and no model; None for any other."""
    folder = Path(source)
    file = folder / "adapter_config.json"
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = read_json(file).get("base_model_name_or_path") or "its base model"
    except (UserError, OSError, AttributeError):
        base = "its base model"
    return (
        f"{folder} is a PEFT adapter of {base}, not a whole model; merge them into a new folder in Python: "
        f'peft.PeftModel.from_pretrained(base, "{folder}").merge_and_unload().save_pretrained("merged")'
    )


def wrong_place(source: Path | str) -> str | None:
    """Why no model of transformers is at `source`, where its files or their absence show that; else None.

    To be called after one could not be opened: files that another format needs may be missing from a good folder.
    """
    path = Path(source)
    if path.is_file():
        found = instead_of_model(read_head(path))
        if path.suffix.lower() == ".gguf":
            return f"{path} cannot be read as a GGUF file of an architecture that transformers knows"
        return f"{path} is one file, where a model's folder is needed" + (f"; it {found}" if found else "")
    if not path.is_dir():
        return _missing(str(source))
    if message := adapter_folder(path):
        return message
    for pattern in _OF_MODELS:
        for file in sorted(path.glob(pattern)):
            if found := looks_like(read_head(file)):
                own = pattern.endswith((".bin", ".safetensors"))
                if not own or instead_of_model(read_head(file)):
                    return f"{file} cannot be read: it {found}"
    if files := sorted(path.glob("*.gguf")):
        return f"{path} holds GGUF files; a language model is opened from one by its name, {files[0]}"
    return None


def _missing(source: str) -> str | None:
    """That there is no such folder or file; None where the hub may have it."""
    folder, _, name = source.rpartition("/")
    if not name.lower().endswith(".gguf"):
        return None if _HUB_NAME.fullmatch(source) or not source else f"there is no folder {source}"
    if Path(folder or ".").is_dir():
        return f"there is no file {source}"
    return None if _HUB_NAME.fullmatch(folder) else f"there is no folder {folder}"


def gguf_file(source: str) -> tuple[str, dict[str, str]]:
    """Folder or hub name of a model, and what transformers is told besides if `source` names a GGUF file in it."""
    if not source.lower().endswith(".gguf"):
        return source, {}
    require("gguf", "gguf")
    folder, _, name = source.rpartition("/")
    return folder or ".", {"gguf_file": name}


_OF_MODELS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "generation_config.json", "vocab.txt", "vocab.json"),
    *("merges.txt", "*.index.json", "model*.safetensors", "pytorch_model*.bin"),
)
"""files that transformers reads"""


def check_image(place: Path | str) -> None:
    """Refuse a place of images that is not here; patterns are left to those who look for them.

    Raises:
        UserError: there is no such file or folder, or the folder is empty.
    """
    place = local_path(str(place))
    if "://" in place and not Path(place).exists():
        raise UserError(f"{place} is a web address; download the image and give its path")
    if not Path(place).exists() and not any(letter in place for letter in "*?["):
        raise UserError(f"there is no image or folder {place}")
    if _is_empty(Path(place)):
        raise UserError(f"there is no image in {place}: it is empty")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def check_data(spec: str) -> None:
    """Refuse a data spec whose path is not here; the hub, worlds, published datasets, patterns and ranges are left
    to who opens them.

    Raises:
        UserError: there is no such file or folder, and the nearest one beside it is named; the folder is empty; the
            file is of a kind that holds no data.
    """
    match = QUERY.match(spec)
    place = spec if match is None or Path(spec).exists() else match["path"]
    elsewhere = place.startswith(("world:", "hf:", "pipe:")) or "://" in place
    if elsewhere or any(letter in place for letter in "*?[{"):
        return
    path = Path(place).expanduser()
    if not path.exists() and not NAMED.fullmatch(place):
        raise UserError(missing_data(place))
    if _is_empty(path):
        raise UserError(nothing_in(path))
    head = read_head(path) if path.is_file() else b""
    if head and (found := looks_like(head)) and found not in DATA_BY_CONTENT and path.suffix.lower() != ".tar":
        if path.suffix.lower() in TABLES:
            refuse_other_kinds(path, head, "a parquet file" if path.suffix == ".parquet" else "a captions file")
        raise UserError(no_data(path, found))


def nothing_in(folder: Path, but: str = "") -> str:
    """The sentence about a folder that holds no data; `but` says what it holds instead."""
    wanted = "a folder of images with .txt files beside them, or a captions file"
    return f"{folder} holds no images, tars or captions files{but}; give {wanted}"


def no_data(path: Path, found: str) -> str:
    """The sentence about a file that is no data; `found` is what `looks_like` says, "" where nothing is known."""
    seen = f": it {found}" if found else ""
    return (
        f'{path} is of no known kind ("{path.suffix.lower()}"{seen}); give a folder, or a file that ends in '
        f"{', '.join((*TABLES, '.tar'))}"
    )


def missing_data(place: str) -> str:
    """The sentence about a path of data that leads nowhere."""
    path = Path(place).expanduser()
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, there)
    return f"there is no file or folder {place}{close if 'did you mean' in close else ''}"


def check_config_file(path: Path | None) -> None:
    """Refuse a file of settings that is not here.

    Raises:
        UserError: there is no such file.
    """
    if path is not None and not path.is_file():
        raise UserError(f"there is no configuration file {path}")


def check_run_settings(path: Path) -> None:
    """Refuse what holds no settings of a run: a file that is not here, and a model's config.json.

    Raises:
        UserError: see above; names the file of the run that the model lies in.
    """
    check_config_file(path)
    described = read_json(path) if path.suffix == ".json" else None
    if isinstance(described, dict) and "model_type" in described:
        run = path.parent.parent / path.name
        hint = f"; did you mean {run}?" if run.is_file() else ""
        raise UserError(f"{path} describes a model, where the settings of a run are needed{hint}")


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be written to, or cannot be made.

    Raises:
        UserError: it or what should hold it is a file, or cannot be written to.
    """
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"the folder {out} cannot be made: {there} is a file; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the folder {out} cannot be made: {there} cannot be written to; choose another")


def check_run_folder(out: Path, *, resume: bool) -> None:
    """Refuse a folder in which a run cannot begin.

    Raises:
        UserError: as `check_folder`, or it holds a run and `resume` is False.
    """
    check_folder(out)
    steps = run_checkpoints(out)
    if not resume and (steps or (out / "metrics.jsonl").exists()):
        where = f"up to step {int(steps[-1].name[5:])}" if steps else "without a checkpoint yet"
        raise UserError(f"{out} already holds a run ({where}); continue with --resume, or choose another folder")


def run_checkpoints(out: Path) -> list[Path]:
    """Complete checkpoints of the run in a folder, oldest first (an unfinished one has another name)."""
    folder = out / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())


def check_new_file(out: Path | None, other: Path | None = None) -> None:
    """Refuse to write over a file of results; an empty one holds none.

    Args:
        other: of the same command, written before.

    Raises:
        UserError: it exists, or both are the same.
    """
    if out is not None and out.exists() and not (out.is_file() and out.stat().st_size == 0):
        raise UserError(f"{out} exists already; choose a new file")
    if out is not None and other is not None and os.path.abspath(out) == os.path.abspath(other):
        raise UserError(f"{out} is named for two different results; choose two files")
