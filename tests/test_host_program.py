"""What importing the package does to the program that imports it: nothing."""

import subprocess
import sys

LOOK = """
import sys
{imports}
assert sys.modules.get("httpx._main", sys) is not None, "httpx cannot import its own command line any more"
import httpx
print(httpx.main.__module__)
"""
COMMAND = """
import runpy, sys
sys.argv = ["engine-router", "--version"]
try:
    runpy.run_module("engine_router", run_name="__main__")
except SystemExit:
    print(sys.modules["httpx._main"])
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_a_host_program_keeps_httpx_as_it_is() -> None:
    bare = run(LOOK.format(imports=""))
    imports = "import engine_router, engine_router.cli\nengine_router.open_router, engine_router.serve"
    assert run(LOOK.format(imports=imports)) == bare


def test_the_command_line_does_without_that_of_httpx() -> None:
    assert run(COMMAND) == "None"
