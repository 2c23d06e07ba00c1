"""URLs as text: joined, told from paths, and named without their secrets. No I/O."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from latentcache.redaction import printable
from latentcache.redaction import redact as redact
from latentcache.storage.parts import file_of

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")
#: `scheme://user:password@`; a password may hold spaces and another @.
CREDENTIALS = r"://[^/@:]*:[^/]*@"
#: What a host of IPv6 is within its brackets: `::1`, `fe80::1%eth0`.
_IPV6 = r"[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*(?:%[\w.]+)?\]"
_MAGIC = re.compile(rf"[*?]|\[(?!{_IPV6})")
#: What stands between the file systems of a chain, and not within a host.
_LINK = re.compile(r"::(?![0-9A-Fa-f.:]*(?:%[\w.]+)?\])")
#: Schemes that a row of a table or of a plan may name. Others of fsspec's read archives, run templates and
#: start programs, so a configuration must name them: `corpus.schemes`.
SOURCE_SCHEMES = frozenset(
    {
        *("file", "local", "package", "http", "https", "s3", "s3a", "gs", "gcs"),
        *("az", "abfs", "abfss", "hf", "sftp"),
    }
)
#: The parts of a URL that are no part of its name, as (pattern, what stays), for `re` and for Arrow's RE2:
#: a query or fragment (of http from the first ? or #; elsewhere those may be part of a name, so only where
#: they begin as `name=`), and a user.
QUERIES = (
    (r"(?is)^((?:[^?#]*::)?https?://[^?#]*)[?#].*$", r"\1"),
    (r"(?s)^([A-Za-z][A-Za-z0-9+.-]*(?:://|::).*?)[?#][A-Za-z0-9_.%~-]+=.*$", r"\1"),
)
USERS = ((r"(?i)((?:https?|s?ftps?|ssh|smb|web?davs?)://)[^/]*@", r"\1"),)
#: What stands between a scheme and a host; JSON may escape its slashes.
SLASHES = r":\\?/\\?/"
#: A text that may be one URL, so that quotes in it are its own.
WHOLE_URL = rf"^\s*[A-Za-z][A-Za-z0-9+.:-]*{SLASHES}[^\"<>\\\r\n]*$"
#: What ends a URL in a text: spaces, and punctuation that is not ASCII.
_SPACES = r"\s\x{A0}\x{2000}-\x{206F}\x{3000}-\x{303F}\x{FF00}-\x{FFEF}"
#: Parts of the names of parameters: characters, and what stands between two words.
_CHAR = r"[^=&?#;%\s\"'<>\\]"
_BETWEEN = r"[^a-z0-9=&?#;%\s\"'<>\\]"
#: Names of secrets, or of who was given one. What holds one of these words, also in the plural: ...
_PRIVATE_STEMS = "passw|credential"
#: ... what ends in one of these words, or goes on with another word, as in `tokenId` and `token_2`; ...
_PRIVATE_WORDS = (
    "signature|token|secret|passphrase|passcode|auth(?:orization|entication)?|jwt"
    "|sess(?:ion)?[-_]?(?:id|key)|access[-_]?(?:key|id)"
)
_NEXT_WORD = rf"(?:id|key|code|hash|sig|data|info)?(?:(?:{_BETWEEN}|\d|(?-i:[A-Z][a-z])){_CHAR}*)?"
#: ... what is one of these words, or ends in one after another word; ...
_PRIVATE_ENDS = "sig|upsig|[ls]sig|hmac|pwd|psw|otp|creds?|sas|bearer|session|hdnts|hdnea|hdntl"
#: ... and what is one of these. After another word they are secret only if it says whose they are, as in
#: `api_key`, or if the value is as long as those of secrets are: `frame_key=12` is none.
_COMMON_WORDS = "(?:sign|key)(?:[-_]?pair)?(?:[-_]?id)?|policy|pass|pw|ticket|ak|sk|tk|md5"
_OWNERS = (
    "[a-z]|access|account|admin|api|app|auth|aws|baidu|bot|client|consumer|db|dev|developer|enc|encryption"
    "|ftp|functions?|host|license|login|map|master|play|playback|private|resource|rl|sas|secret|server"
    "|service|session|share|shared|signing|storage|stream|streaming|subscription|user|ws|wx"
)
_IF_LONG = "key|sign|pass|ticket|ak|sk|tk|hm"
#: As patterns of names and of values; one pattern for all takes RE2 five times as long.
_PRIVATE = (
    (rf"{_CHAR}*(?:{_PRIVATE_STEMS}){_CHAR}*", ""),
    (rf"{_CHAR}*(?:{_PRIVATE_WORDS}){_NEXT_WORD}", ""),
    (rf"(?:{_CHAR}*{_BETWEEN})?(?:{_PRIVATE_ENDS})\]?", ""),
    (rf"(?:{_CHAR}*{_BETWEEN})?(?:{_OWNERS})[-_]?(?:{_COMMON_WORDS})\]?", ""),
    (_COMMON_WORDS, ""),
    (rf"(?:{_CHAR}*{_BETWEEN})?(?:{_IF_LONG})", "[a-z0-9]{20}"),
)
#: What begins a parameter and what follows its name: also escaped, in JSON or in a URL within a URL.
_BEGINS = r"(?:[?&#;]|\\u0026|%3F|%26)"
_IS = r"(?:=|\\u003d|%3D)"
_SCHEME = rf"[a-z][a-z0-9+.-]*{SLASHES}"
#: What stands before @ and is no user: a container of Azure, and an image before its digest.
_NO_USER = rf"(?:abfss?|wasbs?){SLASHES}[^/@:?#\s]*@|(?:docker|oci)[a-z-]*{SLASHES}[^/@\s]*@sha\d+:"
#: What holds a port, although its name has no dot.
_LOCAL = rf"{_SCHEME}localhost:\d+[,;?#]"
#: What closes a clause of a sentence.
_CLOSES = r",.;:!?)\]"
#: The first word of a password with spaces, and the user before it. After a name with a dot, digits before
#: punctuation are a port, whatever follows; after any other, only if nothing follows.
_FIRST_WORD = (
    r"(?:[^/:?#,\s]+:[^/@\s\d]"
    rf"|[^/:?#,\s]+:\d+[^/@\s\d#{_CLOSES}]"
    rf"|[^/:?#,.\s]+:\d+(?:[#{_CLOSES}]+\d|[{_CLOSES}]*[^/@\s\d{_CLOSES}]))[^/@\s]*"
)
#: A password with spaces, where all of the text is one URL; after a port, or without a word behind the
#: colon, it is a sentence.
_SPACED_PASSWORD = (
    rf"(?is)^(\s*(?:.*::)?{_LOCAL}.*)$"
    rf"|^(\s*(?:.*::)?{_SCHEME}){_FIRST_WORD}\s[^/]*@([^/@,\s]+(?:/.*)?)$",
    r"\1\2\3",
)


def _secrets_of(ends: str) -> tuple[tuple[str, str], ...]:
    """Return what is secret of URLs, as (pattern, what stays) for RE2. ends: characters that end a URL."""
    # What a user with a password is called may hold an @. After localhost, or a name with a dot, digits
    # that end before the last @ are a port: `example.com:80?to=me@h`.
    after_dot = rf"(?:[^\d/{ends}][^/{ends}]*|\d+[^\d/,;?#{ends}][^/{ends}]*|\d*)"
    password = rf"(?:[^/:?#,.\[{ends}]*:[^/{ends}]*|[^/:?#,\[{ends}]*:{after_dot})"
    user = r"[A-Za-z0-9._~%!$&()*+;=@-]+"
    return (
        (
            rf"(?i)({_NO_USER}|{_LOCAL})|({_SCHEME})(?:{password}|{user})@",
            r"\1\2",
        ),
        *(
            (rf"(?i)({_BEGINS}(?:{name}){_IS}){value}[^&#{ends}]{'*' if value else '+'}", r"\1***")
            for name, value in _PRIVATE
        ),
    )


#: What is secret of a URL that is kept for what else it says: where a text may be one URL, and in a text.
TOKENS = (_SPACED_PASSWORD, *_secrets_of(_SPACES))
TOKENS_IN_TEXT = _secrets_of(rf"\"'<>\\{_SPACES}")
#: Of a path relative to a folder on http.
RELATIVE_QUERIES = ((r"(?s)[?#].*$", ""),)

#: What has no limit: a disk of this machine, or a mount, whose calls cannot be given up.
LOCAL_SCHEMES = frozenset({None, "file", "local", "package"})


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL (`s3` of `S3://...`), or None for a local path."""
    match = _URL.match(text)
    return match[1].lower() if match else None


def is_url(text: str) -> bool:
    """Tell a URL (`s3://...`, `simplecache::s3://...`) from a local path."""
    return scheme_of(text) is not None


def links_of(url: str) -> list[str]:
    """Return the parts of a chain, outermost first: `zip://a`, `s3://b` of `zip://a::s3://b`.

    Of a path, or a URL that is no chain, it is the only one.
    """
    return _LINK.split(url) if is_url(url) else [url]


def schemes_of(url: str) -> list[str]:
    """Return the schemes of a URL, outermost first: `zip`, `s3` of `zip://a::s3://b`; none of a path."""
    if not is_url(url):
        return []
    *wrapping, last = links_of(url)
    names = [part.partition("://")[0] for part in wrapping]
    return [name.lower() for name in (*names, scheme_of(last) or "file")]


def refused_scheme(url: str, named: Collection[str] = ()) -> str | None:
    """Return what about a source's URL is not allowed, in words; None where it may be opened.

    named: the schemes that the configuration names beside SOURCE_SCHEMES; file systems that wrap others
    (`zip://a::s3://b`) must be among them. A row can come from a stranger, and so can a plan.
    """
    *wrapping, last = schemes_of(file_of(url)) or ["file"]
    allowed = {*SOURCE_SCHEMES, *named}
    missing = [name for name in wrapping if name not in named]
    missing += [last] if last not in allowed else []
    if not missing:
        innermost = links_of(file_of(url))[-1]
        return _malformed(innermost, last) if last in SOURCE_SCHEMES else None
    names = " and ".join(dict.fromkeys(missing))
    return (
        f"needs the file system {names}, which a source may only use if the configuration names it. If you "
        f"know where these URLs come from: corpus.schemes=[{', '.join(dict.fromkeys(missing))}]"
    )


def _malformed(url: str, scheme: str) -> str | None:
    """Return what is wrong with a remote URL that no server could ever answer, in words."""
    host = url.partition("://")[2].partition("/")[0]
    if scheme in LOCAL_SCHEMES:
        return None
    if not host:
        return f"names no host and no bucket: {scheme}:// needs one"
    if not is_http(url):
        return None
    try:
        parts = urlsplit(url)
        name, _ = parts.hostname or " ", parts.port
    except ValueError:  # whose message may quote a password
        name = " "
    is_sound = name.isprintable() and " " not in name
    return None if is_sound else "is no URL: its host or its port makes no sense"


def redact_url(url: str, options: Mapping[str, Any] | None = None) -> str:
    """Return a URL, or a path, as messages show it: in one line, `***` for query, fragment and user.

    Unlike `redact`, which has to find URLs in a text, it knows where this one ends: names may hold spaces
    and quotes.
    """
    name = without_query(url)
    shown = name if name == url else f"{name}?***"
    return printable(redact(re.sub(CREDENTIALS, "://***@", shown), options))


def has_password(url: str) -> bool:
    """Tell whether a URL carries `user:password@`."""
    return re.search(CREDENTIALS, url) is not None


def is_http(url: str) -> bool:
    """Tell whether a URL is on http, where what follows `?` is a query."""
    return re.match(r"(?i)(?:[^?#]*::)?https?://", url) is not None


def without_query(url: str) -> str:
    """Return a URL without its query and fragment."""
    for pattern, kept in QUERIES:
        url = re.sub(pattern, kept, url)
    return url


def public_name(url: str) -> str:
    """Return what a URL is known by: itself without query, fragment and credentials."""
    url = without_query(url)
    for pattern, kept in USERS:
        url = re.sub(pattern, kept, url)
    return url


def join(base: str, *parts: str) -> str:
    """Join parts with single slashes; in a chained URL (`zip://a::s3://b`) they go on the first path."""
    head, *rest = links_of(base)
    if rest and "://" in head:
        return "::".join([join(head, *parts), *rest])
    if rest:
        return f"{head}::{join('::'.join(rest), *parts)}"
    base = base if base.endswith("://") else base.rstrip("/") + "/"
    return (base + "/".join(p.strip("/") for p in parts if p)).removesuffix("/") or "/"


def has_magic(url: str) -> bool:
    """Tell whether a URL is a glob."""
    return _MAGIC.search(url) is not None


def suffix_of(url: str) -> str:
    """Return the suffix in lower case without its dot; of a URL, without what follows `?`."""
    return posixpath.splitext(without_query(url))[1][1:].lower()


def folder_of(url: str) -> str:
    """Return what comes before a URL's or a path's last part, with its slash: `s3://b/` of `s3://b/a`."""
    url = without_query(url)  # which may hold slashes
    return url[: url.rfind("/") + 1]


def without_file_scheme(url: str) -> str:
    """Return the path of `file:///x` and `local:///x`, so that a place has one name; others as they are."""
    return re.sub(r"(?i)^(?:file|local)://(?=/)", "", url)


def is_remote(url: str) -> bool:
    """Tell whether a source is, or is in, a file that is not on this machine."""
    return scheme_of(file_of(url)) not in LOCAL_SCHEMES
