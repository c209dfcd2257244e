"""torch's compiler is imported when something is compiled, and is then itself."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, sys, torch
from openblip.core.imports import without_compiler

def compiler():
    return sorted(name for name in sys.modules if name.split(".")[:2] == ["torch", "_dynamo"])

if os.fork() == 0:
    # Somebody imports it in the block itself.
    code = 1
    try:
        with without_compiler():
            from torch._dynamo.utils import is_compile_supported, counters
            import torch._dynamo
            assert torch._dynamo.utils.counters is counters
        assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
        with without_compiler():  # nothing is left to do
            from torch._dynamo.utils import is_compile_supported as again
        assert again is torch._dynamo.utils.is_compile_supported
        assert is_compile_supported("cpu") == again("cpu")
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)
assert os.wait()[1] == 0

seen = []
disable = torch.compiler.disable
with without_compiler():
    @torch.compiler.disable
    def one(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1
    @torch.compiler.disable(recursive=False)
    def other(x):
        return x * 2
assert torch.compiler.disable is disable and one.__name__ == "one"
assert one(torch.ones(1)).item() == 2 and other(torch.ones(1)).item() == 2
from openblip.models.tower_timm import timm
import openblip.tasks.load, openblip.tasks.predictor
from openblip.models.vision import VisionEncoder
from openblip.models.configs import VisionConfig
from openblip.checkpoints.blip_store import _empty_model
from openblip.models.blip import blip_config
assert next(_empty_model(blip_config("nano")).parameters()).is_meta
tower = VisionEncoder(VisionConfig(image_size=32, patch_size=16, width=32, depth=2, num_heads=2)).eval()
images = torch.zeros(1, 3, 32, 32)
with torch.no_grad():
    plain = tower(images)
    assert not compiler() and "sympy" not in sys.modules, compiler()
    # What timm and torchvision left for later is answered by the compiler itself.
    compiled = torch.compile(lambda x: other(one(x)) - 1, backend="eager")
    assert compiled(torch.ones(1)).item() == 3
    assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
    assert type(sys.modules["torch._dynamo.utils"]).__name__ == "module"
    torch.testing.assert_close(tower(images), plain)
print(seen)
"""


def test_models_are_opened_without_the_compiler_which_then_works() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[False, False]\n", "a function was compiled that must not be"
