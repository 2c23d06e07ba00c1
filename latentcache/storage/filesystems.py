"""The only user of fsspec: file systems by URL, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from latentcache.core.machine import install_command
from latentcache.errors import ConfigError, StorageError, UnreachableError, did_you_mean
from latentcache.storage import retry
from latentcache.storage.urls import is_url, links_of, redact, redact_url, scheme_of, without_query

#: Where a scheme's file system is packaged, for the message that names it: in an extra, or on its own.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
PACKAGES = {
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "http": "aiohttp",
    "https": "aiohttp",
}
#: Schemes whose fsspec file systems remember listings. Other machines write too, so they must not.
_REMEMBERS_LISTINGS = {"s3", "s3a", "gs", "gcs", "az", "abfs"}
_S3 = {"s3", "s3a"}
#: botocore retries by itself, and so does s3fs (twice, one inside the other). With `retry` around them that
#: would be 625 requests, each of which may wait for 15 s. So only `retry` tries again.
_ONE_TRY = {"total_max_attempts": 1}
#: Concurrent requests to S3; with botocore's 10, the others would wait for their turn.
MAX_CONNECTIONS = 64
REFUSED_STATUS = (401, 403, 407)
#: The most characters quoted from a file system's own message; some servers answer with a page of HTML.
MESSAGE_CHARACTERS = 500


def resolve_package_url(url: str) -> str:
    """Turn `package://name/folder` into the path of a folder inside an installed package.

    The package is located, not imported. Raises ConfigError if it is not installed.
    """
    name, _, rest = url.removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{url}: the package {name!r} is not installed, so there is nothing to read. "
            f"The demo's clips come with: {install_command('demo')}"
        )
    return str(Path(next(iter(spec.submodule_search_locations)), rest))


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it.

    Raises ConfigError for an unknown scheme or a missing package, naming what to install.
    """
    scheme = scheme_of(url) or "file"
    if is_url(url):
        url = scheme + url[len(scheme) :]  # which fsspec knows in lower case only
    if url.startswith("package://"):
        url, scheme = resolve_package_url(url), "file"
    options = dict(options or {})
    known = sorted({*fsspec.available_protocols(), *EXTRAS, *PACKAGES, "package"})
    if scheme not in known:
        raise ConfigError(
            f"{redact_url(url)}: unknown scheme {scheme!r}.{did_you_mean(scheme, known)} "
            "Use a local path, or a URL such as s3://bucket/folder or gs://bucket/folder."
        )
    if scheme in _REMEMBERS_LISTINGS:
        options.setdefault("use_listings_cache", False)
    if scheme in _S3:
        options["config_kwargs"] = {
            "retries": _ONE_TRY,
            "max_pool_connections": MAX_CONNECTIONS,
            **options.get("config_kwargs", {}),
        }
    try:
        with translated("open", url, options):
            if not is_url(url):
                return fsspec.filesystem("file", **options), str(Path(url).expanduser().absolute())
            fs, path = url_to_fs(url, **options) if len(links_of(url)) > 1 else _one(url, options)
            if scheme in _S3:
                fs.retries = 1
            return fs, path
    except ImportError:
        raise ConfigError(
            f"{redact_url(url)}: the package for {scheme}:// is not installed. {_how_to_install(scheme)}"
        ) from None


def _one(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the file system of a URL that is no chain; `url_to_fs` would split hosts of IPv6."""
    scheme = str(scheme_of(url))
    kind = fsspec.get_filesystem_class(scheme)
    fs = fsspec.filesystem(scheme, **{**kind._get_kwargs_from_urls(url), **options})
    return fs, kind._strip_protocol(url)


def _how_to_install(scheme: str) -> str:
    if scheme in EXTRAS:
        return f"Run: {install_command(EXTRAS[scheme])}"
    if scheme in PACKAGES:
        return f"Run: pip install {PACKAGES[scheme]}"
    return f"Install what fsspec needs for {scheme}."


@contextlib.contextmanager
def translated(what: str, url: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn errors into StorageError; only ImportError and a true FileNotFoundError pass unchanged."""
    try:
        yield
    except (ImportError, ConfigError, StorageError):
        raise
    except FileNotFoundError as error:
        if failed := retry.behind_absence(error):
            failed.__notes__ = getattr(error, "__notes__", [])
            raise _failure(what, url, options, failed) from _cause(failed, options)
        message = os.strerror(errno.ENOENT)
        raise FileNotFoundError(errno.ENOENT, message, redact_url(url, options)) from None
    except Exception as error:  # noqa: BLE001 - raised again, its cause where that shows no secret
        raise _failure(what, url, options, error) from _cause(error, options)


def _failure(what: str, url: str, options: Mapping[str, Any], error: BaseException) -> StorageError:
    """Return a StorageError whose message is one line without secrets."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = text.replace(url, redact_url(url))  # which no pattern finds where it holds spaces
    line = redact(" ".join(text.split()), options)[:MESSAGE_CHARACTERS]
    reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    kind = UnreachableError if retry.is_transient(error) else StorageError
    return kind(
        f"cannot {what} {redact_url(url, options)}: {reason.rstrip('.')}{notes}."
        f"{_advice(error, url)}"
    )


def _cause(error: BaseException, options: Mapping[str, Any]) -> BaseException | None:
    """Return the error to chain, or None if its traceback would show a secret."""
    linked: BaseException | None = error
    seen: list[BaseException | None] = []
    while linked is not None and linked not in seen:  # a chain can lead back to itself
        seen.append(linked)
        if redact(str(linked), options) != str(linked):
            return None
        linked = linked.__cause__ or linked.__context__
    return error


def _advice(error: BaseException, url: str) -> str:
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return " Free some room and resume: what is committed stays."
    if "Credentials" in name:
        return " Give credentials in storage_options or in the environment."
    if isinstance(error, PermissionError) or retry.http_status(error) in REFUSED_STATUS:
        return " Check the permissions there, or the credentials you give." + _signed(url)
    if retry.is_transient(error):
        return " Check the network and the endpoint, then run the same command again."
    return ""


def _signed(url: str) -> str:
    if without_query(url) == url:
        return ""
    return (
        " If its URL is signed and has expired, run precompute with a corpus that has a fresh one. "
        "For verify, report and preview, which read sources of finished clips, run latentcache precompute "
        "CONFIG --check-content."
    )


def is_local_filesystem(fs: Any) -> bool:
    """Tell whether the file system's files are on this machine."""
    return "file" in protocols(fs)


def protocols(fs: Any) -> tuple[str, ...]:
    """Return the names of a file system."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def glob_regex(pattern: str) -> str:
    """Return the regular expression of a glob."""
    return str(glob_translate(pattern))


def walks_folders(fs: Any) -> bool:
    """Tell whether a file system finds files by fsspec's own walk, for want of a listing of everything."""
    kind = type(fs)
    if issubclass(kind, AsyncFileSystem):
        return bool(kind._find is AsyncFileSystem._find)
    return bool(kind.find is AbstractFileSystem.find)
