"""A run's folder belongs to one live run: two that write to it would destroy each other's work.

The owner keeps a small file `owner.json` fresh. It is taken over at once if its process is known to be gone (same
machine, or an earlier start of the same Slurm job), otherwise when it has not been refreshed for `LEASE` seconds.
"""

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from recipe.command_line import UserError
from recipe.storage.places import Place, StorageError

NAME = "owner.json"
LEASE = 180.0  # seconds without a sign of life after which an owner elsewhere counts as dead
HEARTBEAT = 30.0  # seconds between signs of life


class OwnedError(UserError):
    """A run's folder that another live run owns; the message says which."""


class Ownership:
    """Claims `place` for this process and keeps the claim fresh until `release`.

    Raises:
        OwnedError: a live run owns the place.
        StorageError: the place cannot be read or written.
    """

    def __init__(self, place: Place):
        self.place = place
        self.lost: str | None = None  # why the claim no longer holds, once it does not
        self._identity = _identity()
        self._claim()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True, name="ownership")
        self._thread.start()

    def _claim(self) -> None:
        data = self._data()
        for _ in range(3):  # each time round someone else changed the file in between
            found = self.place.read_versioned(NAME)
            if found is None:
                claimed = self.place.write_new(NAME, data)
            else:
                text, version, modified, now = found
                other = _parse(text)
                if other is not None and _is_alive(other, self._identity, now - modified):
                    raise OwnedError(_refusal(self.place, other, now - modified))
                claimed = self.place.replace(NAME, data, version)
            if claimed:
                return
        raise OwnedError(f"save_folder {self.place.address}: other runs are claiming it right now; start only one")

    def _data(self) -> bytes:
        # a changing field makes each version of the object another one
        return json.dumps(self._identity | {"beat": time.time()}).encode()

    def _keep_fresh(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                found = self.place.read_versioned(NAME)
                if found is None or (_parse(found[0]) or {}).get("token") != self._identity["token"]:
                    self.lost = f"save_folder {self.place.address}: another run has taken it over"
                    return
                self.place.replace(NAME, self._data(), found[1])
            except StorageError:
                continue  # storage that is away for a while; uploads will say so if it stays away

    def release(self) -> None:
        """Give the place up."""
        self._stop.set()
        self._thread.join()
        if self.lost is None:
            self.place.delete([NAME])


def _identity() -> dict[str, Any]:
    return {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _machine() -> str | None:
    """Names the running kernel and the container's process ids; None where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return None


def _is_alive(other: dict[str, Any], own: dict[str, Any], silence: float) -> bool:
    if other.get("machine") is not None and other["machine"] == own["machine"]:
        return other["started"] is not None and _start_time(other["pid"]) == other["started"]
    if other.get("job") is not None and other["job"] == own["job"]:
        return False  # Slurm requeues a job only when its earlier start has ended
    return silence < LEASE


def _parse(data: bytes) -> dict[str, Any] | None:
    """The owner; None if the file was damaged, which nobody's claim is."""
    try:
        owner = json.loads(data)
        return owner if isinstance(owner, dict) and {"token", "host", "pid", "started"} <= owner.keys() else None
    except ValueError:
        return None


def _refusal(place: Place, other: dict[str, Any], silence: float) -> str:
    job = "" if other.get("job") is None else f", Slurm job {other['job']}"
    return (
        f"save_folder {place.address}: belongs to a live run (host {other['host']}, process {other['pid']}{job}, last "
        f"sign of life {silence:.0f} s ago); end it, choose another run_name, or if it was killed on another machine "
        f"wait {max(LEASE - silence, 0):.0f} s"
    )
