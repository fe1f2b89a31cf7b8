"""Two pools with command gauges, and real processes that lie in one of them or across both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio
from support.small_engine import PROGRAM, PYTHON

import engine_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId

GAUGE = Path(__file__).parent / "programs" / "claims_gauge.py"
CLAIM = 'for g in $(echo "$GPUS" | tr , " "); do echo $0 > {folder}/gpu$g.$$; done; exec "$@"'

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="its engines claim memory by a shell's script"
)


def configuration(folder: Path) -> str:
    text = f'state_file = "{folder / "state.json"}"\n[scheduling]\nhold_s = 0\nmax_wait_s = 5\n'
    for number in (0, 1):
        gauge = json.dumps([*PYTHON, str(GAUGE), str(folder), f"gpu{number}"])
        text += f'[pools.gpu{number}]\ngauge = "command"\ncommand = {gauge}\ngpu = {number}\nmode = "budget"\nbudget_gb = 0.95\n'
    for name, pools, share in (("zero", [0], 500), ("one", [1], 500), ("wide", [0, 1], 600)):
        script = CLAIM.replace("{folder}", str(folder))
        argv = ["sh", "-c", script, str(share), *PYTHON, PROGRAM, "port={port}"]
        text += f'[engines.{name}]\ntype = "process"\nmodels = ["{name}"]\nargv = {json.dumps(argv)}\n'
        text += f'env = {{ GPUS = "{{gpus}}" }}\npools = {json.dumps([f"gpu{number}" for number in pools])}\n'
        text += f"memory_gb = {share * len(pools) / 1000}\n"
    return text


async def test_a_wide_process_and_narrow_ones_take_turns(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with engine_router.open_router(parse_config(configuration(tmp_path))) as router:

            def present(pool: str) -> list[str]:
                return [str(status.resident) for status in router.read_model.pool(pool).residents]

            async with router.lease("zero"), router.lease("one"):
                assert (present("gpu0"), present("gpu1")) == (["zero"], ["one"])
            async with router.lease("wide"):
                assert (present("gpu0"), present("gpu1")) == (["wide"], ["wide"])
                claims = sorted(path.stem for path in tmp_path.glob("gpu*") if path.read_text() == "600\n")
                assert claims == ["gpu0", "gpu1"]  # {gpus} was 0,1
                while router.read_model.measured(ResidentId("wide")).needs(("gpu0", "gpu1")) is None:
                    await trio.sleep(0.05)
            assert router.read_model.measured(ResidentId("wide")).needs(("gpu0", "gpu1")) == {
                "gpu0": 600 * 10**6,
                "gpu1": 600 * 10**6,
            }
            async with router.lease("one"):
                assert (present("gpu0"), present("gpu1")) == ([], ["one"])
