"""A whole systemd: process 1 of namespaces of its own, above a copy of this machine's files, or of others; needs root.

What it writes lies in memory and is gone with it. It can be rebooted: the copy stays, all processes are new.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from attrs import define, field

LIMIT_S = 180.0
ROOT = Path(__file__).parent.parent.parent

# A cgroup of its own, which becomes the root of all that systemd sees; then boots, until one is no reboot.
MACHINE = r"""
set -e
files=$1 cgroup=$2 repository=$3 lower=$4
mkdir -p "$cgroup"
echo $$ >"$cgroup/cgroup.procs"
mount -t tmpfs none "$files"
mkdir "$files/upper" "$files/work" "$files/root"
while true; do
    ended=0
    unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --net --cgroup \
        sh -c "$BOOT" boot "$files" "$cgroup" "$repository" "$lower" || ended=$?
    # A reboot ends process 1 by SIGHUP.
    [ $ended = 129 ] || exit $ended
done
"""

BOOT = r"""
set -e
files=$1 cgroup=$2 repository=$3 lower=$4 root=$1/root
mount -t overlay -o "lowerdir=$lower,upperdir=$files/upper,workdir=$files/work" overlay "$root"
# None of this machine's own services, and nothing that clears folders or turns to its devices.
[ -e "$files/booted" ] || rm -rf "$root"/etc/systemd/system/*.wants
touch "$files/booted"
for unit in getty.target systemd-udevd.service systemd-journald-audit.socket systemd-tmpfiles-setup.service \
    systemd-tmpfiles-clean.timer systemd-firstboot.service systemd-modules-load.service modprobe@.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mount -t tmpfs none "$root/tmp"
mount -t tmpfs none "$root/run"
mkdir -p "$root/$repository"
mount --bind -o ro "$repository" "$root/$repository"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 none "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs none "$root/dev/shm"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 none "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
cd "$root"
mount --move . /
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot . /lib/systemd/systemd --system --log-target=console
"""


@define
class SystemManager:
    """A machine of its own that systemd has booted."""

    _machine: subprocess.Popen[bytes]
    _files: Path
    _environment: Mapping[str, str]
    _first: psutil.Process | None = field(default=None, init=False)

    def run(self, *argv: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on it, as root."""
        assert self._first is not None
        namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root", "--wd")
        return subprocess.run(
            ["nsenter", "--target", str(self._first.pid), *namespaces, *argv],
            check=False,
            capture_output=True,
            text=True,
            input=given,
            env=self._environment,
            timeout=LIMIT_S,
        )

    def router(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `engine-router`."""
        return self.run(sys.executable, "-m", "engine_router", *arguments)

    def property(self, name: str) -> str:
        """Return a property of the unit."""
        return self.run("systemctl", "show", "-P", name, "engine-router.service").stdout.strip()

    def booted(self) -> bool:
        """Wait until it has started all that starts by itself; False if it does not boot."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and self._machine.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                self._first = psutil.Process(self._machine.pid).children()[0].children()[0]
                if self._first.name() == "systemd":
                    state = self.run("systemctl", "is-system-running", "--wait").stdout.strip()
                    if state in ("running", "degraded"):
                        return True
            time.sleep(0.1)
        return False

    def reboot(self) -> bool:
        """Reboot it; False if it does not come back."""
        assert self._first is not None
        before = self._first
        self.run("systemctl", "reboot")
        with contextlib.suppress(psutil.NoSuchProcess):
            before.wait(LIMIT_S)
        return self.booted()

    def written(self) -> set[str]:
        """Return the files that are not this machine's, but those that systemd itself writes."""
        mounts = ["nsenter", "--target", str(self._machine.pid), "--mount"]
        find = ["find", f"{self._files}/upper", "-type", "f", "-printf", "/%P\n"]
        found = subprocess.run([*mounts, *find], check=True, capture_output=True, text=True).stdout
        own = ("/var/log/journal/", "/var/lib/systemd/", "/var/log/wtmp", "/etc/.updated", "/var/.updated")
        return {name for name in found.splitlines() if not name.startswith(own)}


@contextlib.contextmanager
def system_manager(tmp_path: Path, lower: Path = Path("/")) -> Iterator[SystemManager]:
    """Boot systemd; skip the test where that cannot be done.

    Args:
        lower: the files of the machine; where they are not this machine's, its environment is not either.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists():
        pytest.skip("needs root and systemd")
    files = tmp_path / "files"
    files.mkdir()
    hierarchy = Path("/sys/fs/cgroup")
    if not (hierarchy / "cgroup.controllers").exists():
        hierarchy /= "systemd"
    cgroup = hierarchy / f"engine-router-test-{os.getpid()}"
    log = tmp_path / "systemd.log"
    with log.open("wb") as file:
        machine = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", MACHINE, "machine", str(files), str(cgroup), str(ROOT), str(lower)),
            ],
            env={"PATH": os.environ["PATH"], "BOOT": BOOT},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        if lower == Path("/"):
            more = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
            environment = {"PATH": os.environ["PATH"], **more}
        started = SystemManager(machine, files, environment)
        if not started.booted():
            pytest.skip(f"no systemd can be booted here: {log.read_text(errors='replace')[-500:]}")
        yield started
    finally:
        children = psutil.Process(machine.pid).children()
        machine.kill()  # no other boot
        machine.wait()
        for child in children:  # with its namespace of processes all of them end
            with contextlib.suppress(psutil.NoSuchProcess):
                for first in child.children():
                    first.kill()
                child.wait(LIMIT_S)
        for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        cgroup.rmdir()
