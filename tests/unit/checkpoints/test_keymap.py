"""Maps between formats: fused, transposed and repeated tensors both ways, and every key accounted for."""

from __future__ import annotations

import pytest
import torch

from openblip.checkpoints.keymap import Rule, export_state, import_state
from openblip.core.errors import UserError

RULES = [
    Rule("norm", ("their.norm",)),
    Rule("qkv", ("their.q", "their.k", "their.v")),
    Rule("kernel", ("their.kernel",), transpose=True),
    Rule("word", ("their.word",), copies=(("their.head.word",), ("their.other.word",))),
]
OURS = {
    "norm": torch.arange(3.0),
    "qkv": torch.arange(24.0).reshape(6, 4),
    "kernel": torch.arange(6.0).reshape(2, 3),
    "word": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
}
SHAPES = {name: tensor.shape for name, tensor in OURS.items()}
THEIRS = {
    "their.norm": OURS["norm"],
    "their.q": OURS["qkv"][:2],
    "their.k": OURS["qkv"][2:4],
    "their.v": OURS["qkv"][4:],
    "their.kernel": OURS["kernel"].T,
    "their.word": OURS["word"],
    "their.head.word": OURS["word"],
    "their.other.word": OURS["word"],
}


def test_export_writes_their_names() -> None:
    exported = export_state(RULES, OURS)
    assert exported.keys() == THEIRS.keys()
    for name, tensor in exported.items():
        assert tensor.equal(THEIRS[name]), name
        assert tensor.is_contiguous()
    # Nothing shares memory, so that safetensors writes it and no change goes over.
    assert len({tensor.data_ptr() for tensor in exported.values()}) == len(exported)


@pytest.mark.parametrize("left_out", [(), ("their.head.word",), ("their.head.word", "their.other.word")])
def test_import_is_the_inverse_and_needs_no_copies(left_out: tuple[str, ...]) -> None:
    theirs = {name: tensor for name, tensor in THEIRS.items() if name not in left_out}
    imported = import_state(RULES, theirs, SHAPES, source="a file")
    assert imported.keys() == OURS.keys()
    assert all(imported[name].equal(OURS[name]) for name in OURS)


def test_a_missing_key_is_named() -> None:
    theirs = {name: tensor for name, tensor in THEIRS.items() if name != "their.k"}
    with pytest.raises(UserError, match=r'a file has no "their.k"'):
        import_state(RULES, theirs, SHAPES, source="a file")


def test_a_key_that_is_left_over_is_named_unless_it_is_known() -> None:
    theirs = {**THEIRS, "their.extra": torch.zeros(1), "their.more": torch.zeros(1)}
    with pytest.raises(UserError, match=r'unexpected key "their.extra" and 1 more'):
        import_state(RULES, theirs, SHAPES, source="a file")
    import_state(RULES, theirs, SHAPES, source="a file", ignored=["their.extra", "their.more"])


def test_another_shape_is_reported() -> None:
    with pytest.raises(UserError, match=r'"their.q" has shape \(3, 4\), which does not fit the model \(\(6, 4\)'):
        import_state(RULES, {**THEIRS, "their.q": torch.zeros(3, 4)}, SHAPES, source="a file")
