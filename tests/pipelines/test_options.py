"""Settings from words and YAML: what is given arrives, what is wrong is one line before any work."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from pipelines.cli import COMMANDS, main
from pipelines.settings.option import Metavar, Positional, options_of
from pipelines.settings.parser import parse
from predictor.errors import InputError
from predictor.ranges import Count, Probability, Range, check_ranges


@dataclass(frozen=True, slots=True)
class Engine:
    """A group of its own."""

    block_size: Count = 16
    """Tokens per block."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class Made:
    """Settings with every kind of field.

    Examples:
      amin made IN --kv-budget 5
    """

    path: Annotated[Path, Positional("IN")]
    """What is read."""
    kv_budget: Count
    """Tokens; 100 % of them are used."""
    tau: Probability = 0.1
    """Probability below."""
    kind: Literal["one", "two"] = "one"
    """Which."""
    step: Annotated[float, Range(0, 0.25, (True, False))] | None = None
    """Of what."""
    load: Annotated[str, Metavar("X|at-once")] = "0.9"
    """How much."""
    force: bool = False
    """Replace."""
    progress: bool = True
    """Show a bar."""
    engine: Engine = field(default_factory=Engine)
    """The engine."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)

    def defaults(self) -> dict[str, Any]:
        """Half the cache in blocks twice as large."""
        return {"block_size": 32} if self.kv_budget == 7 else {}


def read(*argv: object) -> Made:
    """Return the settings of these words."""
    return parse(Made, [str(word) for word in argv], "amin made", "make")


def test_words_become_settings() -> None:
    """With the defaults where none is given, and nested ones by their own name."""
    assert read("in", "--kv-budget", 5) == Made(Path("in"), 5)
    words = "--kv-budget 5 --no-progress --force --step 0.25 --block-size 4 --kind two"
    given = read("in", *words.split())
    assert given == Made(Path("in"), 5, kind="two", step=0.25, force=True, progress=False, engine=Engine(4))


def test_what_is_not_given_may_depend_on_what_is() -> None:
    """But never wins over an option."""
    assert read("in", "--kv-budget", 7).engine == Engine(32)
    assert read("in", "--kv-budget", 7, "--block-size", 16).engine == Engine(16)


def test_a_file_of_settings_is_read_and_options_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --print_config shows can be read again."""
    file = tmp_path / "made.yaml"
    file.write_text("path: in\nkv_budget: 9\ntau: 0.5\nprogress: false\nblock_size: 2\n")
    assert read("--config", file) == Made(Path("in"), 9, 0.5, progress=False, engine=Engine(2))
    assert read("--config", file, "--kv-budget", 3).kv_budget == 3
    with pytest.raises(SystemExit):
        read("--config", file, "--print_config")
    file.write_text(capsys.readouterr().out)
    assert read("--config", file) == Made(Path("in"), 9, 0.5, progress=False, engine=Engine(2))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["in"], "--kv-budget is missing"),
        (["--kv-budget", "5"], "IN is missing"),
        ([], "IN, --kv-budget are missing"),
        (["in", "--kv-budget", "many"], "--kv-budget: must be a whole number, not 'many'"),
        (["in", "--kv-budget", "2.5"], "--kv-budget: must be a whole number, not '2.5'"),
        (["in", "--kv-budget", "0"], "--kv-budget: must be at least 1, not 0"),
        (["in", "--kv-budget", "9" * 20], f"--kv-budget: must be at most 2147483647, not {'9' * 20}"),
        (["in", "--kv-budget", "5", "--tau", "1"], "--tau: must be above 0 and below 1, not 1.0"),
        (["in", "--kv-budget", "5", "--tau", "nan"], "--tau: must be a number, not 'nan'"),
        (["in", "--kv-budget", "5", "--step", "0.3"], "--step: must be above 0 and at most 0.25, not 0.3"),
        (["in", "--kv-budget", "5", "--block-size", "0"], "--block-size: must be at least 1, not 0"),
        (["in", "--kv-budget", "5", "--kind", "three"], "--kind: must be one of one, two, not 'three'"),
        (["in", "--kv-budget", "5", "--kv", "6"], "unrecognized arguments: --kv 6"),
        (["in", "--kv-budget", "5", "--config", "none.yaml"], "--config none.yaml: File does not exist"),
        (["", "--kv-budget", "5"], "IN: must not be empty"),
        (["in", "--kv-budget", "5", "--load", " "], "--load: must not be empty"),
        (["in", "--kv-budget", "5", "--load="], "--load: must not be empty"),
    ],
)
def test_a_wrong_value_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which names the option and what it takes."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read(*words)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tua: 0.1\n", "--config: tua: unknown; the settings are path, kv_budget"),
        ("tau: [0.1]\n", "--tau: must be a number, not '[0.1]'"),
        ("kind: 3\n", "--kind: must be one of one, two, not '3'"),
        ("progress: maybe\n", "--config: 'maybe' where true or false is wanted"),
        ("tau: null\n", "--tau: must be a number, not null"),
        ("force: null\n", "--force: must be true or false, not null"),
        ("load: ''\n", "--load: must not be empty"),
        ("[1, 2\n", "--config: not YAML"),
        ("- 1\n", "--config: '- 1' is no mapping of settings; write them as `seed: 3`"),
        ("# tau: 0.1\n", "--config: empty; write them"),
        ("config: wrong.yaml\n", "--config: reads itself ("),
    ],
)
def test_a_wrong_file_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    """As a wrong option is."""
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read("in", "--kv-budget", 5, "--config", file)
    assert str(caught.value).startswith(line.replace("--config:", f"--config {file}:"))
    assert "\n" not in str(caught.value)


def test_help_says_units_defaults_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    """And the examples as they are written."""
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "Tokens; 100 % of them are used (at least 1)", "Probability below (default: 0.1; above 0 and below 1)",
        "--kind {one,two}", "--load X|at-once", "--no-progress", "The engine: --block-size N", "--config FILE.yaml",
        "Examples: amin made IN --kv-budget 5",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["serve", "there", "--like", ""], "--like"),
        (["predict", "there", "--data", "d", "--out", "o.jsonl", "--split", ""], "--split"),
        (["train", "--data", "d", "--out", "o", "--encoder", ""], "--encoder"),
        (["simulate", "", "--kv-budget", "100", "--out", "o"], "WORKLOAD"),
        (["export", "there", "--out", ""], "--out"),
    ],
)
def test_a_name_that_is_given_as_nothing_is_refused_by_its_option(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an unset variable of a shell is: `--split ""` took all rows, `--encoder ""` the default, "" the folder."""
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {option}: must not be empty")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a string for each option, and a line for an option that there is not."""
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    capsys.readouterr()
    assert main([name, "--no-such-option"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_writes_an_output_knows_the_rule_for_it() -> None:
    """Each stage with --out has --force, but the demo, which goes on by itself."""
    for name, command in COMMANDS.items():
        module, _, kind = command.settings.rpartition(".")
        options = {option.field.name for option in options_of(getattr(import_module(module), kind))}
        assert "out" not in options or "force" in options or name == "demo", name


def test_amin_itself_lists_its_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is named, or one that there is not, it ends with 2."""
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert all(name in capsys.readouterr().out for name in ("collect",))
    monkeypatch.setattr("sys.argv", ["amin"])
    for words in (None, [], ["tarin"], ["--verbose"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
