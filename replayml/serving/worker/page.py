"""The page at ``/``, where a person tries the model in a browser.

Invariants:
    * It is one file of the package, the same for every service: what the service is, it reads from ``/schema``.
    * The browser runs the script and the style that stand in that file, whose digests the headers name, and no other;
      it loads nothing from elsewhere, and shows the page in no frame.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

__all__ = ["read_page"]

_INLINE = {
    "script-src": re.compile(rb"<script>(.*?)</script>", re.S),
    "style-src": re.compile(rb"<style>(.*?)</style>", re.S),
}


def read_page() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return the page and its headers.

    Example:
        >>> content, headers = read_page()
        >>> dict(headers)[b"content-security-policy"]
        b"default-src 'none'; script-src 'sha256-...'; style-src 'sha256-...'; connect-src 'self'; ..."
    """
    content = files("replayml.serving.worker").joinpath("page.html").read_bytes()
    rules = ["default-src 'none'"]
    for rule, pattern in _INLINE.items():
        digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in pattern.findall(content))
        rules.append(" ".join([rule, *(f"'sha256-{digest}'" for digest in digests)]))
    rules += ["connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return content, [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(content)).encode()),
        (b"content-security-policy", "; ".join(rules).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"cache-control", b"no-cache"),
    ]
