# SPDX-License-Identifier: Apache-2.0
"""A server with two projects, and people of them."""

import pytest

from moored.service.identity import make_key
from moored.service.policy import default_policy
from moored.service.settings import ServerSettings
from service.a_console import add_project
from service.a_visitor import Person


@pytest.fixture
def settings(tmp_path):
    """Of a server whose models are there at once."""
    text = default_policy().replace('source = "smollm2"', 'source = "tiny"')
    assert "tiny" in text
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "policy.toml").write_text(text)
    return ServerSettings(home=tmp_path / "home")


@pytest.fixture
def parts(app):
    add_project(app.state.parts, "proj-1")
    add_project(app.state.parts, "proj-2")
    return app.state.parts


@pytest.fixture
def of(app, parts):
    """Somebody of a project."""

    def person(project_id="proj-1", role="user"):
        return Person(app, make_key(parts.database, project_id, role=role))

    return person
