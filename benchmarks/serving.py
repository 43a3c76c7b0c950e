# SPDX-License-Identifier: Apache-2.0
"""How fast a server answers: chats in batches against one at a time, and reads while it writes and a job trains.

    python benchmarks/serving.py                        # a random Llama of 25M weights, two adapters on it
    python benchmarks/serving.py --clients 50 --think 0.5 --seconds 20

A whole server (`moored.service.app`) runs in a process of its own, in a fresh home with a model, two adapters and 200
files. First greedy chats are asked one after the other, then all at once; the ratio is that of the answers' tokens per
second. Then 50 clients list and look up models and files, each with a pause of 0 to 2 x --think seconds between an
answer and its next request, while the server streams answers without end and another process, at nice 10 as a training
job is, keeps a processor busy. With --think 0 the clients are as fast as the server, and the time of an answer is no
more than 50 divided by the requests that it can do per second. The clients are a process of their own.

Exit code 1 if batching is less than --min-ratio times faster, or the 95th percentile of the reads is over --most-ms.
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
from pathlib import Path
from types import SimpleNamespace

FILES = 200
CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "head_dim": 64,
}
POLICY = """
[models.small]
source = "{start}"
[limits]
requests_per_minute = 1000000
tokens_per_minute = 100000000
[defend]
training = {{ steps = 1 }}
[audit]
tasks = {{ harmful_requests = {{ n = 4 }}, over_refusal = {{ n = 4 }}, utility = {{ n = 4 }} }}
"""


def make_home(home: Path) -> dict[str, object]:
    """A home with a key, a model of the policy, two that passed, and files; gives the key and the names."""
    from moored.service.app import open_parts
    from moored.service.database import File, Job, Project
    from moored.service.identity import make_key
    from moored.service.registry import publish
    from moored.service.settings import ServerSettings

    start = home.parent / "start"
    write_model(start)
    home.mkdir()
    (home / "policy.toml").write_text(POLICY.format(start=start), encoding="utf-8")
    settings = ServerSettings(home=home)
    parts = open_parts(settings)
    with parts.database.writing() as session:
        session.add(Project(id="proj-bench", name="bench", created_at=0, limits={}))
    names = []
    for number in range(2):
        job = Job(
            id=f"ftjob-{number}",
            project_id="proj-bench",
            created_at=0,
            model="small",
            training_file="file-0",
            seed=0,
            method={},
            policy={"gate": {"approval": False}},
            policy_sha256="",
        )
        with parts.database.writing() as session:
            session.add(job)
        adapter = home.parent / f"adapter-{number}"
        write_adapter(adapter, start, number)
        model = publish(parts.database, settings, job, adapter, str(start), SimpleNamespace(passed=True))
        names.append(model.id)
    with parts.database.writing() as session:
        session.add_all(
            File(
                id=f"file-{number}",
                project_id="proj-bench",
                filename=f"{number}.jsonl",
                purpose="fine-tune",
                bytes=1000,
                sha256="0" * 64,
                created_at=number,
            )
            for number in range(FILES)
        )
    key = make_key(parts.database, "proj-bench")
    parts.database.close()
    return {"key": key, "models": names}


def write_model(folder: Path) -> None:
    """Random weights, about 25 million, with a tokenizer; it hardly ever ends an answer by itself."""
    from moored.data.tiny import tiny_model, tiny_tokenizer

    tiny_model(initializer_range=0.1, **CONFIG).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def write_adapter(folder: Path, start: Path, seed: int) -> None:
    """A random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    from moored.hf.loaders import load_model

    torch.manual_seed(seed)
    get_peft_model(load_model(start), LoraConfig(r=8, init_lora_weights=False)).save_pretrained(folder)


@contextmanager
def server(home: Path) -> Iterator[str]:
    """A server in a process of its own; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (home.parent / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, "--serve", str(home), str(port)], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the server does not start:\n{(home.parent / 'server.log').read_text()[-3000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def serve(home: Path, port: int) -> None:
    """What `--serve` does."""
    import uvicorn

    from moored.service.app import create_app
    from moored.service.settings import ServerSettings

    uvicorn.run(create_app(ServerSettings(home=home, port=port)), port=port, log_level="warning")


@contextmanager
def burning() -> Iterator[None]:
    """A process that keeps one processor busy at nice 10, as a training job does."""
    process = subprocess.Popen([sys.executable, "-c", "import os\nos.nice(10)\nwhile True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


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


async def reads(url: str, key: str, models: list[str], clients: int, think: float, seconds: float) -> list[float]:
    """Milliseconds of every read."""
    import httpx

    paths = ["/models", f"/models/{models[0]}", "/files?limit=20", f"/files/file-{FILES // 2}"]
    found: list[float] = []
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60) as client:

        async def one(number: int) -> None:
            chance = random.Random(number)
            await asyncio.sleep(chance.uniform(0, 2 * think))
            while time.monotonic() < until:
                start = time.perf_counter()
                reply = await client.get(chance.choice(paths))
                found.append(1000 * (time.perf_counter() - start))
                reply.raise_for_status()
                await asyncio.sleep(chance.uniform(0, 2 * think))

        await asyncio.gather(*(one(number) for number in range(clients)))
    return found


def measured(url: str, made: dict[str, object], given: argparse.Namespace) -> list[float]:
    """`reads` in a process of its own."""
    words = [url, made["key"], made["models"], given.clients, given.think, given.seconds]
    run = subprocess.run(
        [sys.executable, __file__, "--read", json.dumps(words)], capture_output=True, text=True, check=True
    )
    return [float(each) for each in json.loads(run.stdout)]


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


def report(what: str, found: list[float], seconds: float) -> float:
    p50, p95, p99 = (percentile(found, share) for share in (50, 95, 99))
    print(
        f"{what:<34} p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f} ms   {len(found) / seconds:6.1f} reads per second"
    )
    return p95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=16, help="asked at once")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--think", type=float, default=0.5, help="mean pause of a client between two reads [s]")
    parser.add_argument("--seconds", type=float, default=20, help="of reading")
    parser.add_argument("--min-ratio", type=float, default=2.0, help="exit 1 below it")
    parser.add_argument("--most-ms", type=float, default=100.0, help="exit 1 above it")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(Path(given.serve[0]), int(given.serve[1]))
        return 0
    if given.read:
        print(json.dumps(asyncio.run(reads(*json.loads(given.read)))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = make_home(Path(folder) / "home")
        with server(Path(folder) / "home") as url:
            ratio = batching(url, made, given.chats, given.tokens)
            print(f"ratio          {ratio:8.1f} x   (wanted: >= {given.min_ratio:g})")
            machine = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
            print(f"{given.clients} clients, pause {given.think:g} s; {machine}")
            report("nothing else", measured(url, made, given), given.seconds)
            with writing(url, made) as bits, burning():
                p95 = report("while it writes and a job trains", measured(url, made, given), given.seconds)
                print(f"written beside {bits[0] / given.seconds:8.1f} tokens per second")
    print(f"p95            {p95:8.1f} ms  (wanted: <= {given.most_ms:g})")
    return int(ratio < given.min_ratio or p95 > given.most_ms)


if __name__ == "__main__":
    sys.exit(main())
