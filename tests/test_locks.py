"""What the set-up installs: by hash, in the versions that constraints.txt states."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.txt", "requirements-vllm.txt")
UNHASHED = {"torch"}
"""Its builds differ, so it comes by version and source."""


def normalized(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: str) -> dict[str, str]:
    """Return the version of each package of a lock; every one has a hash."""
    versions: dict[str, str] = {}
    for entry in re.sub(r"\\\n", "", (ROOT / lock).read_text()).splitlines():
        if not entry.startswith("#"):
            found = re.fullmatch(r"([\w.-]+)==([^\s;]+).*?((?:\s+--hash=sha256:[0-9a-f]{64})+)", entry)
            assert found, f"{lock}: {entry[:80]}"
            versions[normalized(found[1])] = found[2]
    return versions


def constrained() -> dict[str, str]:
    """Return the version of each package of constraints.txt."""
    return {normalized(name): version for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split()
    )}  # fmt: skip


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_its_hashes_and_torch_is_in_none(lock: str) -> None:
    """`pip --require-hashes` would refuse one without; a hash of torch would fit one build alone."""
    assert len(locked(lock)) > 100
    assert not UNHASHED & set(locked(lock))


def test_the_lock_holds_just_the_versions_of_constraints() -> None:
    """Change pyproject.toml or constraints.txt, then run `make lock`."""
    lock, wanted = locked("requirements.txt"), constrained()
    assert not set(wanted) - set(lock) - UNHASHED, "make lock"
    assert {name: version for name, version in lock.items() if name in wanted} == {
        name: version for name, version in wanted.items() if name in lock
    }, "make lock"


def test_the_lock_holds_what_the_project_asks_for() -> None:
    """Each dependency of the package, of its extras `train` and `dev`, and of its build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = list(project["project"]["dependencies"]) + project["build-system"]["requires"]
    for extra in ("train", "dev", "serve", "serving"):
        asked += project["project"]["optional-dependencies"][extra]
    names = {normalized(re.split(r"[\[<>=!; ]", each)[0]) for each in asked} - {"amin"} - UNHASHED
    assert names <= set(locked("requirements.txt")), "make lock"


def test_the_set_up_installs_nothing_but_torch_without_a_hash() -> None:
    """The commands themselves, as make would run them."""
    commands = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/installed", ".venv-vllm/installed"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    installs = [call for line in commands.replace("\\\n", "").splitlines() for call in re.split(r"\|\|", line)
                if "pip install" in call]  # fmt: skip
    assert len(installs) == 9
    for call in installs:
        words = call.split()
        is_hashed = {"--require-hashes", "--no-deps"} <= set(words)
        is_ours = {"--no-deps", "--no-build-isolation", "--editable"} <= set(words)
        assert is_hashed or is_ours or "torch==2.13.0" in words, call
