"""A real registry, from push to collection to pull: Debian's docker-registry and skopeo."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

from model import WEEK, expect
from real import Layout, RealRegistry, garbage_collect_dry_run
from running import Result, collect, collect_as_text, run, scratch, write_config, write_files
from strategies import Registry, well_formed
from test_against_model import ALONE


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Images to push: plain ones that share a layer, and one for two architectures."""
    layout = Layout(tmp_path_factory.mktemp("layout") / "oci")
    layout.name("one", layout.image(["base", "first"]))
    layout.name("two", layout.image(["base", "second"]))
    layout.name("other", layout.image(["another base"]))
    layout.name("gone", layout.image(["base", "soon gone"]))
    children = [layout.image(["base", name], name) for name in ("amd64", "arm64")]
    layout.name("multi", layout.index(children))
    layout.name("multi-new", layout.index([children[0], layout.image(["base", "new"], "arm64")]))
    return layout


@pytest.fixture
def registry(tmp_path: Path) -> RealRegistry:
    return RealRegistry(tmp_path)


def fill(registry: RealRegistry, layout: Layout) -> dict[str, list[str]]:
    """Push, move and delete tags in both formats; returns the tags that are left."""
    for form, options in (("oci", ()), ("docker", ("--format", "v2s2"))):
        for name, tag in (("one", "v1"), ("two", "v2"), ("gone", "gone"), ("two", "latest")):
            registry.push(layout.folder, name, f"{form}/app:{tag}", *options)
        registry.push(layout.folder, "one", f"{form}/app:latest", *options)
        registry.push(layout.folder, "multi", f"{form}/app/multi:v1", "--all", *options)
        registry.push(layout.folder, "multi", f"{form}/app/multi:v2", "--all", *options)
        registry.push(layout.folder, "multi-new", f"{form}/app/multi:v1", "--all", *options)
        registry.push(layout.folder, "other", f"{form}/untagged:v1", *options)
        registry.push(layout.folder, "other", f"{form}/untagged:v2", *options)
        registry.delete_manifest(f"{form}/app", "gone")
        for tag in ("v1", "v2"):
            registry.delete_tag(f"{form}/untagged", tag)
        registry.delete_tag(f"{form}/app/multi", "v2")
    return registry.pull_everything()


def collect_here(registry: RealRegistry, *arguments: str) -> Result:
    """Collect with the registry's own config file."""
    return collect(registry.root, *arguments, config=registry.config)


@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["plain", "-m"])
@pytest.mark.parametrize("readonly", [True, False], ids=["read-only", "stopped"])
def test_after_a_collection_every_tag_can_be_pulled_and_new_pushes_work(
    registry: RealRegistry, layout: Layout, tmp_path: Path, mode: tuple[str, ...], readonly: bool
) -> None:
    with registry.running():
        before = fill(registry, layout)
        multi = registry.digest("oci/app/multi", "v1")
    if readonly:
        with registry.running(readonly=True):
            result = collect_here(registry, *mode)
            assert registry.pull_everything() == expected_tags(before, mode)
    else:
        result = collect_here(registry, "--registry-stopped", *mode)
    assert result.exit_code == 0, result.errors
    assert result.json["guard"]["verdict"] == "allowed"
    assert result.json["blobs"]["deleted"] > 0
    assert result.json["layer_links"]["deleted"] > 0

    with registry.running():
        assert registry.pull_everything() == expected_tags(before, mode)
        registry.pull_with_skopeo("oci/app/multi:v1", tmp_path / "pulled")
        registry.pull("oci/app/multi", multi)
        # What was deleted can be pushed and pulled again, into the same repositories.
        registry.push(layout.folder, "gone", "oci/app:gone")
        registry.push(layout.folder, "other", "oci/untagged:v1")
        assert registry.pull("oci/app", "gone") == 3
        assert registry.pull("oci/untagged", "v1") == 2

    again = collect_here(registry, "--registry-stopped", *mode)
    assert again.exit_code == 0
    for kind in ("blobs", "manifests", "layer_links", "uploads"):
        assert again.json[kind]["eligible"] == 0


def expected_tags(before: dict[str, list[str]], mode: tuple[str, ...]) -> dict[str, list[str]]:
    """The catalog afterwards: with ``-m``, repositories without a tag are gone from it."""
    return {name: tags for name, tags in before.items() if tags or not mode}


def test_a_dry_run_beside_a_writable_registry_is_allowed_and_says_what_a_run_would_answer(
    registry: RealRegistry, layout: Layout
) -> None:
    with registry.running():
        before = fill(registry, layout)
        result = collect_here(registry, "--dry-run", "-m")
        assert result.exit_code == 0
        assert result.json["guard"]["verdict"] == "refused"
        assert result.json["blobs"]["eligible"] > 0
        assert registry.pull_everything() == before


@pytest.mark.parametrize("arguments", [(), ("--registry-stopped",)])
def test_beside_a_writable_registry_nothing_is_deleted(
    registry: RealRegistry, layout: Layout, arguments: tuple[str, ...]
) -> None:
    with registry.running():
        before = fill(registry, layout)
        result = collect_here(registry, "-m", *arguments)
        assert result.exit_code == 4
        assert result.json["guard"]["verdict"] == "refused"
        assert result.json["guard"]["findings"]
        assert result.json["blobs"]["deleted"] == 0
        assert registry.pull_everything() == before


def test_an_emptied_repository_is_kept_in_the_catalog_when_asked(
    registry: RealRegistry, layout: Layout
) -> None:
    with registry.running():
        fill(registry, layout)
    result = collect_here(registry, "--registry-stopped", "-m", "--keep-empty-repositories")
    assert result.exit_code == 0
    with registry.running():
        tags = registry.pull_everything()
        assert tags["oci/untagged"] == []
        registry.push(layout.folder, "other", "oci/untagged:v1")
        assert registry.pull("oci/untagged", "v1") == 2


def test_an_image_deleted_while_its_layers_serve_another_repository_leaves_those(
    registry: RealRegistry, layout: Layout
) -> None:
    with registry.running():
        registry.push(layout.folder, "one", "a:v1")
        registry.push(layout.folder, "one", "b:v1")
        registry.push(layout.folder, "two", "b:v2")
        registry.delete_manifest("b", "v1")
    assert collect_here(registry, "--registry-stopped").json["blobs"]["deleted"] == 0
    with registry.running():
        assert registry.pull_everything() == {"a": ["v1"], "b": ["v2"]}


def test_an_upload_that_a_client_began_goes_when_it_is_old_and_not_before(
    registry: RealRegistry, layout: Layout
) -> None:
    with registry.running():
        registry.push(layout.folder, "one", "a:v1")
        begun = registry.request("POST", "a/blobs/uploads/")
        assert begun.status == 202
    uploads = registry.root / "docker/registry/v2/repositories/a/_uploads"
    assert list(uploads.iterdir())
    stopped = ("--registry-stopped", "--upload-age")
    assert collect_here(registry, *stopped, "1h").json["uploads"]["eligible"] == 0
    assert list(uploads.iterdir())
    assert collect_here(registry, *stopped, "0s").json["uploads"]["deleted"] == 1
    assert not uploads.exists()


def assert_same_lines(text: str, distribution: str) -> None:
    """Every line of Distribution's that names a blob, a repository or the counts is ours too."""
    ours = {line.rstrip() for line in text.splitlines()}
    theirs = [line.rstrip() for line in distribution.splitlines()]
    assert {line for line in theirs if line and line not in ours} == set()


@pytest.mark.parametrize("options", [(), ("--verbose",)])
def test_the_text_has_every_line_that_distribution_prints(
    registry: RealRegistry, layout: Layout, options: tuple[str, ...]
) -> None:
    with registry.running():
        fill(registry, layout)
    theirs = registry.garbage_collect_dry_run()
    # 2.8 prints the marking lines always, 3 only when asked.
    distribution = "\n".join(
        line for line in theirs.text.splitlines() if options or ": marking " not in line
    )
    ours = collect_as_text(
        registry.root, "--dry-run", "--registry-stopped", *options, config=registry.config
    )
    assert ours.exit_code == 0
    assert_same_lines(ours.text, distribution)
    assert set(ours.lines("blob eligible for deletion: ")) == theirs.blobs


def test_the_real_run_prints_the_lines_of_the_dry_run(
    registry: RealRegistry, layout: Layout
) -> None:
    with registry.running():
        fill(registry, layout)
    arguments = ("--registry-stopped", "-m")
    dry = collect_as_text(registry.root, "--dry-run", *arguments, config=registry.config)
    real = collect_as_text(registry.root, *arguments, config=registry.config)

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if "eligible for deletion" in line]

    assert lines(real.text) == lines(dry.text)
    assert len(lines(dry.text)) > 10


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(well_formed())
def test_without_delete_untagged_distribution_deletes_the_same_blobs(registry: Registry) -> None:
    with scratch() as folder:
        root = folder / "registry"
        write_files(root, registry.files, registry.now)
        config = write_config(root)
        theirs = garbage_collect_dry_run(config)
        ours = run("--dry-run", "--no-cache", *ALONE, config, state=folder / "state")
        counts = collect(root, "--dry-run", *ALONE, config=config).json
    model = expect(registry.files, delete_untagged=False, upload_age=WEEK, now=registry.now)
    assert theirs.blobs == model.blobs
    assert theirs.marked == len(model.marked)
    assert set(ours.lines("blob eligible for deletion: ")) == theirs.blobs
    assert counts["marked"] == theirs.marked
    assert counts["manifests"]["eligible"] == theirs.manifests == 0
    # Every line but those about marking, which 3 prints only when asked.
    kept = [line for line in theirs.text.splitlines() if ": marking " not in line]
    assert_same_lines(ours.text, "\n".join(kept))


def group(*arguments: str | Path, state: Path) -> int:
    """Run ``registry-gc``; returns the exit code."""
    from registry_gc.cli.main import registry_gc

    words = [*map(str, arguments), "--state-dir", str(state), "--quiet"]
    answer = CliRunner().invoke(registry_gc, words)
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code


def test_a_push_between_plan_and_apply_that_reuses_what_was_to_go_can_be_pulled(
    registry: RealRegistry, layout: Layout, tmp_path: Path
) -> None:
    """The registry does not take the layers again, since it has them: only links are new."""
    plan, state = tmp_path / "plan", tmp_path / "state"
    with registry.running():
        registry.push(layout.folder, "gone", "app:v1")
        registry.push(layout.folder, "other", "app:other")
        registry.push(layout.folder, "one", "app:v1")
        registry.delete_manifest("app", "other")
    # Read-only, so that the grace is none: all of this has just been pushed.
    with registry.running(readonly=True):
        assert group("plan", "-m", "-o", plan, registry.config, state=state) == 0
    with registry.running():
        registry.push(layout.folder, "gone", "elsewhere:again")
    with registry.running(readonly=True):
        assert group("apply", plan, state=state) == 0
        assert registry.pull_everything() == {"app": ["v1"], "elsewhere": ["again"]}
    with registry.running():
        registry.push(layout.folder, "other", "app:other")
        assert registry.pull("app", "other") > 0
    again = collect(registry.root, "--dry-run", config=write_config(registry.root))
    assert again.exit_code == 0
