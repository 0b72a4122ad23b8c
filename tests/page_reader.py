"""A person before the viewer's page, in a browser: looks, clicks and types."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Reader:
    """A person before the page: looks, clicks and types."""

    def __init__(self, browser: Any, page: Path) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser = browser
        browser.get("about:blank")
        browser.get(page.as_uri())
        browser.execute_script("localStorage.clear()")
        self.until = WebDriverWait(browser, 20, poll_frequency=0.03).until
        self.until(lambda _: self.ask("return document.documentElement.dataset.ready"))

    def ask(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def settle(self) -> None:
        """Waits until nothing moves."""
        place = "return JSON.stringify([...viewer.panes.values()].map((pane) => pane.camera))"
        before: list[str] = [""]

        def is_still(_: Any) -> bool:
            last, before[0] = before[0], self.ask(place)
            return last == before[0]

        self.until(is_still)

    def act(self, act: str, key: str, stage: str = "passes") -> None:
        self.find(f'.pane[data-stage="{stage}"] [data-act="{act}"][data-of="{key}"]').click()
        self.settle()

    def toggle(self, key: str, stage: str = "passes") -> None:
        self.act("toggle", key, stage)

    def click(self, key: str, stage: str = "passes") -> None:
        self.find(f'.pane[data-stage="{stage}"] .item[data-key="{key}"]').click()
        self.settle()

    def type(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()
        self.settle()

    def drawn(self, stage: str = "passes") -> set[str]:
        """The keys of what is drawn in a pane."""
        return {item.get_attribute("data-key") for item in self.all(f'.pane[data-stage="{stage}"] .item')}

    def marked(self, name: str, stage: str = "passes") -> set[str]:
        items = self.all(f'.pane[data-stage="{stage}"] .item.{name}')
        return {item.get_attribute("data-key") for item in items}

    def panel(self) -> str:
        return self.find("#panel-body").text

    def colour(self, variable: str = "backgroundColor") -> str:
        return self.ask(f"return getComputedStyle(document.body).{variable}")
