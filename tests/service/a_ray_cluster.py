# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of one node on this machine, with a token, and ended by its pids."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

STARTS_WITHIN = 300


def free_ports(count: int) -> list[int]:
    """Free ones above those that Ray gives to its workers (10002-19999)."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            taken = held.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            if taken.getsockname()[1] >= 20_000:
                found.append(taken.getsockname()[1])
        return found


@contextmanager
def a_ray_cluster(folder: Path, cpus: int = 2) -> Iterator[tuple[str, str]]:
    """The address of a dashboard, and the token that it wants."""
    gcs, dashboard, agent, client = free_ports(4)
    token = secrets.token_hex(32)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    command += [f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=80000000", f"--temp-dir={folder}"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "240"  # a minute is little on a machine that is busy
    with (folder / "cluster.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd="/")
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(head, address, token, folder)
        yield address, token
    finally:
        _end(head)


def _wait(head: subprocess.Popen[bytes], address: str, token: str, folder: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while True:
        assert head.poll() is None, (folder / "cluster.log").read_text()[-2000:]
        assert time.monotonic() < until, (folder / "cluster.log").read_text()[-2000:]
        try:  # the dashboard answers a while before there is an agent that takes jobs
            asked = {"entrypoint": "true"}
            headers = {"Authorization": f"Bearer {token}"}
            if httpx.post(f"{address}/api/jobs/", json=asked, headers=headers, timeout=60).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and all that it has started; `ray stop` would end every cluster of the machine."""
    every = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()
    try:
        head.wait(20)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    for each in psutil.wait_procs(every, timeout=10)[1]:
        each.kill()
