"""The page of a service, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from sklearn.datasets import load_digits

import replayml
from replayml.serving.server import ServerModule
from tests.serving import services, streams
from tests.serving.http import ask

PROGRAMS = ("chromium", "chromedriver")
TOKEN = "a-token-of-more-than-16-characters"  # noqa: S105 - of this test
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1000"),
)


class Page:
    """A service in the browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, service: ServerModule) -> None:
        """Load the page, and wait until it is there."""
        self.driver.get(service.url + "/")
        self.until(lambda: self.at("asking").is_displayed() or self.at("door").is_displayed())

    def until(self, happens: Any) -> Any:
        """Wait until something is so."""
        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: happens())

    def at(self, name: str) -> WebElement:
        """Return the element of some id."""
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """Return what it says."""
        return self.at(name).text

    def write(self, name: str, text: str) -> None:
        """Replace what stands in a field."""
        self.at(name).clear()
        self.at(name).send_keys(text)

    def press(self, text: str) -> None:
        """Press a button."""
        self.driver.find_element(By.XPATH, f"//button[normalize-space()='{text}']").click()

    def run(self) -> None:
        """Run the model, and wait for the end."""
        self.at("run").click()
        self.until(self.at("run").is_enabled)

    def sent(self) -> Any:
        """Return the body that is sent, as the command in the page shows it."""
        command = self.at("curl").get_attribute("textContent")
        assert command is not None
        return json.loads(command.partition(" -d '")[2].removesuffix("'"))

    def scores(self) -> torch.Tensor:
        """Return the numbers of the bar chart."""
        rows = self.driver.find_elements(By.CSS_SELECTOR, ".bars tbody tr")
        return torch.tensor([float(row.get_attribute("data-score") or "nan") for row in rows])

    def faults(self) -> list[str]:
        """Return what the browser complains about, but for answers that are errors."""
        log = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if not re.search(r"status of 4(01|22)", entry["message"])]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed: apt-get install chromium chromium-driver"
        if os.environ.get("REPLAYML_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    found.set_page_load_timeout(60)
    found.set_script_timeout(60)
    yield found
    found.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    """The browser, which has nothing to complain about at the end."""
    found = Page(driver)
    found.faults()
    yield found
    assert found.faults() == []


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Images of digits."""
    return torch.tensor(load_digits().images, dtype=torch.float32)


@pytest.fixture(scope="module")
def model(digits: torch.Tensor) -> replayml.Module:
    """A classifier of them, trained a little."""
    found: replayml.Module = streams.Digits().build(seed=0)
    targets = torch.tensor(load_digits().target)
    optimizer = torch.optim.Adam(found.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(found(digits), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return found


@pytest.fixture(scope="module")
def service(model: replayml.Module, digits: torch.Tensor) -> Iterator[ServerModule]:
    """The classifier as a service."""
    found = ServerModule(model, example=digits[:1], batch=True).start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def playing() -> Iterator[ServerModule]:
    """A service of streams."""
    found = ServerModule(streams.play).start()
    yield found
    found.stop()


def local(model: replayml.Module, sent: Any) -> torch.Tensor:
    """Return what the model gives here for what the page sends."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(sent["args"][0], dtype=torch.float32))
    return found[0]


# Trying -------------------------------------------------------------------------------------------------------


def test_the_page_tells_what_the_model_takes(page: Page, service: ServerModule) -> None:
    """Title, version and inputs are those of the service."""
    page.open(service)
    assert (page.text("title"), page.driver.title) == ("Digits", "Try Digits")
    assert page.text("about") == "Version 1 · takes float32[*,8,8]"
    assert page.driver.find_element(By.TAG_NAME, "legend").text == "image"


def test_the_example_runs_by_one_click(
    page: Page, service: ServerModule, model: replayml.Module, digits: torch.Tensor
) -> None:
    """The form is filled from the example; its result is that of the model here, and shown as bars."""
    page.open(service)
    assert page.sent() == {"args": [digits[:1].tolist()]}
    page.run()
    assert torch.equal(page.scores(), local(model, page.sent()))
    assert page.text("best") == f"Highest: {load_digits().target[0]}"
    assert re.fullmatch(r"Done in .*s, by version 1\.", page.text("status"))


def test_a_digit_is_drawn_with_the_mouse(page: Page, service: ServerModule, model: replayml.Module) -> None:
    """What is drawn is what is sent, and the result that of the model here."""
    page.open(service)
    page.press("Clear")
    assert sum(sum(row) for row in page.sent()["args"][0][0]) == 0
    canvas = page.driver.find_element(By.TAG_NAME, "canvas")
    height = canvas.size["height"]
    moves = ActionChains(page.driver, duration=10).move_to_element_with_offset(canvas, 0, -height // 3)
    moves.click_and_hold().move_by_offset(0, 2 * height // 3).release().perform()
    drawn = torch.tensor(page.sent()["args"][0][0])
    assert 10 < drawn.max() <= 15
    assert (drawn[:, 3:5].sum(1) > 0).sum() >= 5
    assert drawn[:, [0, 7]].sum() == 0
    page.run()
    assert torch.equal(page.scores(), local(model, page.sent()))
    page.press("Eraser")
    ActionChains(page.driver, duration=10).move_to_element(canvas).click().perform()
    assert torch.tensor(page.sent()["args"][0][0]).sum() < drawn.sum()


def test_a_digit_is_drawn_with_the_keyboard(page: Page, service: ServerModule) -> None:
    """Arrow keys move, the space bar paints; where that is, is said."""
    page.open(service)
    page.press("Clear")
    canvas = page.driver.find_element(By.TAG_NAME, "canvas")
    canvas.send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT, " ")
    assert torch.tensor(page.sent()["args"][0][0]).nonzero().tolist() == [[3, 3]]
    assert "Row 4, column 4: 15" in page.text("inputs")
    canvas.send_keys(Keys.ENTER)
    page.at("run").send_keys(Keys.ENTER)
    page.until(lambda: len(page.scores()) == 10)


def test_numbers_are_typed(page: Page, service: ServerModule) -> None:
    """What is drawn can be typed as well; a wrong input shows the code and the text of the error."""
    page.open(service)
    page.press("Numbers")
    fields = page.driver.find_elements(By.CSS_SELECTOR, "#inputs .numbers input")
    assert len(fields) == 64
    fields[0].clear()
    fields[0].send_keys("7.5")
    assert page.sent()["args"][0][0][0][0] == 7.5
    page.run()
    assert len(page.scores()) == 10
    fields[1].send_keys(Keys.END, Keys.BACKSPACE)
    page.run()
    error = page.text("error")
    assert error.startswith("wrong-dtype An input has another dtype than the module takes; /schema tells it.")
    assert "expected: float32\nfound: no numbers" in error
    assert "HTTP 422, request " in error
    page.press("Reset")
    page.run()
    assert not page.at("error").is_displayed()


def test_any_arguments_are_given_as_json(page: Page, playing: ServerModule) -> None:
    """A function without an example takes a list and an object; what is no JSON is said without asking."""
    page.open(playing)
    assert "Arguments (name): a list" in page.text("inputs")
    page.write("text-arguments", '["number", {"rows": [[1, 2], [3, 4]], "text": "<b>bold</b>"}]')
    page.run()
    cells = page.driver.find_elements(By.CSS_SELECTOR, ".values td")
    assert [cell.text for cell in cells] == ["1", "2", "3", "4"]
    assert "<b>bold</b>" in page.text("result")
    page.write("text-arguments", '["number", ')
    page.run()
    assert page.text("error").startswith("no-json Arguments: ")
    page.write("text-arguments", "[]")
    page.run()
    assert page.text("error").startswith(
        "wrong-arguments The body does not give the arguments of the module, which /schema tells."
    )
    assert "found: missing a required argument: 'name'" in page.text("error")


# Streams ------------------------------------------------------------------------------------------------------


def test_items_are_shown_as_they_come(page: Page, playing: ServerModule, tmp_path: Path) -> None:
    """An item stands in the page before the next one is made; the end tells how many there were."""
    gate = tmp_path / "gate"
    page.open(playing)
    page.write("text-arguments", json.dumps(["gated", str(gate), 3]))
    page.at("run").click()
    page.until(lambda: page.text("status") == "1 item so far …")
    assert page.text("items") == "0"
    gate.touch()
    page.until(lambda: page.text("status").startswith("3 items in "))
    assert page.text("items").split() == ["0", "1", "2"]
    assert page.text("latest") == "2"


def test_an_error_in_a_stream_is_shown(page: Page, playing: ServerModule) -> None:
    """The items before an error stay, and its code and text are shown."""
    page.open(playing)
    page.write("text-arguments", '["fail", 2]')
    page.run()
    assert page.text("items").split() == ["0", "1"]
    assert page.text("error").startswith("raised The module raised an exception; see the service's log")


def test_a_stream_is_stopped(page: Page, playing: ServerModule, tmp_path: Path) -> None:
    """Stopping ends the generator."""
    ended = tmp_path / "ended"
    page.open(playing)
    page.write("text-arguments", json.dumps(["endless", str(ended)]))
    page.at("run").click()
    page.until(lambda: "so far" in page.text("status"))
    page.at("stop").click()
    page.until(lambda: page.text("status") == "Stopped.")
    page.until(ended.exists)


# Safety -------------------------------------------------------------------------------------------------------


def test_the_token_is_asked_for_first(page: Page, tmp_path: Path) -> None:
    """Without a token the page shows nothing of the service; a wrong one is told, the right one kept in memory."""
    (tmp_path / "token").write_text(TOKEN)
    service = ServerModule(streams.Marked(), token_file=str(tmp_path / "token")).start()
    try:
        page.open(service)
        assert not page.at("asking").is_displayed()
        page.at("token").send_keys("a wrong one", Keys.ENTER)
        page.until(lambda: page.text("about") == "That token is not the one.")
        page.at("token").send_keys(TOKEN, Keys.ENTER)
        page.until(page.at("asking").is_displayed)
        assert not page.at("door").is_displayed()
        page.write("text-arguments", '["<img src=x onerror=\\"document.title=1\\">"]')
        page.run()
        assert page.text("result") == '<img src=x onerror="document.title=1">'
        # the name of the module is text as well
        assert page.text("title") == streams.Marked.__name__
        assert page.driver.title == f"Try {streams.Marked.__name__}"
        assert "authorization: Bearer TOKEN" in (page.at("curl").get_attribute("textContent") or "")
        stored = page.driver.execute_script("return [document.cookie, localStorage.length, sessionStorage.length]")
        assert stored == ["", 0, 0]
        page.driver.refresh()
        page.until(page.at("door").is_displayed)
    finally:
        service.stop()


def test_no_other_script_runs_in_the_page(page: Page, service: ServerModule) -> None:
    """The browser refuses a script or a style that got into the page, and anything from elsewhere."""
    page.open(service)
    page.driver.execute_script(
        "for (const [name, text] of [['script', 'window.taken = 1'], ['style', 'body { opacity: 0.5 }']]) {"
        "const found = document.createElement(name); found.textContent = text; document.body.append(found); }"
        "const image = new Image(); image.src = 'http://127.0.0.1:1/x'; document.body.append(image);"
    )
    assert page.driver.execute_script("return window.taken ?? null") is None
    assert page.driver.execute_script("return getComputedStyle(document.body).opacity") == "1"
    blocked: list[str] = []

    def are_all_blocked() -> bool:
        blocked.extend(page.faults())
        return len(blocked) >= 3

    page.until(are_all_blocked)
    assert all("Content Security Policy" in fault for fault in blocked), blocked


def test_the_page_has_strict_headers(service: ServerModule) -> None:
    """The page is served to everybody with headers that let it be shown in no frame and run nothing else."""
    reply = ask(service.url, "/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = reply.headers["content-security-policy"]
    for rule in (
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action",
    ):
        assert rule in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    for name, value in (
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ):
        assert reply.headers[name] == value
    assert httpx2.head(service.url).headers["content-length"] == str(len(reply.body))
    assert ask(service.url, "/", body=b"{}").code == "wrong-method"
    elsewhere = r"(src|href)=\"(?!data:)|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|eval\("
    assert re.search(elsewhere, reply.body.decode()) is None


def test_a_service_answers_with_echo(page: Page) -> None:
    """A page shows each kind of result."""
    service = ServerModule(services.echo).start()
    try:
        page.open(service)
        for given, shown in (
            ("[3.25]", "3.25"),
            ("[null]", "null"),
            ('["a"]', "a"),
            ("[[]]", "[]"),
            ("[true]", "true"),
        ):
            page.write("text-arguments", given)
            page.run()
            assert page.text("result") == shown
        page.write("text-arguments", '[{"a": [1.5, -3, 0.1]}]')
        page.run()
        assert page.scores().tolist() == pytest.approx([1.5, -3, 0.1])
    finally:
        service.stop()
