"""The address of a service: how it is written, and what is one where strangers tell it.

Invariants:
    * What is taken for one, no resolver and no client of HTTP refuses for its form.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

__all__ = ["is_address", "url_of"]

_LONGEST = 512
_LONGEST_HOST = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def url_of(host: str, port: int) -> str:
    """Return the address of what listens on a port.

    Example:
        >>> url_of("127.0.0.1", 8000), url_of("::1", 8000)
        ('http://127.0.0.1:8000', 'http://[::1]:8000')
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_address(url: str) -> bool:
    """Tell whether a text is the address of a service: http or https, a host and perhaps a port, and nothing else.

    Example:
        >>> [is_address(url) for url in ("http://127.0.0.1:8000", "http://a@b", "http://a/b?c", "http://a..b")]
        [True, False, False, False]
    """
    if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        is_whole = _is_host(parts.hostname or "", "[" in parts.netloc) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    rest = (parts.username, parts.password, parts.path, parts.query, parts.fragment)
    return parts.scheme in ("http", "https") and is_whole and not any(rest) and "?" not in url and "#" not in url


def _is_host(host: str, is_bracketed: bool) -> bool:
    """Tell whether there can be such a host.

    Raises:
        ValueError: When it stands in brackets and is no address of IPv6.
    """
    if is_bracketed:
        return ipaddress.IPv6Address(host).scope_id is None
    return len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, host.removesuffix(".").split(".")))
