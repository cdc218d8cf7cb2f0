"""The three lists of requirements agree, the wheel carries its files, and the environment is made, kept and mended."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from natgrad_lab import bootstrap, environment

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch"}
FILES = {name: (ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt", "environment.yml")}


def disagreements(files):
    """Sentences naming each requirement on which the three files differ."""
    project = tomllib.loads(files["pyproject.toml"])["project"]
    needed = {canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"])}
    extras = [r for group in project["optional-dependencies"].values() for r in map(Requirement, group)]
    lines = [line for line in files["constraints.txt"].splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    conda = yaml.safe_load(files["environment.yml"])["dependencies"]
    listed = [Requirement(line) for line in conda if isinstance(line, str) and line != "pip"]
    conda_has = {CONDA_NAMES.get(r.name, canonicalize_name(r.name)): r.specifier for r in listed}
    python = conda_has.pop("python", None)
    wrong = [f"constraints.txt: {line} is not a pin" for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    if len(pins) < len(lines):
        wrong.append("constraints.txt: something is pinned twice")
    for requirement in [*needed.values(), *extras]:
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            wrong.append(f"constraints.txt: no pin for {requirement}")
        elif not requirement.specifier.contains(str(pin.specifier)[2:]):
            wrong.append(f"constraints.txt: {pin} is outside {requirement}")
    wrong += [f"environment.yml: no {name}" for name in needed if name not in conda_has]
    wrong += [f"environment.yml: {name} is not in pyproject.toml" for name in conda_has if name not in needed]
    wrong += [
        f"environment.yml: {name}{bounds}, pyproject.toml: {needed[name]}"
        for name, bounds in conda_has.items()
        if name in needed and bounds != needed[name].specifier
    ]
    if python != SpecifierSet(project["requires-python"]):
        wrong.append(f"environment.yml: python{python}, pyproject.toml: {project['requires-python']}")
    if [line for line in conda if isinstance(line, dict)] != [{"pip": ["-e .[test]"]}]:
        wrong.append("environment.yml: pip must install the package itself, with its test tools, and nothing else")
    return wrong


def test_the_three_lists_agree():
    assert disagreements(FILES) == []


@pytest.mark.parametrize(
    "file, before, after, complaint",
    [
        ("environment.yml", "rich>=13.7", "rich>=13.8", "environment.yml: rich>=13.8, pyproject.toml: rich>=13.7"),
        ("environment.yml", "  - anywidget>=0.9.18\n", "", "environment.yml: no anywidget"),
        ("environment.yml", "  - pip\n", "  - pip\n  - scipy\n", "environment.yml: scipy is not in pyproject.toml"),
        ("environment.yml", "pytorch", "pytorch-nightly", "environment.yml: no torch"),
        ("environment.yml", "python>=3.11", "python>=3.10", "environment.yml: python>=3.10"),
        ("environment.yml", "-e .[test]", "-e .", "environment.yml: pip must install the package itself"),
        ("pyproject.toml", '"plotly>=6.1,<8"', '"plotly>=6.1,<7"', "constraints.txt: plotly==7.1.0 is outside"),
        ("pyproject.toml", '"pyyaml>=6"', '"pyyaml>=6", "numba>=0.5"', "constraints.txt: no pin for numba"),
        ("pyproject.toml", '"numpy>=1.26"', '"numpy>=1.27"', "environment.yml: numpy>=1.26, pyproject.toml: numpy>=1.27"),
        ("constraints.txt", "torch==2.13.0\n", "", "constraints.txt: no pin for torch"),
        ("constraints.txt", "torch==2.13.0", "torch==2.5.1", "constraints.txt: torch==2.5.1 is outside torch>=2.6"),
        ("constraints.txt", "anyio==", "anyio>=", "is not a pin"),
        ("constraints.txt", "six==", "SIX==1.0\nsix==", "something is pinned twice"),
    ],
)
def test_a_difference_between_the_lists_is_found(file, before, after, complaint):
    assert before in FILES[file]
    found = disagreements({**FILES, file: FILES[file].replace(before, after)})
    assert any(complaint in sentence for sentence in found), found


def test_every_package_that_gets_installed_is_pinned():
    """The requirements of the requirements too, as far as this platform and Python want them."""
    pins = {canonicalize_name(line.split("==")[0]) for line in FILES["constraints.txt"].splitlines() if "==" in line}
    left = [Requirement(line) for line in environment.requirements(ROOT, ["test"])]
    seen, unpinned = set(), set()
    while left:
        requirement = left.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        unpinned |= {key[0]} - pins
        for line in metadata.requires(requirement.name) or []:
            inner = Requirement(line)
            extras = [*requirement.extras, ""]
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(inner)
    assert unpinned == set()


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_every_pinned_version_allows_the_pythons_we_promise(python):
    """Debian 12 has Python 3.11.2: a pin that wants 3.11.5 would keep it out."""
    pins = [line.split("==") for line in FILES["constraints.txt"].splitlines() if "==" in line]
    for name, version in pins:
        for found in metadata.distributions(name=name):
            if found.version.split("+")[0] == version:
                assert SpecifierSet(found.metadata["Requires-Python"] or "").contains(python), f"{name}=={version}"


def test_the_environment_satisfies_its_own_requirements():
    assert environment.unmet(environment.requirements(ROOT, ["test"])) == []


def test_no_cuda_package_came_to_a_machine_without_a_gpu():
    if environment.wants_cpu_torch() and environment.is_running_in(ROOT / ".venv"):
        names = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
        assert not {name for name in names if name.startswith("nvidia-") or name == "triton"}


@pytest.mark.slow
def test_the_wheel_carries_data_scripts_and_settings(tmp_path):
    """Build it, unpack it, and load the digits from it as somebody would who has no checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "natgrad_lab").rglob("*.js")}
    settings = {path.relative_to(ROOT).as_posix() for path in (ROOT / "natgrad_lab" / "jupyter").rglob("*.json")}
    assert scripts and settings and scripts | settings | {"natgrad_lab/data/digits.npz"} <= names
    assert not any(name.startswith(("tests/", "notebooks/")) for name in names)
    code = "import natgrad_lab as ng; d = ng.datasets.digits(); print(len(d), ng.datasets.__file__)"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    where = tmp_path / "installed" / "natgrad_lab" / "datasets" / "__init__.py"
    assert done.stdout.split() == ["1797", str(where)], done.stderr


@pytest.mark.parametrize("name", ["__init__", "__main__", "bootstrap", "environment"])
def test_what_runs_before_the_environment_exists_parses_on_old_pythons(name):
    ast.parse((ROOT / "natgrad_lab" / f"{name}.py").read_text(), feature_version=(3, 6))


def test_an_old_python_is_told_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    monkeypatch.setenv("PATH", "")
    assert bootstrap.main(["lab"]) == 1
    assert "needs Python >= 3.11; this is 3.9.6" in capsys.readouterr().err


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_bounds_mean_what_pip_means_by_them(have, want):
    version, limit = ".".join(map(str, have)), ".".join(map(str, want))
    for operator in (">=", "<=", "==", "<", ">"):
        assert environment.satisfies(version, operator + limit) == SpecifierSet(operator + limit).contains(version)


def test_a_local_version_satisfies_its_pin():
    assert environment.satisfies("2.13.0+cpu", "==2.13.0") and not environment.satisfies("2.13.1+cpu", "==2.13.0")


def test_unmet_requirements_are_named_with_what_is_there():
    version = metadata.version("numpy")
    assert environment.unmet(["numpy>=1", "nowhere-to-be-found>=2", "numpy>=1,<1.1"]) == [
        "nowhere-to-be-found>=2 (not installed)",
        f"numpy>=1,<1.1 (found {version})",
    ]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose `.venv` is made by stand-ins: `checkout.installs` lists what pip would have been asked for."""

    class Checkout:
        root, installs = tmp_path, []

    def make(venv):
        python = environment.python_of(venv)
        python.parent.mkdir(parents=True)
        python.touch()

    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(FILES[name])
    monkeypatch.setattr(environment, "make_environment", make)
    monkeypatch.setattr(environment, "install", lambda root, python, extras: Checkout.installs.append(extras))
    return Checkout


def test_a_second_start_installs_nothing(checkout):
    environment.build(checkout.root, [])
    assert environment.is_up_to_date(checkout.root, []) and not environment.is_up_to_date(checkout.root, ["test"])
    environment.build(checkout.root, [])
    assert checkout.installs == [[]]


def test_test_tools_are_added_and_then_kept(checkout):
    for extras in ([], ["test"], []):
        environment.build(checkout.root, extras)
    assert checkout.installs == [[], ["test"]]
    (checkout.root / "constraints.txt").write_text(FILES["constraints.txt"] + "zipp==3.20\n")
    assert not environment.is_up_to_date(checkout.root, [])
    environment.build(checkout.root, [])
    assert checkout.installs[2:] == [["test"]]


@pytest.mark.parametrize("file, text", [("pyproject.toml", '"rich>=13.7"'), ("constraints.txt", "rich==")])
def test_changed_requirements_are_noticed(checkout, file, text):
    environment.build(checkout.root, [])
    (checkout.root / file).write_text(FILES[file].replace(text, text.replace("rich", "richer")))
    assert not environment.is_up_to_date(checkout.root, [])


def test_changed_settings_of_a_linter_reinstall_nothing(checkout):
    environment.build(checkout.root, [])
    (checkout.root / "pyproject.toml").write_text(FILES["pyproject.toml"].replace("line-length = 120", "line-length = 99"))
    assert environment.is_up_to_date(checkout.root, [])


def test_an_interrupted_installation_is_never_taken_for_good(checkout, monkeypatch):
    install = environment.install

    def interrupted(root, python, extras):
        (root / ".venv" / "half-installed").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment.build(checkout.root, [])
    assert not environment.is_up_to_date(checkout.root, [])
    monkeypatch.setattr(environment, "install", install)
    environment.build(checkout.root, [])
    assert environment.is_up_to_date(checkout.root, []) and not (checkout.root / ".venv" / "half-installed").exists()


def test_an_interrupted_update_is_not_taken_for_good_either(checkout, monkeypatch):
    environment.build(checkout.root, [])
    monkeypatch.setattr(environment, "install", lambda *_: (_ for _ in ()).throw(environment.SetupError("no network")))
    with pytest.raises(environment.SetupError):
        environment.build(checkout.root, ["test"])
    assert not environment.is_up_to_date(checkout.root, [])


def test_an_environment_whose_python_is_gone_is_made_anew(checkout):
    environment.build(checkout.root, [])
    environment.python_of(checkout.root / ".venv").unlink()
    assert not environment.is_up_to_date(checkout.root, [])
    environment.build(checkout.root, [])
    assert environment.is_up_to_date(checkout.root, []) and len(checkout.installs) == 2


def test_a_moved_checkout_is_installed_again(checkout, tmp_path_factory):
    environment.build(checkout.root, [])
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    checkout.root.rename(moved)
    assert not environment.is_up_to_date(moved, [])


def test_failing_pip_says_what_to_do(tmp_path):
    (tmp_path / ".venv").mkdir()
    with pytest.raises(environment.SetupError, match=r"(?s)Its last lines:.*no-such-file.*proxy.*install.log"):
        environment.pip(tmp_path, Path(sys.executable), "--requirement", str(tmp_path / "no-such-file"))
    assert "no-such-file" in (tmp_path / ".venv" / "install.log").read_text()


@pytest.mark.parametrize(
    "arguments, output, advice",
    [
        ((), "OSError: [Errno 28] No space left on device", "free about"),
        (("--index-url", environment.CPU_TORCH_INDEX), "Could not find a version", "A CUDA build is not installed instead"),
        ((), "getaddrinfo failed", "HTTPS_PROXY"),
        ((), "ERROR: ResolutionImpossible: for help visit", "tested with Python 3.11 to 3.13"),
    ],
)
def test_advice_fits_the_failure(arguments, output, advice):
    assert advice in environment.advice_for(arguments, output)


@pytest.mark.parametrize(
    "has_gpu, platform, expected", [(False, "linux", True), (True, "linux", False), (False, "win32", False)]
)
def test_only_linux_without_a_gpu_needs_the_cpu_index(monkeypatch, has_gpu, platform, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if has_gpu else None)
    assert environment.wants_cpu_torch() == expected


@pytest.fixture
def pip_calls(monkeypatch):
    """What pip would be asked for on Linux without a GPU, by an interpreter with torch 2.13.0+cpu."""
    calls = []
    monkeypatch.setattr(environment, "pip", lambda root, python, *arguments: calls.append(arguments))
    monkeypatch.setattr(environment, "wants_cpu_torch", lambda: True)
    monkeypatch.setattr(environment, "torch_version", lambda python: "2.13.0+cpu")
    return calls


def test_the_cpu_torch_comes_first_from_its_own_index_and_stays(pip_calls, monkeypatch):
    monkeypatch.setattr(environment, "has_torch", lambda python, pin: False)
    environment.install(ROOT, Path("python"), ["test"])
    first, second = pip_calls
    assert "--no-deps" in first and environment.CPU_TORCH_INDEX in first and "torch==2.13.0" in first
    assert second[:3] == ("--constraint", str(ROOT / "constraints.txt"), "torch==2.13.0+cpu")
    assert second[3:] == ("--editable", f"{ROOT}[test]")


def test_a_torch_that_is_there_is_not_installed_again(pip_calls):
    environment.install(ROOT, Path("python"), [])
    assert [call[2:] for call in pip_calls] == [("torch==2.13.0+cpu", "--editable", str(ROOT))]


def test_with_a_gpu_torch_is_left_to_the_pin(pip_calls, monkeypatch):
    monkeypatch.setattr(environment, "wants_cpu_torch", lambda: False)
    environment.install(ROOT, Path("python"), [])
    assert [call[2:] for call in pip_calls] == [("--editable", str(ROOT))]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".natgrad").write_text("a file where a folder has to be")
    with pytest.raises(environment.SetupError, match="cannot write in .*Copy the folder to where you may write"):
        environment.build(tmp_path, [])


def test_an_interpreter_that_has_everything_is_used_as_it_is(monkeypatch):
    monkeypatch.setattr(bootstrap, "run_here", lambda argv: ("here", argv))
    monkeypatch.setattr(environment, "unmet", lambda listed: [])
    monkeypatch.setattr(environment, "is_running_in", lambda venv: False)
    assert bootstrap.main(["lab", "--no-browser"]) == ("here", ["lab", "--no-browser"])


def test_one_that_lacks_something_hands_over_to_the_environment(checkout, monkeypatch):
    monkeypatch.setattr(environment, "checkout", lambda: checkout.root)
    monkeypatch.setattr(environment, "unmet", lambda listed: ["torch (not installed)"])
    monkeypatch.setattr(bootstrap, "go_on_with", lambda python, argv: (python, argv))
    expected = (environment.python_of(checkout.root / ".venv"), ["test", "-x"])
    assert bootstrap.main(["test", "-x"]) == expected and checkout.installs == [["test"]]


def test_help_installs_nothing(checkout, monkeypatch, capsys):
    monkeypatch.setattr(environment, "checkout", lambda: checkout.root)
    monkeypatch.setattr(environment, "unmet", lambda listed: ["torch (not installed)"])
    assert bootstrap.main(["--help"]) == 0 and checkout.installs == []
    assert "usage: python3 -m natgrad_lab" in capsys.readouterr().out


def test_the_stamp_is_plain_json(checkout):
    environment.build(checkout.root, ["test"])
    stamp = json.loads((checkout.root / ".venv" / "natgrad_lab.json").read_text())
    assert stamp == {"fingerprint": environment.fingerprint(checkout.root), "extras": ["test"]}


def test_make_passes_its_arguments_on():
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` runs this
    command = ["make", "-n", "lab", "ARGS=--no-browser --port=9000", "PYTHON=py"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == "py -m natgrad_lab lab --no-browser --port=9000"
