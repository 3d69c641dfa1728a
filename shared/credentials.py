"""What in a URL lets its bearer in: user, password, tokens, signatures. They are read with, and never recorded or told.

``without_credentials`` is what a plan, a manifest, an export or a page holds of a URL; ``concealed`` is what a message
or a line of a log says. Whoever reads uses the URL that the user gave.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_NO_USERS = ("abfs", "abfss", "wasb", "wasbs", "git", "github")
"""Protocols in whose URLs what stands before the ``@`` is no user, but a container or a repository."""
_USER = re.compile(r"[^/?#\s]*@|[^/?#\s@:]*:(?!\d+(?:[/?#]|$))[^\s@]*@")
"""User and password before a host; also of a password with a slash in it, which no library reads either."""
_SECRET = re.compile(
    r"x-(amz|goog|ms|oss|cos|obs|bce|tos)-.*|aws-?access-?key-?id|google-?access-?id|oss-?access-?key-?id"
    r"|.*(signature|token|secret|passw(or)?d|credential|api-?_?key|access-?_?key|private-?_?key|authorization|bearer).*"
    r"|(x-)?auth|o?auth|sig|hmac|jwt|.*sess(ion)?-?_?(id)?|ticket|key-pair-id|policy|subscription-?_?key|rlkey|hdn(ea|ts|eats?)"
)
"""Names of parameters that are credentials, or are signed with them, whatever store reads them."""
_SECRET_IN_HTTP = re.compile(r"key|code|pwd|pass|user(name)?|login")
"""Others, in URLs of web servers. In those of a bucket a ``?`` may be part of a name."""
_SIGNED = ("sig", "signature")
_BESIDE_SIGNATURE = re.compile(r"se|sp|sv|sr|st|spr|sip|srt|ss|sk[vtes]?|skoid|sktid|sdd|saoid|suoid|scid|expires")
"""Names of parameters that mean access only beside a signature (Azure's, CloudFront's)."""
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s\"<>`\\/@]*@)?[^\s\"'<>`\\]*")
_BEHIND = re.compile(r"[.,:;!)\]}]*$")
_ALONE = re.compile(r"(?i)\b(x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid)=[^\s&\"'<>]+")
_IN_ARCHIVES = ("zip", "tar", "libarchive", "dir")
"""Protocols whose URLs name a member of an archive, or a file of a folder, that the next link of a chain leads to."""
_LINK = re.compile("::(?=[A-Za-z][A-Za-z0-9+.-]*://)")
"""What stands between the links of a chain that are URLs; ``::`` may stand in names and addresses, too."""
_IN_PATH = re.compile(r";([^/;=]+=[^/;]*)")
"""Parameters in the path of a URL."""
_ALONE_IN_QUERY = re.compile(r"[A-Za-z0-9_.~+/=-]{16,}")
"""What is asked of a web server without a name, and long enough to be a token."""


def without_credentials(url: str) -> str:
    """Return a path or URL without user, password, token and signature; of a chained URL, in none of its links."""
    if "://" not in url or not any(mark in url for mark in "@?#;"):
        return url
    return "::".join(map(_clean, _LINK.split(url)))


def has_credentials(url: str) -> bool:
    """Whether a path or URL has a user, a password, a token or a signature in it."""
    return without_credentials(url) != url


def concealed(text: str) -> str:
    """Return a text in which no URL has credentials."""
    if "://" in text:
        text = _IN_TEXT.sub(_conceal, text)
    return _ALONE.sub(r"\1=...", text) if "=" in text else text


def _conceal(found: re.Match[str]) -> str:
    mark = _BEHIND.search(found[0])
    end = len(found[0]) if mark is None else mark.start()
    return without_credentials(found[0][:end]) + found[0][end:]


def _clean(link: str) -> str:
    protocol, separator, rest = link.partition("://")
    protocol = protocol.lower()
    if not separator or protocol in ("file", "local", *_IN_ARCHIVES):
        return link
    if protocol not in _NO_USERS and (user := _USER.match(rest)):
        rest = rest[user.end() :]
    rest, hash_, fragment = rest.partition("#")
    path, question, query = rest.partition("?")
    is_http = protocol in ("http", "https")
    if is_http:
        path = _IN_PATH.sub(lambda found: found[0] if _kept(found[1], is_http) else "", path)
        hash_ = fragment = ""  # which no web server gets to see
    for mark, parameters in ((question, query), (hash_, fragment)):
        kept = _kept(parameters, is_http)
        path += f"{mark}{kept}" if kept or not parameters else ""
    return f"{link.partition('://')[0]}://{path}"


def _kept(parameters: str, is_http: bool) -> str:
    """Return the parameters of a URL that are no credentials, as they are spelled."""
    each = re.split("[&;]", parameters)
    names = [unquote(one).partition("=")[0].lower() for one in each]
    is_signed = any(name in _SIGNED for name in names)
    kept = [
        one
        for one, name in zip(each, names, strict=True)
        if not (
            ("=" in unquote(one) and (_SECRET.fullmatch(name) or (is_http and _SECRET_IN_HTTP.fullmatch(name))))
            or (is_http and "=" not in one.rstrip("=") and _ALONE_IN_QUERY.fullmatch(one))
            or (is_signed and _BESIDE_SIGNATURE.fullmatch(name))
            or (("%3a" in one.lower() or ":" in one) and has_credentials(unquote(one.partition("=")[2])))
        )
    ]
    return parameters if len(kept) == len(each) else "&".join(kept)
