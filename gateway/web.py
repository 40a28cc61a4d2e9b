"""The documentation pages: Swagger UI and Redoc over our own OpenAPI document, every asset from this machine.

Invariant: no page names another host; a Content-Security-Policy keeps the bundled scripts from loading anything from
elsewhere.
"""

import json
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

GREATEST_PAGE_BYTES = 4 * 1024 * 1024
# Ships Swagger UI and Redoc as plain files. It is located, not imported: that would load a web framework.
_ASSETS = "fastapi_offline/static"


@dataclass(frozen=True, slots=True)
class Page:
    """A file of web/ and what it is."""

    file: str
    content_type: str


_SCRIPT = "text/javascript; charset=utf-8"
HTML = "text/html; charset=utf-8"
PAGES = {
    "/openapi.json": Page("openapi.json", "application/json"),
    "/docs": Page("docs.html", HTML),
    "/redoc": Page("redoc.html", HTML),
    "/assets/docs.js": Page("docs.js", _SCRIPT),
    "/assets/swagger-ui-bundle.js": Page("swagger-ui-bundle.js", _SCRIPT),
    "/assets/swagger-ui.css": Page("swagger-ui.css", "text/css; charset=utf-8"),
    "/assets/redoc.standalone.js": Page("redoc.standalone.js", _SCRIPT),
    "/assets/favicon.png": Page("favicon.png", "image/png"),
}

_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self'; worker-src blob:; child-src blob:; base-uri 'none'"
)
# In a header; a page cannot say of itself who may frame it.
PAGE_POLICY = f"{_POLICY}; frame-ancestors 'none'; form-action 'self'"
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<link rel="icon" type="image/png" href="/assets/favicon.png">
"""
_DOCS = """<link rel="stylesheet" href="/assets/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="/assets/swagger-ui-bundle.js"></script>
<script src="/assets/docs.js"></script>
</body>
</html>
"""
_REDOC = """<style>body { margin: 0; }</style>
</head>
<body>
<redoc spec-url="/openapi.json" hide-download-button="false"></redoc>
<script src="/assets/redoc.standalone.js"></script>
</body>
</html>
"""
_DOCS_SCRIPT = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  persistAuthorization: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""


def write_pages(directory: Path, document: dict[str, Any]) -> None:
    """Writes every page of PAGES into a directory; what stood there under the same names is replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "openapi.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        "docs.html": _head("Parley: API") + _DOCS,
        "redoc.html": _head("Parley: API reference") + _REDOC,
        "docs.js": _DOCS_SCRIPT,
    }
    assets = Path(str(distribution("fastapi-offline").locate_file(_ASSETS)))
    for page in PAGES.values():
        body = texts[page.file].encode() if page.file in texts else (assets / page.file).read_bytes()
        (directory / page.file).write_bytes(body)


def _head(title: str) -> str:
    return _HEAD.format(policy=_POLICY, title=title)
