"""Looks at every page of the built site in a browser, as wide as a phone or a desk.

A headless Chromium loads each page in a frame of 390 and of 1280 px. What reaches beyond the frame
and cannot be scrolled by itself, a message or command that is cut, and a name in a table that is
broken across lines, are printed, and the exit code is 1. With ``--pictures FOLDER`` it draws each
page, for a person to look at.
"""

from __future__ import annotations

import argparse
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parent.parent / "build" / "site"
WIDTHS = (390, 1280)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOOK = """<!doctype html><title>looking</title><body style="margin:0"><script>
const found = [];
const frame = document.createElement("iframe");
frame.style = "border:0;height:900px";
document.body.append(frame);
function scrolls(element, view) {
  for (let each = element.parentElement; each; each = each.parentElement)
    if (["auto", "scroll", "hidden"].includes(view.getComputedStyle(each).overflowX) &&
        each !== view.document.body && each !== view.document.documentElement) return true;
  return false;
}
async function look(page, width) {
  frame.style.width = width + "px";
  await new Promise(done => { frame.onload = done; frame.src = page; });
  await new Promise(done => setTimeout(done, 100));
  const view = frame.contentWindow, root = view.document.documentElement;
  const say = (what, element) => found.push({page, width, what,
    text: (element.textContent || element.src || element.tagName).trim().slice(0, 60)});
  if (root.scrollWidth > width) say("the page is " + root.scrollWidth + " px wide", root);
  for (const each of view.document.querySelectorAll(".md-content *")) {
    const right = each.getBoundingClientRect().right;
    if (right > width + 1 && !scrolls(each, view)) say("reaches to " + Math.round(right), each);
  }
  for (const each of view.document.querySelectorAll("td code, th code"))
    if (!/[\\s-]/.test(each.textContent.trim()) && each.getClientRects().length > 1)
      say("a name in a table is broken", each);
  for (const each of view.document.querySelectorAll(".language-text code, .language-bash code"))
    if (each.scrollWidth > each.clientWidth + 1) say("a message or command is cut", each);
  return 1;
}
(async () => {
  let count = 0;
  for (const width of WIDTHS) for (const page of PAGES) count += await look(page, width);
  document.body.innerHTML = "";
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify({count, found});
  document.body.append(told);
})();
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:  # the name that the base class has
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """One that a browser may leave in the midst of an answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what a page lacks is told by the browser."""


def pages(site: Path) -> list[str]:
    """The addresses of all pages of a built site."""
    found = (path.relative_to(site).parent.as_posix() for path in site.rglob("index.html"))
    return sorted("/" if each == "." else f"/{each}/" for each in found)


def browser() -> str | None:
    """The Chromium that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def chromium(program: str, profile: str, *options: str) -> str:
    """Run it without a window; what it prints."""
    done = subprocess.run(
        [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", f"--user-data-dir={profile}", *options),
        ],
        capture_output=True,
        text=True,
        timeout=540,
        check=True,
    )
    return done.stdout


def look(site: Path, program: str, pictures: Path | None = None) -> dict[str, Any]:
    """How many pages were looked at, and what was found: page, width, what, text."""
    found: dict[str, Any]
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryDirectory() as served:
        root = Path(served) / "site"
        shutil.copytree(site, root)
        listed = pages(root)
        page = LOOK.replace("WIDTHS)", f"{json.dumps(WIDTHS)})")
        (root / "look.html").write_text(page.replace("PAGES)", f"{json.dumps(listed)})"))
        serve = functools.partial(Handler, directory=str(root))
        with Server(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            base = f"http://127.0.0.1:{server.server_port}"
            budget = 2000 * len(WIDTHS) * len(listed)
            options = (f"--virtual-time-budget={budget}", "--window-size=1400,1000", "--dump-dom")
            told = chromium(program, profile, *options, f"{base}/look.html")
            match = re.search(r'<pre id="told">(.*?)</pre>', told, re.DOTALL)
            if not match:
                raise SystemExit("docs-check: the browser did not come to the end of the pages")
            found = json.loads(html.unescape(match[1]))
            for width in WIDTHS if pictures else ():
                for each in listed:
                    _draw(program, profile, root, base, each, width, pictures)
            server.shutdown()
    if found["count"] != len(WIDTHS) * len(listed):
        raise SystemExit(f"docs-check: {found['count']} looks at {len(listed)} pages")
    return found


def _draw(
    program: str, profile: str, root: Path, base: str, page: str, width: int, folder: Path | None
) -> None:
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    frame = f'<body style="margin:0"><iframe src="{page}" style="border:0" '
    (root / "frame.html").write_text(f'{frame}width="{width}" height="1600"></iframe>')
    target = folder / f"{page.strip('/').replace('/', '-') or 'index'}-{width}.png"
    size = f"--window-size={max(width, 500)},1600"
    chromium(
        program,
        profile,
        "--virtual-time-budget=4000",
        size,
        f"--screenshot={target}",
        f"{base}/frame.html",
    )


def main() -> int:
    """Look at the site that ``make docs`` has built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    program = browser()
    if program is None:
        raise SystemExit(f"docs-check: none of {', '.join(BROWSERS)} is installed")
    found = look(options.site, program, options.pictures)
    for each in found["found"]:
        print("{page} at {width} px: {what}: {text}".format(**each))
    print(f"{found['count']} looks at pages, {len(found['found'])} faults")
    return 1 if found["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
