"""What listing a million keys costs the client's processor, beside the official SDKs.

    python benchmarks/listing_cpu.py [--keys 1000000] [--record]

A server on loopback, a process of its own, sends pages as the stores do: of a thousand keys, 5,000
on Azure. What is counted is the processor time of the one that lists, user and system; that of
the SDKs is measured on fewer pages and scaled. What else the machine does falls on the clock and
hardly on this, yet caches are shared: each figure is the least of ``--rounds``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import re
import socket
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

from timing import machine, record

PREFIX = "docker/registry/v2/repositories/"
# Stands for the page's number, in the same width.
NUMBER = b"@@@@@@@@"
KEY = "x" * 85 + "w=="

Render = Callable[[int], bytes]


def links(count: int) -> list[tuple[str, bytes]]:
    """Keys of layer links on one page, in order, and the MD5 of each."""
    chance = random.Random(count)
    digests = sorted(f"{chance.getrandbits(256):064x}" for _ in range(count))
    folder = f"{PREFIX}team/app-{NUMBER.decode()}/_layers/sha256"
    return [
        (f"{folder}/{digest}/link", hashlib.md5(digest.encode(), usedforsecurity=False).digest())
        for digest in digests
    ]


def s3_page() -> bytes:
    """A page as S3 sends it."""
    rows = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2024-02-03T04:05:06.000Z</LastModified>"
        f"<ETag>&quot;{md5.hex()}&quot;</ETag><Size>71</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key, md5 in links(1000)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        f"<Prefix>{PREFIX}</Prefix><NextContinuationToken>T{NUMBER.decode()}"
        "</NextContinuationToken><KeyCount>1000</KeyCount><MaxKeys>1000</MaxKeys>"
        "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        f"{rows}</ListBucketResult>"
    ).encode()


def gcs_page(*, whole: bool) -> bytes:
    """A page as Google sends it, indented; with all that it knows, or what was asked for."""
    items = []
    for key, md5 in links(1000):
        item = {"name": key, "size": "71", "updated": "2024-02-03T04:05:06.789Z"}
        item["md5Hash"] = b64encode(md5).decode()
        if whole:
            place = f"https://www.googleapis.com/storage/v1/b/bucket/o/{key.replace('/', '%2F')}"
            item |= {
                "kind": "storage#object",
                "id": f"bucket/{key}/1706933106789012",
                "selfLink": place,
                "mediaLink": f"{place}?generation=1706933106789012&alt=media",
                "bucket": "bucket",
                "generation": "1706933106789012",
                "metageneration": "1",
                "contentType": "application/octet-stream",
                "storageClass": "STANDARD",
                "crc32c": "AAAAAA==",
                "etag": "CNTHmYCJjoQDEAE=",
                "timeCreated": "2024-02-03T04:05:06.789Z",
                "timeStorageClassUpdated": "2024-02-03T04:05:06.789Z",
            }
        items.append(item)
    page = {"kind": "storage#objects", "nextPageToken": f"T{NUMBER.decode()}", "items": items}
    return json.dumps(page, indent=2).encode()


def azure_page() -> bytes:
    """A page as Azure sends it."""
    rows = "".join(
        f"<Blob><Name>{key}</Name><Properties>"
        "<Creation-Time>Sat, 03 Feb 2024 04:05:06 GMT</Creation-Time>"
        "<Last-Modified>Sat, 03 Feb 2024 04:05:06 GMT</Last-Modified>"
        "<Etag>0x8DC246B8D7E5E5B</Etag><Content-Length>71</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type><Content-Encoding />"
        f"<Content-Language /><Content-CRC64 /><Content-MD5>{b64encode(md5).decode()}</Content-MD5>"
        "<Cache-Control /><Content-Disposition /><BlobType>BlockBlob</BlobType>"
        "<AccessTier>Hot</AccessTier><AccessTierInferred>true</AccessTierInferred>"
        "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>"
        "<ServerEncrypted>true</ServerEncrypted></Properties><OrMetadata /></Blob>"
        for key, md5 in links(5000)
    )
    return (
        '\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults '
        'ServiceEndpoint="http://127.0.0.1/" ContainerName="container">'
        f"<Prefix>{PREFIX}</Prefix><MaxResults>5000</MaxResults><Blobs>{rows}</Blobs>"
        f"<NextMarker>T{NUMBER.decode()}</NextMarker></EnumerationResults>"
    ).encode()


def serve(listening: socket.socket, kind: str) -> None:
    """Answer every request for a listing with the page after the one that its token names."""
    pages = {"s3": s3_page, "azure": azure_page}
    ordinary = pages[kind]() if kind in pages else gcs_page(whole=True)
    chosen = gcs_page(whole=False) if kind == "gcs" else b""
    form = b"application/json" if kind == "gcs" else b"application/xml"

    def answer(connection: socket.socket) -> None:
        data = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while more := connection.recv(65536):
            data += more
            if b"\r\n\r\n" not in data:
                continue
            line = data.partition(b"\r\n")[0]
            data = b""
            token = re.search(rb"=T(\d{8})", line)
            number = b"%08d" % (int(token[1]) + 1 if token else 0)
            body = (chosen if b"fields=" in line and kind == "gcs" else ordinary).replace(
                NUMBER, number
            )
            head = b"HTTP/1.1 200 OK\r\nDate: Sat, 03 Feb 2024 04:05:06 GMT\r\n"
            head += b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (form, len(body))
            connection.sendall(head + body)

    while True:
        connection, _ = listening.accept()
        Thread(target=answer, args=(connection,), daemon=True).start()


@contextmanager
def server(kind: str) -> Iterator[str]:
    """A store of this kind that never comes to an end; yields its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(
        target=serve, args=(listening, kind), daemon=True
    )
    process.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        process.terminate()
        process.join()
        listening.close()


def spent(keys: Iterator[int], wanted: int) -> float:
    """Seconds of processor time for each million keys, counted until there are *wanted*.

    The first answer, with all that is made once, is not counted.
    """
    next(keys)
    begin, done = time.process_time(), 0
    for count in keys:
        done += count
        if done >= wanted:
            break
    return (time.process_time() - begin) * 1e6 / done


def ours(kind: str, url: str) -> Iterator[int]:
    """How many keys each page of our driver has."""
    import os

    from registry_drivers.factory import StorageSpec, open_storage

    if kind == "gcs":
        os.environ["STORAGE_EMULATOR_HOST"] = url
    parameters: dict[str, dict[str, object]] = {
        "s3": {"bucket": "bucket", "region": "us-east-1", "regionendpoint": url,
               "accesskey": "key", "secretkey": KEY},
        "gcs": {"bucket": "bucket"},
        "azure": {"container": "container", "accountname": "account", "accountkey": KEY,
                  "serviceurl": f"{url}/account", "legacyrootprefix": False},
    }  # fmt: skip
    storage = open_storage(StorageSpec(kind, parameters[kind]))
    for page in storage.list(PREFIX):
        yield len(page)


def official(kind: str, url: str) -> Iterator[int]:
    """How many keys each page of the official SDK has, with name, size, time and MD5 looked at."""
    if kind == "s3":
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key=KEY,
        )
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=PREFIX)
        for page in pages:
            found = page["Contents"]
            yield len([(r["Key"], r["Size"], r["LastModified"], r["ETag"]) for r in found])
    elif kind == "gcs":
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage  # type: ignore[import-untyped]  # it has no types

        anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]  # Google's
        google = storage.Client("project", anonymous, client_options={"api_endpoint": url})
        for blobs in google.list_blobs("bucket", prefix=PREFIX).pages:
            yield len([(b.name, b.size, b.updated, b.md5_hash) for b in blobs])
    else:
        from azure.storage.blob import ContainerClient

        container = ContainerClient(f"{url}/account", "container", credential=KEY)
        for rows in container.list_blobs(PREFIX, results_per_page=5000).by_page():
            yield len(
                [(b.name, b.size, b.last_modified, b.content_settings.content_md5) for b in rows]
            )


@dataclass(frozen=True, slots=True)
class Row:
    """Processor seconds for a million keys; ``limit`` is the goal, in seconds."""

    store: str
    ours: float
    official: float
    goal: str
    limit: float

    @property
    def reached(self) -> bool:
        """Whether the goal is."""
        return self.ours <= self.limit


GOALS: dict[str, tuple[str, Callable[[float], float]]] = {
    "s3": ("at most 6 s", lambda _: 6.0),
    "gcs": ("at most a quarter of the official SDK", lambda official: official / 4),
    "azure": ("at most a tenth of the official SDK", lambda official: official / 10),
}


def compare(kind: str, keys: int, rounds: int) -> Row:
    """Let both list, in turns."""
    with server(kind) as url:
        mine, theirs = [], []
        for number in range(rounds):
            mine.append(spent(ours(kind, url), keys))
            theirs.append(spent(official(kind, url), min(keys, 25_000)))
            done = f"{kind} round {number + 1}: {mine[-1]:.2f} s, official {theirs[-1]:.1f} s"
            print(done, file=sys.stderr, flush=True)
    words, limit = GOALS[kind]
    return Row(kind, min(mine), min(theirs), words, limit(min(theirs)))


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """The figures as they stand in the README."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items()) + ".", ""]
    lines += ["| store | CPU s for a million keys | official SDK | goal | limit | reached |"]
    lines += ["|---|---:|---:|---|---:|---|"]
    lines += [
        f"| {row.store} | {row.ours:.2f} | {row.official:.1f} | {row.goal} | {row.limit:.2f} "
        f"| {'yes' if row.reached else '**no**'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="put the figures into the README")
    arguments = parser.parse_args()
    rows = [compare(kind, arguments.keys, arguments.rounds) for kind in arguments.stores]
    about = {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        **machine(Path(tempfile.gettempdir())),
        "keys": f"{arguments.keys:,}",
    }
    text = markdown(rows, about)
    print(text)
    if arguments.record:
        record("listing_cpu", "listing", rows, about, text)


if __name__ == "__main__":
    main()
