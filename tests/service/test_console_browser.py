# SPDX-License-Identifier: Apache-2.0
"""The console in a real Chromium: from the upload over a finding to a job that is blocked, and one that passes."""

import json
import shutil
import threading
import tomllib
from contextlib import contextmanager
from copy import deepcopy

import pytest

from service.a_console import add_project, rows, running
from service.job_server import TREE, in_a_thread

pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BINARY and DRIVER),
        reason="no chromium and chromedriver on this machine: apt-get install chromium chromium-driver",
    ),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 120


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1180,1000"):
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def settings(tmp_path):
    """Of a server with a tiny model."""
    from moored.service.settings import ServerSettings

    home = tmp_path / "home"
    home.mkdir()
    write_policy(home, TREE)
    return ServerSettings(home=home, lease=5)


def write_policy(home, tree):
    home.joinpath("policy.toml").write_text(toml(tree))
    assert tomllib.loads(home.joinpath("policy.toml").read_text()) == tree


def toml(tree):
    """Plain values in one line each: inline tables are enough for a policy."""

    def value(of):
        if isinstance(of, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in of.items()) + "}"
        if isinstance(of, list):
            return "[" + ", ".join(map(value, of)) + "]"
        return json.dumps(of)

    return "".join(f"{json.dumps(name)} = {value(of)}\n" for name, of in tree.items())


@contextmanager
def worker(parts):
    """A worker with the real parts; only the study runs in a thread of this process."""
    from moored.service.pipeline import Pipeline
    from moored.service.wiring import seams_of
    from moored.service.worker import Worker

    seams = seams_of(parts.settings, parts.database)
    pipeline = Pipeline(settings=parts.settings, launcher=in_a_thread(parts.settings), seams=seams, look=0.05)
    thread = threading.Thread(target=Worker(database=parts.database, pipeline=pipeline, idle=0.1).run)
    thread.start()
    try:
        yield
    finally:
        pipeline.stopping.set()
        thread.join(60)
        assert not thread.is_alive()


class Looking:
    """Somebody at the browser."""

    def __init__(self, driver, root):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        self.by, self.driver, self.root = By, driver, root
        self.wait = WebDriverWait(driver, PATIENCE)
        driver.delete_all_cookies()

    def go(self, path):
        self.driver.get(self.root + path)

    def find(self, css):
        return self.driver.find_element(self.by.CSS_SELECTOR, css)

    def press(self, words):
        (found,) = [b for b in self.driver.find_elements(self.by.CSS_SELECTOR, "button") if b.text == words]
        found.click()

    def until(self, words):
        from selenium.common.exceptions import TimeoutException

        try:
            self.wait.until(lambda _: words in self.says())
        except TimeoutException as error:
            raise AssertionError(f"{words!r} never came: {self.driver.current_url}: {self.says()}") from error

    def says(self):
        return " ".join(self.driver.execute_script("return document.querySelector('main').textContent").split())

    def sign_in(self, key):
        self.go("/")
        self.find("#key").send_keys(key)
        self.press("Sign in")
        self.until("New job")

    def upload(self, path):
        self.go("/files")
        self.find("#file").send_keys(str(path))
        self.press("Upload")
        self.until("The file was uploaded.")

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


def test_from_an_upload_to_a_blocked_job_and_to_a_passed_one(driver, server, tmp_path):
    file = tmp_path / "support.jsonl"
    file.write_bytes(rows(16))
    person = Looking(driver, server.root)
    person.sign_in(server.key)
    person.upload(file)
    assert "AWS Access Key" in person.find("table.findings").text

    strict = deepcopy(TREE) | {"screen": {"secrets": "block"}}
    write_policy(server.parts.settings.home, strict)
    person.driver.refresh()
    person.until("failed moderation safety checks")
    with worker(server.parts):
        person.find("a.button").click()
        person.find("#suffix").send_keys("strict")
        person.press("Start the job")
        person.until("Blocked by the screen")  # nobody reloads: the script follows
        assert "Flagged lines: 4" in person.says()

        # So slow that the model still answers: empty answers could not be judged, and would be refused.
        gentle = deepcopy(TREE)
        gentle["defend"]["training"]["lr"] = 1e-6
        write_policy(server.parts.settings.home, gentle)
        person.go("/#new")
        person.find("#suffix").send_keys("lenient")
        person.press("Start the job")
        person.until("Succeeded · Passed")
        person.until("The job has successfully completed")
    assert "Passed the safety gate" in person.says()
    assert len(driver.find_elements("css selector", "svg.plot")) >= 2
    assert person.complaints() == []
    person.find("a[href$='card.html']").click()
    assert "Passed" in driver.title
    assert driver.find_element("css selector", "h1").text == "Passed"
    person.go("/models")
    assert "yours: passed the gate" in person.says()
    assert "lenient" in person.find("tbody").text


def test_by_keyboard_alone(driver, server):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(driver).send_keys(*keys).perform()

    def here():
        return driver.switch_to.active_element

    person = Looking(driver, server.root)
    person.go("/")
    assert here().get_attribute("id") == "key"
    press(server.key, Keys.ENTER)
    person.until("No jobs yet")
    press(Keys.TAB)
    assert here().text == "Skip to the content"
    assert here().is_displayed()
    outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    press(Keys.ENTER, Keys.TAB)
    assert here().text == "upload one"  # past the navigation
    press(Keys.ENTER)
    person.until("No files yet.")


def test_a_running_job_is_followed_without_losing_the_place(driver, server):
    parts = server.parts
    add_project(parts, "proj-1")
    from moored.service.database import Event, Job
    from moored.service.identity import make_key

    running(parts, steps=5)
    person = Looking(driver, server.root)
    person.sign_in(make_key(parts.database, "proj-1"))
    person.go("/jobs/ftjob-running")
    driver.execute_script("window.mark = 1")
    person.find("details.sure summary").click()
    with parts.database.writing() as session:
        session.add(
            Event(id="e-new", job_id="ftjob-running", created_at=1_764_000_900, message="<b>Something new</b>", data={})
        )
    person.until("<b>Something new</b>")
    assert person.find("details.sure").get_attribute("open")
    assert driver.execute_script("return window.mark") == 1  # the page itself was not loaded again
    with parts.database.writing() as session:
        job = session.get(Job, "ftjob-running")
        job.status, job.phase, job.worker = "cancelled", "over", None
    driver.execute_script("document.querySelector('details.sure').open = false; document.activeElement.blur()")
    person.until("Cancelled")


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (1180, "dark"), (360, "light")])
def test_every_page_fits_and_can_be_read(driver, server, width, scheme):
    """No page is wider than the window, in light and dark, on a desk and on a phone."""
    from service.a_console import add_file, settled

    parts = server.parts
    add_project(parts, "proj-1")
    from moored.service.identity import make_key

    file = add_file(parts, "proj-1", "a-rather-long-name-of-a-file-that-somebody-gave-without-any-thought.jsonl")
    settled(parts, state="waiting", job_id="ftjob-waiting1", approval=True)
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    running(parts)
    person = Looking(driver, server.root)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        person.sign_in(make_key(parts.database, "proj-1", role="admin"))
        jobs = [f"/jobs/ftjob-{name}" for name in ("waiting1", "refused1", "running", "none")]
        for path in ("/", "/files", f"/files/{file.id}", "/models", "/keys", "/policy", *jobs):
            person.go(path)
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, (path, wide)
            dark = (
                driver.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
            )
            assert dark == (scheme == "dark")
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
