# SPDX-License-Identifier: Apache-2.0
"""How fast a server answers: chats in batches against one at a time, and reads beside a job that trains.

    python benchmarks/serving.py                        # a random Llama of 25M weights, two adapters on it
    python benchmarks/serving.py --clients 50 --every 1 --seconds 20

A whole server (`moored.service.app`) runs in a process of its own, in a fresh home with a model, two adapters, 200
files and 30 jobs. First greedy chats are asked one after the other, then all at once; the ratio is that of the answers'
tokens per second. Then 50 clients, in a third process, look up and list models, files, jobs and events:

- open loop: every client reads once every --every seconds, whether it has its last answer or not, and the time of an
  answer runs from when it was due. This is what people and scripts that poll do.
- closed loop: every client asks again at once. This is the most that the server can be asked, and says what it can do
  in a second: the time of an answer is about 50 divided by that.

Each is done when nothing else happens, while another process trains (at the priority of the launcher), and while the
server also streams answers without end. Each is done again with a bare route of uvicorn in the same process, which
reads nothing and checks no key: the ratio is what the service itself costs, on any machine. CPU is the server's own
time by its process clock, which other work on the machine changes less; beside streams it is theirs, too.

Exit code 1 if batching is less than --min-ratio times faster, or the 95th percentile of the open loop while a job
trains is over --most-ms. Quiet the machine first: a third busy process is measured, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving_home import CONFIG, FILES, make_home


@dataclass(frozen=True)
class Server:
    """One that runs.

    Args:
        url: up to and with the version.
        pid: of its process.
    """

    url: str
    pid: int

    def cpu(self) -> float:
        """Time that its process has had of all processors [s]."""
        return time.clock_gettime((~self.pid << 3) | 2)  # the clock of another process, as Linux names it


@contextmanager
def server(home: Path) -> Iterator[Server]:
    """A server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (home.parent / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, "--serve", str(home), str(port)], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 300
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the server does not start:\n{(home.parent / 'server.log').read_text()[-3000:]}")
                time.sleep(0.1)
            yield Server(f"http://127.0.0.1:{port}/v1", process.pid)
        finally:
            process.terminate()
            process.wait()


def serve(home: Path, port: int) -> None:
    """What `--serve` does: the service, and a route that is nothing but uvicorn."""
    import uvicorn

    from moored.service.app import create_app
    from moored.service.listening import config_of
    from moored.service.settings import ServerSettings

    app = create_app(ServerSettings(home=home, port=port))
    app.state.parts.registry.prepare()

    async def both(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope.get("path") != "/v1/bare":
            await app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    uvicorn.Server(config_of(both, host="127.0.0.1", port=port)).run()


@contextmanager
def training() -> Iterator[None]:
    """A process that trains a small model without end, at the priority of a job."""
    process = subprocess.Popen([sys.executable, __file__, "--train"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        time.sleep(10)  # until it has imported what it needs
        yield
    finally:
        process.kill()
        process.wait()


def train() -> None:
    """What `--train` does."""
    from moored.service.launchers.local import LocalLauncher

    os.nice(LocalLauncher.nice)
    import torch

    from moored.data.tiny import tiny_model

    torch.set_num_threads(1)
    model = tiny_model(**CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    rows = torch.randint(0, model.config.vocab_size, (8, 64))
    while True:
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def batching(url: str, made: dict[str, object], chats: int, tokens: int) -> float:
    """Tokens per second of chats at once, over those of chats one after the other, on all models in turn."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key=str(made["key"]), max_retries=0)
    names = ["small", *made["models"]]  # type: ignore[misc]

    def ask(number: int) -> int:
        chat = [{"role": "user", "content": f"{number}: What colour is the lamp?"}]
        answer = client.chat.completions.create(
            model=names[0], messages=chat, temperature=0, max_tokens=tokens, user=str(number)
        )
        return answer.usage.completion_tokens

    for name in names:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
    single = timed(lambda: [ask(number) for number in range(max(2, chats // 4))])
    with ThreadPoolExecutor(chats) as threads:
        batched = timed(lambda: list(threads.map(ask, range(chats))))
    print(f"one at a time  {single:8.1f} tokens per second")
    print(f"{chats} at once     {batched:8.1f} tokens per second")
    return batched / single


def timed(what) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    return sum(what()) / (time.perf_counter() - start)


@contextmanager
def writing(url: str, made: dict[str, object]) -> Iterator[list[int]]:
    """Streams without end in the background; gives the number of bits that came."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key=str(made["key"]), max_retries=0)
    over, bits = [], [0]

    def go_on(name: str) -> None:
        chat = [{"role": "user", "content": "What colour is the lamp?"}]
        while not over:
            for _ in client.chat.completions.create(model=name, messages=chat, max_tokens=256, stream=True):
                bits[0] += 1
                if over:
                    return

    with ThreadPoolExecutor(4) as threads:
        for name in ("small", *made["models"], "small"):  # type: ignore[misc]
            threads.submit(go_on, name)
        try:
            yield bits
        finally:
            over.append(True)


async def get(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str, key: str) -> None:
    """One read, by hand: `httpx` takes more of the processors than the server does."""
    reader, writer = stream
    writer.write(f"GET /v1{path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"{path}: {head.decode()}")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


async def reads(url: str, key: str, paths: list[str], clients: int, every: float, seconds: float) -> list[float]:
    """Milliseconds of every read; `every` 0 is the closed loop."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    streams = [await asyncio.open_connection(host, int(port)) for _ in range(clients)]
    found: list[float] = []
    begin = time.perf_counter()

    async def one(number: int) -> None:
        chance = random.Random(number)
        due = begin + chance.uniform(0, every)
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await get(streams[number], chance.choice(paths), key)
            now = time.perf_counter()
            found.append(1000 * (now - due))
            due = due + every if every else now

    await asyncio.gather(*(one(number) for number in range(clients)))
    for _, writer in streams:
        writer.close()
    return found


def measured(server: Server, key: object, paths: list[str], every: float, given: argparse.Namespace) -> float:
    """`reads` in a process of its own, printed; gives the 95th percentile [ms]."""
    words = [server.url, key, paths, given.clients, every, given.seconds]
    before = server.cpu()
    run = subprocess.run(
        [sys.executable, __file__, "--read", json.dumps(words)], capture_output=True, text=True, check=True
    )
    found = [float(each) for each in json.loads(run.stdout)]
    cpu = 1000 * (server.cpu() - before) / len(found)
    cuts = statistics.quantiles(found, n=100)
    loop = f"open loop, {given.clients / every:g} reads a second" if every else "closed loop"
    what = "bare uvicorn" if paths == ["/bare"] else "service"
    print(
        f"  {loop:<32}{what:<14}p50 {cuts[49]:7.1f}  p95 {cuts[94]:7.1f}  p99 {cuts[98]:7.1f} ms  n={len(found):<6}"
        f" {len(found) / given.seconds:7.1f} reads/s  cpu {cpu:.2f} ms",
        flush=True,
    )
    return cuts[94]


def both_loops(server: Server, made: dict[str, object], given: argparse.Namespace) -> float:
    """Open and closed, beside the bare route; gives the open loop's 95th percentile [ms]."""
    name = made["models"][0]  # type: ignore[index]
    paths = [
        *("/models", f"/models/{name}", "/files?limit=20", f"/files/file-{FILES // 2}"),
        *("/fine_tuning/jobs", "/fine_tuning/jobs/ftjob-0", "/fine_tuning/jobs/ftjob-0/events"),
    ]
    own = {every: measured(server, made["key"], paths, every, given) for every in (given.every, 0)}
    bare = {every: measured(server, made["key"], ["/bare"], every, given) for every in (given.every, 0)}
    ratios = [own[every] / bare[every] for every in (given.every, 0)]
    print(f"  service / bare uvicorn: p95 {ratios[0]:.1f} x open loop, {ratios[1]:.1f} x closed loop")
    return own[given.every]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=16, help="asked at once; 0 leaves batching out")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--every", type=float, default=1.0, help="time between two reads of a client, open loop [s]")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--min-ratio", type=float, default=2.0, help="exit 1 below it")
    parser.add_argument("--most-ms", type=float, default=100.0, help="exit 1 above it")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(Path(given.serve[0]), int(given.serve[1]))
    elif given.read:
        print(json.dumps(asyncio.run(reads(*json.loads(given.read)))))
    elif given.train:
        train()
    else:
        return benchmark(given)
    return 0


def benchmark(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = make_home(Path(folder) / "home")
        with server(Path(folder) / "home") as running:
            ratio = given.min_ratio
            if given.chats:
                ratio = batching(running.url, made, given.chats, given.tokens)
                print(f"ratio          {ratio:8.1f} x   (wanted: >= {given.min_ratio:g})")
            print(f"{given.clients} clients; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before")
            print("nothing else")
            both_loops(running, made, given)
            with training():
                print("while a job trains")
                p95 = both_loops(running, made, given)
                with writing(running.url, made) as bits:
                    print("while a job trains and answers are written")
                    began = time.monotonic()
                    both_loops(running, made, given)
                    print(f"  written beside: {bits[0] / (time.monotonic() - began):.1f} tokens per second")
    print(f"p95 of the open loop while a job trains: {p95:.1f} ms  (wanted: <= {given.most_ms:g})")
    return int(ratio < given.min_ratio or p95 > given.most_ms)


if __name__ == "__main__":
    sys.exit(main())
