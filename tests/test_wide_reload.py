"""A reload that changes the pools of models, or what they take of each: at once where it can, refused in words where not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio
from support.served import RawClient
from test_reload import CHAT, PROGRAM, Lab, lab, until

from engine_router.config.diff import Changes
from engine_router.errors import ConfigError

POOL = '[pools.{name}]\ngauge = "none"\nmode = "budget"\nbudget_gb = 10\ngpu = {gpu}\n'
SMALL, OTHER = ('pools = ["gpu0"]\nmemory_gb = 4', 'pools = ["gpu1"]\nmemory_gb = 4')
WIDE = 'pools = ["gpu0", "gpu1"]\nmemory_gb = { gpu0 = 5, gpu1 = 3 }'


def text(
    small: str = SMALL, other: str = OTHER, wide: str = WIDE, engine: str = 'pools = ["gpu0"]', more: str = ""
) -> str:
    pools = [("gpu0", 0), ("gpu1", 1), ("far", 2), ("farther", 3)]
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", 'said="{gpus}"', "name={model}"]
    models = {"small": small, "other": other, "wide": wide}
    return "\n".join(
        [
            'state_file = "/dev/null/state.json"\n[scheduling]\nhold_s = 0\n[server]\nshutdown_timeout_s = 0.1',
            *(POOL.format(name=name, gpu=gpu) for name, gpu in pools),
            f'[engines.t]\ntype = "process"\nargv = {json.dumps(argv)}\n{engine}',
            *(f'[models.{name}]\nengine = "t"\n{settings}' for name, settings in models.items()),
            more,
        ]
    )


def present(it: Lab, pool: str) -> set[str]:
    return {str(status.resident) for status in it.router.read_model.pool(pool).residents}


async def place(it: Lab, model: str) -> tuple[int, str]:
    """Return the process that serves a model, and the GPUs that it was given."""
    gpus = (await it.chat(model, do="said")).json()
    return await it.pid(model), str(gpus)


async def change(it: Lab, content: str) -> Changes:
    it.write(content)
    return await it.router.reload()


async def test_an_idle_model_goes_at_once_and_comes_back_in_its_new_pools(tmp_path: Path) -> None:
    async with lab(tmp_path, text()) as it:
        pid, gpus = await place(it, "small")
        undisturbed = await place(it, "other")
        assert gpus == "0"
        assert await change(it, text(small=OTHER)) == Changes(moved=("small",))
        await until(lambda: not present(it, "gpu0"))
        moved = await place(it, "small")
        assert moved[0] != pid
        assert moved[1] == "1"
        assert present(it, "gpu1") == {"t/small", "t/other"}
        assert await place(it, "other") == undisturbed
        # To more of them, and back to one.
        assert await change(it, text(small='pools = ["gpu1", "gpu0"]\nmemory_gb = 4')) == Changes(
            moved=("small",)
        )
        assert (await place(it, "small"))[1] == "1,0"
        assert (present(it, "gpu0"), present(it, "gpu1")) == ({"t/small"}, {"t/small", "t/other"})
        assert await change(it, text()) == Changes(moved=("small",))
        assert (await place(it, "small"))[1] == "0"
        assert await place(it, "other") == undisturbed


async def test_a_busy_model_ends_what_it_does_where_it_is(tmp_path: Path) -> None:
    async with lab(tmp_path, text()) as it:
        before = await place(it, "small")
        async with RawClient.to(it.url) as client:
            wish = {"model": "small", "do": "stream", "count": 40, "every": 0.01, "stream": True}
            await client.request("POST", CHAT, json.dumps(wish).encode())
            await client.until(b"word0")
            await change(it, text(small=OTHER))
            assert (present(it, "gpu0"), present(it, "gpu1")) == ({"t/small"}, set())
            async with trio.open_nursery() as nursery:

                async def ask_again() -> None:
                    after = await place(it, "small")
                    assert after[0] != before[0]
                    assert after[1] == "1"

                nursery.start_soon(ask_again)
                await client.until(b"[DONE]")
            assert b"word39" in client.received
        assert (present(it, "gpu0"), present(it, "gpu1")) == (set(), {"t/small"})


async def test_what_models_take_of_each_pool_counts_at_once(tmp_path: Path) -> None:
    async with lab(tmp_path, text()) as it:
        wide, small = await place(it, "wide"), await place(it, "small")
        changes = await change(it, text(wide=WIDE.replace("gpu0 = 5", "gpu0 = 6")))
        assert (changes.moved, changes.settings) == ((), ("models.wide",))
        assert (await place(it, "wide"), await place(it, "small")) == (wide, small)
        await change(it, text(wide=WIDE.replace("gpu0 = 5", "gpu0 = 7")))
        await until(lambda: len(present(it, "gpu0")) == 1)  # both do not fit any more
        await change(it, text())
        await it.pid("small")
        await it.pid("wide")
        assert present(it, "gpu0") == {"t/small", "t/wide"}


async def test_an_engines_own_pools_may_change_among_those_that_are_planned_together(tmp_path: Path) -> None:
    async with lab(tmp_path, text(small="memory_gb = 4")) as it:
        assert (await place(it, "small"))[1] == "0"
        changes = await change(it, text(small="memory_gb = 4", engine='pools = ["gpu1"]'))
        assert (changes.restarted, changes.moved) == (("t",), ())
        assert (await place(it, "small"))[1] == "1"


REFUSED = {
    "models.small.pools: far and gpu0": {"small": 'pools = ["far"]\nmemory_gb = 4'},
    "models.wide.pools: far and gpu0 and gpu1": {"wide": 'pools = ["gpu0", "gpu1", "far"]\nmemory_gb = 9'},
    "engines.t.pools: far and gpu0": {"engine": 'pools = ["far"]'},
    "families.f.pools: far and gpu0": {"more": '[families.f]\nmatch = "other*"\npools = ["far"]'},
    "engines.u.pools: far and farther": {
        "more": '[engines.u]\ntype = "process"\nargv = ["x", "{port}"]\nmodels = ["u"]\npools = ["far", "farther"]'
    },
}


@pytest.mark.parametrize("words", REFUSED)
async def test_pools_that_were_not_planned_together_take_a_restart(tmp_path: Path, words: str) -> None:
    async with lab(tmp_path, text()) as it:
        before = await place(it, "small")
        with pytest.raises(ConfigError) as caught:
            await change(it, text(**REFUSED[words]))
        assert (
            f"{words} were not planned together so far; this takes effect only when the router starts again; "
            "nothing was changed" in str(caught.value)
        )
        assert await place(it, "small") == before
