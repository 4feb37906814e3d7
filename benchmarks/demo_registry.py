"""The registry that the demo collects: some weeks of pushes, moved tags and accidents.

Real layout, shared layers, multi-architecture images, signatures by ``subject`` and by cosign's
tag, an image tagged in one repository and not in another, orphans, a forgotten upload.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry_tree import RegistryTree, folder_sink

DAY = 86_400.0
COSIGN_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
OLD_UPLOAD = "8f3c1c3e-7d0a-4a55-9f0e-1d3f5a7b9c11"
FRESH_UPLOAD = "0b6b1f5e-2f0c-4f0e-8a53-6a1f3c5d7e90"


@dataclass(slots=True)
class Demo:
    """Pushes images and remembers in words what each digest was."""

    tree: RegistryTree
    dice: random.Random = field(default_factory=lambda: random.Random(20))
    words: dict[str, str] = field(default_factory=dict)

    def layer(self, kilobytes: int) -> bytes:
        """A layer: random, as compressed data looks."""
        return self.dice.randbytes(kilobytes * 1000 + self.dice.randrange(1000))

    def call(self, digest: str, words: str) -> str:
        """Remember what *digest* is."""
        self.words[digest] = words
        return digest

    def image(
        self, name: str, tag: str | None, what: str, layers: Sequence[bytes], **more: Any
    ) -> str:
        """Push an image with a config of its own."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "name": what}).encode()
        digest = self.tree.image(name, tag, layers=layers, config=config, **more)
        return self.call(digest, what)

    def sign(self, name: str, digest: str, what: str, tag: str | None = None) -> str:
        """Push a signature: by cosign's tag when one is given, else by its ``subject``."""
        payload = json.dumps({"critical": {"image": {"docker-manifest-digest": digest}}}).encode()
        subject = None if tag else digest
        extra = {"artifactType": COSIGN_PAYLOAD}
        return self.image(name, tag, what, [payload], subject=subject, extra=extra)


def fill(demo: Demo) -> None:
    """Some weeks in the life of a registry."""
    base, runtime = demo.layer(410), demo.layer(260)

    # The nightly build moves its tag: two of three images have none any more.
    for night in (1, 2, 3):
        demo.image(
            "shop/web", "nightly", f"night {night}", [base, runtime, demo.layer(180 + 20 * night)]
        )
    release = demo.image("shop/web", "1.4", "release 1.4", [base, runtime, demo.layer(210)])
    demo.tree.tag("shop/web", "latest", release)
    demo.sign("shop/web", release, "signature of 1.4", tag=release.replace(":", "-") + ".sig")
    demo.tree.layer("shop/web", demo.layer(340))  # a push that ended before its manifest

    # Multi-architecture images: the old index has lost its tag, the new one is signed.
    for version, tag in (("2.0", None), ("2.1", "2.1")):
        children = [
            demo.image("shop/api", None, f"{version} for {machine}", [base, demo.layer(size)])
            for machine, size in (("amd64", 230), ("arm64", 220))
        ]
        index = demo.tree.index("shop/api", tag, children)
        demo.call(index, f"index of {version}")
        demo.sign("shop/api", index, f"signature of {version}")

    # The same image in two repositories, tagged in only one of them.
    shared = [base, demo.layer(300)]
    for name, tag in (("tools/backup", "stable"), ("attic/backup", None)):
        demo.image(name, tag, "backup", shared)
    demo.image("attic/backup", None, "an experiment", [demo.layer(450)])

    for kilobytes in (520, 140):  # blobs that no repository links
        demo.tree.blob(demo.layer(kilobytes))

    started = datetime.fromtimestamp(time.time() - 40 * DAY, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    demo.tree.upload("shop/api", OLD_UPLOAD, started, demo.layer(380))


def make(folder: Path) -> tuple[Path, dict[str, str]]:
    """Write registry and config below *folder*, anew.

    Returns the config and, for digests of manifests, what they are in words.
    """
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "registry"
    demo = Demo(RegistryTree(folder_sink(root)))
    fill(demo)
    past = time.time() - 30 * DAY
    for path, _, files in os.walk(root):
        for file in files:
            os.utime(os.path.join(path, file), (past, past))
    # An upload that somebody may yet finish.
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    demo.tree.upload("tools/backup", FRESH_UPLOAD, now, demo.layer(90))

    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "storage:\n"
        "  filesystem:\n"
        f"    rootdirectory: {json.dumps(str(root))}\n"
        "  maintenance:\n"
        "    readonly:\n"
        "      enabled: true\n"
        "http:\n"
        f"  addr: 127.0.0.1:{unused_port()}\n"
    )
    return config, demo.words


def unused_port() -> int:
    """A port of this machine where nothing answers, so that the guard finds no registry."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
