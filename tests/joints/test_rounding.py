"""Under autocast a block is as far from float64 as one of plain torch, compiled or not.

One result of half precision says little: it may be off by 5e-3 because of a fault, or because that
is what bfloat16 leaves. So the same block in plain torch is rounded as much, beside it.
"""

from __future__ import annotations

import json
import os

import pytest

from tests import interpreters
from tests.joints.workers import RELEASE, REPOSITORY
from tools.releases import release_path

# Half the distance between two numbers of bfloat16, relative to them.
ROUNDING = 2.0**-9
PROGRAM = """
import json, sys, torch
from tests.joints import subjects, twins
from tests.joints.measures import trained
name, found = sys.argv[1], []
subject = subjects.Subject(name)

def twin():
    made = getattr(twins, name)(subjects.WIDTH, **subjects._BLOCKS[name])
    subjects.fill(made)
    return made

block, compiled, plain = subject.module(), subject.module(), twin()
graph = torch.compile(compiled, backend="aot_eager")
for draw in range(8):
    x = torch.randn(subject.x.shape, generator=torch.Generator().manual_seed(draw))
    exact = trained(twin().double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        results = [trained(block, x), trained(compiled, x, graph), trained(plain, x)]
    for module in (block, compiled, plain):
        module.zero_grad()
    found.append([{
        key: float((result[key].double() - exact[key]).norm() / exact[key].norm())
        for key in ("out", "gradient of x", "gradient of in_proj.weight", "gradient of A_log")
    } for result in results])
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", ["Mamba", "Mamba2"])
def test_autocast_rounds_no_more_than_plain_torch_does(name: str) -> None:
    done = interpreters.run(
        ["-W", "ignore", "-c", PROGRAM, name],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(release_path(RELEASE)), str(REPOSITORY))),
            "JETSON_MAMBA": "on",
            "JETSON_MAMBA_CACHE": str(interpreters.copies()),
        },
        modules=interpreters.COMPILER,
    )
    assert done.returncode == 0, done.stderr
    draws = json.loads(done.stdout.splitlines()[-1])
    for key in draws[0][0]:
        block, compiled, plain = (sorted(draw[of][key] for draw in draws)[4] for of in range(3))
        assert block < 1.2 * plain, key
        assert compiled < 1.2 * plain, key
        assert ROUNDING / 2 < plain < 16 * ROUNDING, key  # else it would be no measure
