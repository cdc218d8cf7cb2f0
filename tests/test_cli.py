"""`natgrad`: what is printed, which exit code, what is handed on. JupyterLab itself is started in the slow test here."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from natgrad_lab import cli, doctor, environment, suite
from natgrad_lab.cli import commands
from natgrad_lab.doctor import Finding
from natgrad_lab.jupyter import lab_environment, lab_options, launch, start_lab

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """No line is broken in the middle of what a test looks for."""
    monkeypatch.setenv("COLUMNS", "300")


def natgrad(capsys, *argv):
    """(exit code, standard output, standard error) of one command."""
    code = cli.main(list(map(str, argv)))
    return code, *capsys.readouterr()


# ---- errors and help


def test_no_command_prints_the_help(capsys):
    code, out, _ = natgrad(capsys)
    assert code == 0 and all(name in out for name in ("lab", "test", "doctor", "run", "data"))


def test_a_misspelt_command_is_corrected(capsys):
    code, _, err = natgrad(capsys, "doctr")
    assert code == 2 and "Did you mean 'doctor'?" in err


def test_an_error_is_one_sentence_without_a_traceback(capsys):
    code, out, err = natgrad(capsys, "run", "--method", "kfak", "--out", "/nowhere/at/all")
    assert code == 2 and out == "" and err.startswith("natgrad: ") and "Traceback" not in err and err.count("\n") == 1


def test_debug_shows_where(capsys):
    with pytest.raises(ValueError, match="--sizes must be whole numbers"):
        cli.main(["--debug", "run", "--sizes", "a"])


def test_version(capsys):
    code, out, _ = natgrad(capsys, "--version")
    assert code == 0 and re.fullmatch(r"\d+\.\d+\.\d+", out.strip())


# ---- data


def test_data_lists_every_set_with_its_licence(capsys):
    code, out, _ = natgrad(capsys, "data")
    assert code == 0
    assert "digits: 1797 handwritten digits, 8 x 8, 10 classes; shipped" in out and "licence CC BY 4.0" in out
    assert "gaussian_blobs" in out and "linear_teacher" in out


# ---- run


def test_run_keeps_its_records_and_says_where(capsys, tmp_path):
    folder = tmp_path / "out"
    code, out, _ = natgrad(
        capsys, "run", "--method", "sgd", "--dataset", "gaussian_blobs", "--sizes", "2,4,3", "--lr", 0.5, "--steps", 6,
        "--seed", 3, "--dtype", "float64", "--batch-size", 50, "--likelihood", "categorical", "--out", folder,
    )  # fmt: skip
    assert code == 0 and str(folder) in out and "6/6" in out
    config = json.loads((folder / "config.json").read_text())
    wanted = {"method": "sgd", "sizes": [2, 4, 3], "lr": 0.5, "seed": 3, "dtype": "float64", "batch_size": 50}
    assert wanted.items() <= config.items()
    losses = [json.loads(line)["loss"] for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(losses) == 6 and losses[-1] < losses[0]
    shown = re.search(r"loss (\S+) at step 1, (\S+) at step 6", out)
    assert float(shown[1]) == pytest.approx(losses[0], rel=1e-3) and float(shown[2]) == pytest.approx(losses[-1], rel=1e-3)


def test_resume_goes_on_by_the_kept_config(capsys, tmp_path):
    common = ["--dataset", "gaussian_blobs", "--sizes", "2-4-3", "--dtype", "float64"]
    natgrad(capsys, "run", *common, "--steps", 3, "--out", tmp_path / "a")
    code, out, err = natgrad(capsys, "run", "--resume", "--steps", 5, "--out", tmp_path / "a")
    assert code == 0 and "at step 4" in out and "at step 5" in out, err
    natgrad(capsys, "run", *common, "--steps", 5, "--out", tmp_path / "b")
    losses = [[json.loads(x)["loss"] for x in (tmp_path / n / "records.jsonl").read_text().splitlines()] for n in "ab"]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    code, out, _ = natgrad(capsys, "run", "--resume", "--out", tmp_path / "a")
    assert code == 0 and "Nothing to do" in out


def test_every_field_of_a_config_can_be_given(capsys, tmp_path):
    from dataclasses import fields

    from natgrad_lab.experiments import ExperimentConfig

    given = {
        "--method": "kfac", "--model": "autoencoder", "--data": "digits", "--sizes": "64,9,4", "--init": "sparse",
        "--activation": "tanh", "--likelihood": "gaussian:0.25", "--lr": 0.1, "--damping": 0.5, "--batch-size": 20,
        "--batch-growth": "5:3", "--examples": 40, "--steps": 4, "--seed": 2, "--dtype": "float64", "--device": "cpu",
        "--option": "ema_decay=0.5", "--evaluate-every": 2, "--evaluate-examples": 30, "--test-fraction": 0.5, "--threads": 1,
    }  # fmt: skip
    argv = [part for pair in given.items() for part in pair]
    code, out, err = natgrad(capsys, "run", *argv, "--out", tmp_path / "r", "--checkpoint-every", 3)
    assert code == 0, err
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    expected = {
        "method": "kfac", "model": "autoencoder", "dataset": "digits", "sizes": [64, 9, 4], "init": "sparse",
        "activation": "tanh", "likelihood": "gaussian", "variance": 0.25, "lr": 0.1, "damping": 0.5, "batch_size": 20,
        "batch_growth": [5, 3], "num_examples": 40, "steps": 4, "seed": 2, "dtype": "float64", "device": "cpu",
        "options": {"ema_decay": 0.5}, "evaluate_every": 2, "evaluate_examples": 30, "test_fraction": 0.5, "bias": None,
        "data_options": {},
    }  # fmt: skip
    assert config == expected and set(config) == {field.name for field in fields(ExperimentConfig)}
    last = json.loads((tmp_path / "r" / "evaluations.jsonl").read_text().splitlines()[-1])
    shown = re.search(r"error after step 4: train (\S+), test (\S+)\n", out)
    assert float(shown[1]) == pytest.approx(last["train_error"], rel=1e-3)
    assert float(shown[2]) == pytest.approx(last["test_error"], rel=1e-3)
    assert "1,310 parameters, Gaussian(variance=0.25); on cpu" in out  # (64 · 9 + 9 · 4) · 2 weights, 9 + 4 + 9 + 64 biases


def test_options_of_the_data_and_words_as_values(capsys, tmp_path):
    code, _, err = natgrad(
        capsys, "run", "--data", "gaussian_blobs", "--data-option", "dim=5", "--data-option", "num_classes=2", "--steps", 1,
        "--option", "fisher_type=exact", "--out", tmp_path / "r",
    )  # fmt: skip
    assert code == 0, err
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["data_options"] == {"dim": 5, "num_classes": 2} and config["options"] == {"fisher_type": "exact"}


def test_a_network_from_a_file_is_resumed_only_when_it_is_named_again(capsys, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(64, 10)\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = natgrad(capsys, "run", "--model", "my.py:make", "--steps", 2, "--out", "r")
    assert code == 0 and f"running {tmp_path / 'my.py'}, which is your own code" in out, err
    code, out, err = natgrad(capsys, "run", "--resume", "--out", "r", "--steps", 3)
    assert code == 2 and f"If it is yours, say so: --model {tmp_path / 'my.py'}:make" in err and "running" not in out
    monkeypatch.chdir("/")
    code, out, err = natgrad(
        capsys, "run", "--resume", "--out", tmp_path / "r", "--steps", 3, "--model", tmp_path / "my.py:make"
    )
    assert code == 0 and "at step 3" in out, err


def test_list_names_every_method_model_and_data_set(capsys):
    from natgrad_lab.datasets import DATASETS
    from natgrad_lab.experiments import MODELS
    from natgrad_lab.optimizers import METHODS

    code, out, _ = natgrad(capsys, "run", "--list")
    named = re.findall(r"^  (\w+) ", out, flags=re.MULTILINE)
    assert code == 0 and set(named) >= {*METHODS, *MODELS, *DATASETS} and "FILE.py:NAME" in out


def test_threads_are_those_of_the_run_that_is_gone_on_with(capsys, tmp_path, monkeypatch):
    from natgrad_lab.cli import run as run_command

    seen = []
    monkeypatch.setattr(run_command.torch, "set_num_threads", seen.append)
    natgrad(capsys, "run", "--data", "gaussian_blobs", "--steps", 1, "--out", tmp_path / "r")
    natgrad(capsys, "run", "--resume", "--steps", 2, "--out", tmp_path / "r")
    natgrad(capsys, "run", "--resume", "--steps", 3, "--out", tmp_path / "r", "--threads", 2)
    assert seen == [1, 2]
    code, _, err = natgrad(capsys, "run", "--threads", 0, "--out", tmp_path / "s")
    assert code == 2 and "--threads must be at least 1; got 0" in err


def test_a_diverged_run_says_so_and_keeps_what_it_had(capsys, tmp_path):
    code, out, _ = natgrad(
        capsys, "run", "--dataset", "linear_teacher", "--likelihood", "gaussian", "--activation", "identity", "--method",
        "sgd", "--lr", "1e30", "--steps", 30, "--out", tmp_path / "d",
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "d" / "records.jsonl").read_text().splitlines()]
    assert code == 1 and records[-1]["status"] == "diverged"
    assert f"diverged at step {records[-1]['step']}: {records[-1]['message']}" in out


def test_interrupting_a_run_keeps_it(capsys, tmp_path, monkeypatch):
    from natgrad_lab.cli import run as run_command

    def interrupted(records, config, folder, console):
        next(records)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "follow", interrupted)
    code, out, _ = natgrad(capsys, "run", "--dataset", "gaussian_blobs", "--out", tmp_path / "i")
    assert code == 130 and f"natgrad run --resume --out {tmp_path / 'i'}" in out
    assert (tmp_path / "i" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--method", "kfak"], "'kfak'. Did you mean 'kfac'?"),
        (["--dataset", "digit"], "'digit'. Did you mean 'digits'?"),
        (["--activation", "tan"], "'tan'. Did you mean 'tanh'?"),
        (["--likelihood", "gauss"], "'gauss'. Did you mean 'gaussian'?"),
        (["--sizes", "64,x,10"], "--sizes must be whole numbers with commas between, as 64,32,10; got '64,x,10'"),
        (["--sizes", "3,10"], "(3, 10) do not fit digits: it has 64 inputs and 10"),
        (["--damping", "-1"], "damping must be"),
        (["--batch-size", "0"], "batch_size must be an integer >= 1; got 0"),
        (["--dtype", "float16"], "'float16'"),
        (["--device", "toaster"], "'toaster'"),
        (["--model", "autoencodr"], "'autoencodr'. Did you mean 'autoencoder'?"),
        (["--model", "none.py:make"], "there is no file"),
        (["--model", "none.py"], "must be FILE.py:NAME"),
        (["--init", "sparce"], "'sparce'. Did you mean 'sparse'?"),
        (["--batch-growth", "9"], "--batch-growth must be FIRST:STEP, as 1000:500"),
        (["--option", "ema_decay"], "must be NAME=VALUE"),
        (["--data-option", "colour=red"], "colour"),
        (["--likelihood", "gaussian:wide"], "--likelihood takes a number after the colon"),
        (["--likelihood", "bernoulli:2"], "only gaussian takes a variance"),
        (["--evaluate-every", "0"], "evaluate_every must be an integer >= 1; got 0"),
        (["--resume"], "--resume needs --out with the folder of a run"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = natgrad(capsys, "run", *argv)
    assert code == 2 and message in err, err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys.modules["natgrad_lab.experiments.run"], "prepare", lambda config: pytest.fail("computed"))
    code, _, err = natgrad(capsys, "run", "--out", tmp_path / "file" / "inside")
    assert code == 2 and "cannot be written" in err and "--out" in err


# ---- doctor


@pytest.mark.slow
def test_the_doctor_finds_this_environment_healthy(capsys):
    code, out, _ = natgrad(capsys, "doctor", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True), [finding for finding in report["findings"] if not finding["ok"]]
    names = {finding["name"] for finding in report["findings"]}
    assert {"Python", "torch", "device", "threads", "widgets", "lab extensions", "exact Fisher", "live run"} <= names
    assert {f"step of {name}" for name in ("sgd", "momentum", "adam", "exact_ngd", "kfac")} <= names


def test_the_doctor_fails_with_the_reason(capsys, monkeypatch):
    findings = [Finding("Python", "3.11"), Finding("widgets", "missing: anywidget", ok=False, advice="pip install anywidget")]
    monkeypatch.setattr(doctor, "examine", lambda root: findings)
    code, out, _ = natgrad(capsys, "doctor")
    assert code == 1 and "Not healthy: widgets." in out and "pip install anywidget" in out


def test_a_wrong_fisher_and_a_step_that_goes_nowhere_are_found(monkeypatch):
    from natgrad_lab import fisher, optimizers

    right, record = fisher.dense_fisher, optimizers.StepRecord(1, 0.5)
    monkeypatch.setattr(fisher, "dense_fisher", lambda *data: right(*data).map(lambda tensor: 1.001 * tensor))
    idle = SimpleNamespace(step=lambda inputs, targets: record)
    monkeypatch.setattr(optimizers, "METHODS", {"idle": lambda model, likelihood, lr: idle})
    failed = {finding.name for finding in doctor.self_check(None) if not finding.ok}
    assert failed == {"exact Fisher", "step of idle"}


def test_a_check_that_raises_is_a_finding(monkeypatch):
    def live_run(root):
        raise OSError("no threads left")

    (finding,) = doctor.attempt(live_run, None)
    assert not finding.ok and finding.name == "live run" and finding.value == "OSError: no threads left"
    assert "test_cli.py, line" in finding.advice


def test_a_missing_lab_extension_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "LAB_EXTENSIONS", ("anywidget", "no-such-extension"))
    finding = next(finding for finding in doctor.widgets(None) if finding.name == "lab extensions")
    assert not finding.ok and finding.value == "missing: no-such-extension"


def test_unmet_requirements_make_the_doctor_fail(monkeypatch):
    monkeypatch.setattr(environment, "requirements", lambda root: ["numpy>=99"])
    failed = [finding for finding in doctor.versions(ROOT) if not finding.ok]
    assert len(failed) == 1 and failed[0].value.startswith("numpy>=99 (found ") and "make lab" in failed[0].advice


# ---- lab


def test_lab_options_are_ours_only_where_the_user_said_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "is_root", lambda: False)
    options = lab_options(tmp_path, ["--no-browser"])
    assert options[-1] == "--no-browser" and f"--ServerApp.root_dir={tmp_path}" in options
    assert any(re.fullmatch(r"--port=\d+", option) for option in options)
    assert lab_options(tmp_path, ["--port=1234", "--ServerApp.root_dir=/x", "--log-level=INFO"]) == [
        "--port=1234", "--ServerApp.root_dir=/x", "--log-level=INFO",
    ]  # fmt: skip
    assert not any("root_dir" in option for option in lab_options(tmp_path, ["one.ipynb"]))


@pytest.mark.parametrize("root, container, allowed", [(True, True, True), (True, False, False), (False, True, False)])
def test_root_is_allowed_only_in_a_container(monkeypatch, tmp_path, root, container, allowed):
    monkeypatch.setattr(launch, "is_root", lambda: root)
    monkeypatch.setattr(launch, "is_container", lambda: container)
    assert ("--allow-root" in lab_options(tmp_path, [])) == allowed


def test_the_token_is_left_alone(tmp_path):
    names = [option.split("=")[0].lower() for option in lab_options(tmp_path, [])]
    assert not [name for name in names if "token" in name or "password" in name]


def test_lab_environment_keeps_the_users_settings_behind_ours(monkeypatch):
    monkeypatch.setattr(launch, "cores", lambda: 8)
    found = lab_environment(ROOT, {"JUPYTER_CONFIG_PATH": "/mine", "PYTHONPATH": f"/other:{ROOT}"})
    assert found["JUPYTER_CONFIG_PATH"] == f"{ROOT / 'natgrad_lab' / 'jupyter'}:/mine"
    assert found["OMP_NUM_THREADS"] == "7" and found["PYTHONPATH"] == f"{ROOT}:/other"
    assert lab_environment(None, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(launch, "cores", lambda: 1)
    assert lab_environment(None, {})["OMP_NUM_THREADS"] == "1"


def test_a_port_in_use_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert launch.free_port(taken.getsockname()[1], tries=5) != taken.getsockname()[1]


def test_lab_without_notebooks_or_jupyter_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="notebooks here.*run `make lab`"):
        start_lab(None)
    with pytest.raises(FileNotFoundError, match="notebooks does not exist"):
        start_lab(tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(launch, "NEEDED", ("no_such_module",))
    with pytest.raises(ModuleNotFoundError, match="needs no_such_module.*pip install no_such_module"):
        start_lab(tmp_path)


def test_a_notebook_that_was_not_made_yet_is_made_and_others_are_left_alone(tmp_path):
    source = "# %% [markdown]\n# # A claim\n\n# %%\n1 + 1\n"
    for name in ("01_one.py", "02_two.py", "helper.py"):
        (tmp_path / name).write_text(source)
    (tmp_path / "02_two.ipynb").write_text("mine")
    assert launch.write_missing(tmp_path) == [tmp_path / "01_one.ipynb"]
    made = json.loads((tmp_path / "01_one.ipynb").read_text())
    assert [cell["cell_type"] for cell in made["cells"]] == ["markdown", "code"]
    assert made["metadata"]["kernelspec"]["name"] == "python3" and (tmp_path / "02_two.ipynb").read_text() == "mine"
    assert not (tmp_path / "helper.ipynb").exists() and launch.write_missing(tmp_path) == []


# ---- notebooks


def test_notebooks_reports_what_is_out_of_date(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "natgrad_lab.notebooks.build", lambda paths, check, fast: calls.append((paths, check, fast)) or ["01 differs"]
    )
    assert natgrad(capsys, "notebooks", "--check")[:2] == (1, "01 differs\n")
    assert natgrad(capsys, "notebooks", "--fast", "a.py")[:2] == (0, "01 differs\n")
    assert calls == [(None, True, False), ([Path("a.py")], False, True)]


@pytest.mark.slow
def test_lab_really_starts_prints_its_address_and_shows_no_news(tmp_path):
    """The server answers with its token and refuses without; the news popup is off; Ctrl-C ends it."""
    (tmp_path / "notebooks").mkdir()
    code = "import pathlib, sys, natgrad_lab.jupyter as j; j.start_lab(pathlib.Path(sys.argv[1]), ['--no-browser'])"
    command, log = [sys.executable, "-c", code, str(tmp_path)], tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 90
        while not (address := re.search(r"http://127\.0\.0\.1:\d+/lab\?token=\w{40,}", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        server, token = address[0].split("/lab?token=")
        page = json.load(urllib.request.urlopen(f"{server}/api/status?token={token}", timeout=30))
        assert page["kernels"] == 0
        settings = f"{server}/lab/api/settings/@jupyterlab/apputils-extension:notification?token={token}"
        schema = json.load(urllib.request.urlopen(settings, timeout=30))["schema"]
        assert schema["properties"]["fetchNews"]["default"] == "false"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{server}/api/contents", timeout=30)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


# ---- test


@pytest.fixture
def pytest_calls(monkeypatch):
    """The commands that `natgrad test` would run."""
    calls = []
    monkeypatch.setattr(suite.subprocess, "call", lambda command, cwd, env=None: calls.append(command[3:]) or 0)
    monkeypatch.setattr(suite, "find_chromium", lambda: "/usr/bin/chromium")
    monkeypatch.delenv("CI", raising=False)
    return calls


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["-x", "-k", "kfac or sgd", "tests/fisher"], ["-x", "-k", "kfac or sgd", "tests/fisher"]),
        (["--fast", "-q"], ["--fast", "-q"]),
    ],
)
def test_options_reach_pytest(capsys, pytest_calls, argv, expected):
    assert natgrad(capsys, "test", *argv)[0] == 0
    assert pytest_calls == [expected]


def test_without_options_most_tests_run_at_once_and_those_in_browsers_after_them(capsys, pytest_calls):
    assert natgrad(capsys, "test")[0] == 0
    assert pytest_calls == [[*suite.TOGETHER], [*suite.IN_BROWSERS, *suite.browser_tests(ROOT)]]
    one, other = (turn[turn.index("-m") + 1] for turn in pytest_calls)
    for has_mark in (True, False):
        assert eval(one, {}, {"browser": has_mark}) != eval(other, {}, {"browser": has_mark})  # every test in one of them


@pytest.mark.parametrize(
    "answers, code", [((0, 1, 0), 0), ((0, 1, 1), 1), ((0, 1, 5), 5), ((1, 1, 0), 1), ((0, 2), 2), ((1, 0), 1)]
)
def test_what_failed_in_a_browser_is_run_once_more_and_only_that(capsys, pytest_calls, monkeypatch, answers, code):
    codes = iter(answers)
    note = pytest_calls.append
    monkeypatch.setattr(suite.subprocess, "call", lambda command, cwd, env=None: note(command[3:]) or next(codes))
    exit_code, out, _ = natgrad(capsys, "test")
    assert exit_code == code and next(codes, None) is None
    if len(answers) == 3:
        assert pytest_calls[2] == [*suite.ONCE_MORE, *suite.browser_tests(ROOT)] and "RUN ONCE MORE" in out


@pytest.mark.parametrize("option", ["--no-browser-tests", "--fast"])
def test_without_browser_tests_there_is_one_turn(capsys, pytest_calls, option):
    assert natgrad(capsys, "test", option)[0] == 0
    assert pytest_calls == [[option, *suite.TOGETHER]]


def test_every_file_with_browser_tests_is_found(tmp_path):
    files = {
        "browser/test_page.py": "", "browser/conftest.py": "", "test_plain.py": "browser = 1", "help.py": "mark.browser",
        "room/test_some.py": "@pytest.mark.slow\n@pytest.mark.browser", "room/test_all.py": "pytestmark = pytest.mark.browser",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    found = suite.browser_tests(tmp_path)
    assert found == ["tests/browser/test_page.py", "tests/room/test_all.py", "tests/room/test_some.py"]
    assert "tests/comparison/test_report.py" in suite.browser_tests(ROOT)


def test_left_out_tests_are_mentioned(capsys, pytest_calls):
    assert "without the browser tests" in natgrad(capsys, "test", "--no-browser-tests")[1]
    assert "without the slow tests and the browser tests" in natgrad(capsys, "test", "--fast")[1]
    assert natgrad(capsys, "test")[1] == ""


@pytest.mark.parametrize("ci", [True, False])
def test_without_a_browser_ci_fails_and_a_laptop_is_told(capsys, pytest_calls, monkeypatch, ci):
    monkeypatch.setattr(suite, "find_chromium", lambda: None)
    monkeypatch.setattr(suite, "install_chromium", lambda: False)
    monkeypatch.setenv("CI", "true" if ci else "")
    code, out, err = natgrad(capsys, "test")
    if ci:
        assert code == 1 and pytest_calls == [] and "no browser" in err and "apt-get install chromium" in err
    else:
        assert code == 0 and all("--no-browser-tests" in call for call in pytest_calls) and "BROWSER TESTS ARE LEFT OUT" in out


def test_the_exit_code_of_pytest_is_handed_on(capsys, pytest_calls, monkeypatch):
    codes = iter([1, 0, 0, 2, 0, 5, 5, 0])
    monkeypatch.setattr(suite.subprocess, "call", lambda command, cwd, env=None: next(codes))
    found = [natgrad(capsys, "test")[0] for _ in range(4)]
    assert found == [1, 2, 5, 5]  # both turns are run whatever the first one says; a turn without tests is a failure


def test_chromium_is_installed_only_by_root_with_apt(monkeypatch):
    monkeypatch.setattr(suite.shutil, "which", lambda name: None)
    assert not suite.install_chromium()
    commands = []
    monkeypatch.setattr(suite.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(suite.os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(suite.subprocess, "run", lambda c, **_: commands.append(c) or subprocess.CompletedProcess(c, 0, "", ""))
    assert not suite.install_chromium() and commands == []
    monkeypatch.setattr(suite.os, "geteuid", lambda: 0, raising=False)
    assert suite.install_chromium() and any("chromium" in command for command in commands)


def test_browser_path_wins(monkeypatch, tmp_path):
    browser = tmp_path / "my-chrome"
    browser.touch()
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    assert suite.find_chromium() == str(browser)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    assert suite.find_chromium() is None


def test_tests_need_a_checkout(capsys, monkeypatch):
    monkeypatch.setattr(commands, "checkout", lambda: None)
    code, _, err = natgrad(capsys, "test")
    assert code == 2 and "source folder" in err


# ---- benchmarks


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dense", "step", "convolution"])
def test_bench_prints_ratios_and_writes_json(capsys, tmp_path, what):
    out = tmp_path / "bench.json"
    code, shown, _ = natgrad(capsys, "bench", what, "--sizes", "4,3,2", "--examples", 6, "--rounds", 2, "--out", out)
    table = json.loads(out.read_text())
    assert code == 0 and table["rows"][0]["ratio"] == 1.0 and table["threads"] == 1
    timed = [row for row in table["rows"] if row["rounds"]]  # other libraries may not be here
    assert all(row["seconds"] > 0 and row["rounds"] == 2 for row in timed) and len(timed) >= 2
    assert all(row["case"].split()[0] in shown for row in table["rows"])


def test_bench_suggests_the_nearest_name(capsys):
    code, _, err = natgrad(capsys, "bench", "dens")
    assert code == 2 and "Did you mean 'dense'?" in err
