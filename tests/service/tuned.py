# SPDX-License-Identifier: Apache-2.0
"""A home with tuned models in it, and a server of the parts that answer."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from peft import LoraConfig, get_peft_model

from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.service.blobs import Blobs
from moored.service.database import Base, Database, Job, Project
from moored.service.identity import make_key, whose
from moored.service.parts import Parts
from moored.service.policy import Policy
from moored.service.policy_file import PolicyFile
from moored.service.problems import ApiProblem
from moored.service.quota import Rates
from moored.service.registry import Registry, publish
from moored.service.routes import chat, completions, models
from moored.service.settings import ServerSettings

TASKS = {"harmful_requests": {"n": 4}, "over_refusal": {"n": 4}, "utility": {"n": 4}}


def policy(source="tiny", **fields):
    tree = {
        "models": {"small": {"source": str(source)}, **fields.pop("models", {})},
        "defend": {"training": {"steps": 1}},
        "audit": {"tasks": TASKS},
        "limits": fields.pop("limits", {}),
    }
    return Policy.model_validate(tree | fields)


def write_model(folder, seed=0, **config):
    """A random model that says lively things."""
    tiny_model(seed=seed, initializer_range=0.4, **config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(folder, start, seed=0, scale=1.0):
    """A random adapter that changes what is said."""
    torch.manual_seed(seed)
    from moored.hf.loaders import load_model

    model = get_peft_model(load_model(start), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3 * scale)
    model.save_pretrained(folder)
    return folder


def job_of(number, *, project="one", suffix=None, **gate):
    return Job(
        id=f"ftjob-{number}",
        project_id=project,
        created_at=1,
        model="small",
        training_file="file-1",
        seed=0,
        method={},
        policy={"gate": gate},
        policy_sha256="",
        suffix=suffix,
    )


class Home:
    """Everything of a server that serves, without HTTP."""

    def __init__(self, folder, rules=None):
        self.settings = ServerSettings(home=folder / "home")
        self.settings.home.mkdir(parents=True)
        self.start = write_model(folder / "start")
        self.folder = folder
        self.rules = rules or policy(self.start)
        self.database = Database(self.settings.database_url)
        Base.metadata.create_all(self.database.engine)
        with self.database.writing() as session:
            for name in ("one", "two"):
                session.add(Project(id=name, name=name, created_at=0, limits={}))
        self.keys = {name: make_key(self.database, name) for name in ("one", "two")}
        self.refusals, self.unloaded, self.forbidden = [], [], set()
        self.registry = Registry(
            self.settings,
            self.database,
            lambda: self.rules,
            permits=lambda model: model.job_id not in self.forbidden,
            refused=self.refusals.append,
            unload=self.unload,
        )
        self.engine = None

    def unload(self, name):
        self.unloaded.append(name)
        if self.engine:
            self.engine.unload(name)

    def caller(self, project="one"):
        return whose(self.database, self.keys[project])

    def tuned(self, number=1, *, project="one", passed=True, approval=False, source=None, start=None, **options):
        """Publish a model of a new job."""
        job = job_of(number, project=project, approval=approval, suffix=options.pop("suffix", None))
        with self.database.writing() as session:
            session.add(job)
        source = source or write_adapter(self.folder / f"adapter-{number}", self.start, seed=number)
        decision = SimpleNamespace(passed=passed)
        return publish(self.database, self.settings, job, source, str(start or self.start), decision, **options)


class Rules(PolicyFile):
    """The policy of a `Home`, which has no file."""

    def __init__(self, home):
        self.home = home

    def __call__(self):
        return self.home.rules


class Unlimited(Rates):
    def tokens(self, key_id, limits, count):
        if count > limits.tokens_per_minute:
            raise ApiProblem(429, "Too many tokens.", code="rate_limit_exceeded", headers={"x-should-retry": "false"})
        return {"x-ratelimit-remaining-tokens": str(limits.tokens_per_minute - count)}


def app_of(home, engine):
    app = FastAPI()
    home.engine = engine
    app.state.parts = Parts(
        settings=home.settings,
        database=home.database,
        policy=Rules(home),
        registry=home.registry,
        engine=engine,
        rates=Unlimited(),
        blobs=Blobs(home.settings.blobs),
    )

    @app.exception_handler(ApiProblem)
    async def refuse(_, problem):
        return JSONResponse(problem.body(), problem.status, headers=dict(problem.headers))

    for routes in (chat, completions, models):
        app.include_router(routes.router)
    return app


@contextmanager
def serving(app):
    """On a free port of loopback; gives the address up to and with the version."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()
