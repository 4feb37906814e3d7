"""The registries that the benchmarks measure, made from a seed.

``many``: N repositories with 20 pushes each, half of them retagged away, some multi-architecture.
``deep``: one repository with 3,000 pushes and 1,200 tags.

    python benchmarks/trees.py many FOLDER --repositories 300
    python benchmarks/trees.py deep FOLDER
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from registry_tree import RegistryTree, folder_sink


def many(root: Path, repositories: int, pushes: int = 20, seed: int = 1) -> None:
    """*repositories* repositories of *pushes* pushes: about 26 manifests and 122 blobs each."""
    dice = random.Random(seed)
    tree = RegistryTree(folder_sink(root))
    base = [dice.randbytes(64) for _ in range(40)]
    for number in range(repositories):
        name = f"group{number % 17}/project{number}"
        for push in range(pushes):
            tag = f"v{push % (pushes // 2)}"
            shared = dice.sample(base, 2)
            if push % 7 == 3:
                children = [
                    tree.image(
                        name,
                        layers=[
                            *shared,
                            dice.randbytes(64),
                            dice.randbytes(64),
                            dice.randbytes(64),
                        ],
                        config=dice.randbytes(200),
                    )
                    for _ in range(2)
                ]
                tree.index(name, tag, children)
            else:
                tree.image(
                    name,
                    tag,
                    layers=[*shared, dice.randbytes(64), dice.randbytes(64), dice.randbytes(64)],
                    config=dice.randbytes(200),
                )
        for _ in range(4):
            tree.layer(name, dice.randbytes(64))


def deep(root: Path, pushes: int = 3000, tags: int = 1200, seed: int = 2) -> None:
    """One repository: *pushes* images, *tags* tags, the older pushes untagged."""
    dice = random.Random(seed)
    tree = RegistryTree(folder_sink(root))
    base = [dice.randbytes(64) for _ in range(10)]
    for push in range(pushes):
        tree.image(
            "big/one",
            f"t{push % tags}",
            layers=[*dice.sample(base, 3), dice.randbytes(64), dice.randbytes(64)],
            config=dice.randbytes(200),
        )


def main() -> None:
    """Write the tree that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=["many", "deep"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repositories", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.shape == "many":
        many(arguments.folder, arguments.repositories)
    else:
        deep(arguments.folder)


if __name__ == "__main__":
    main()
