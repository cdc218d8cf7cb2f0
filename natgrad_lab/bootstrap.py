"""Start where nothing is installed yet: choose an interpreter that has what is needed, and run the command line in it.

Standard library only, and no syntax newer than Python 3.6, so that an old Python answers with a sentence. An
interpreter that already satisfies pyproject.toml is used as it is; otherwise `.venv` beside pyproject.toml is.
"""

import os
import shutil
import subprocess
import sys

from natgrad_lab import environment

MINIMUM = (3, 11)
USAGE = """usage: python3 -m natgrad_lab COMMAND [OPTIONS]

  lab      open JupyterLab on notebooks/ (other options go to `jupyter lab`)
  test     run the tests (other options go to pytest)
  doctor   say what works on this machine

The first command installs what is missing into .venv; after that, --help lists everything."""


def main(argv=None):
    """Run `natgrad ARGV` in an environment that has everything it requires; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if sys.version_info < MINIMUM:
            return go_on_with(newer_python(), argv)
        root = environment.checkout()
        if root is None or interpreter_suffices(root, extras_for(argv)):
            return run_here(argv)
        if not environment.is_up_to_date(root, extras_for(argv)):
            if not argv or argv[0] in ("-h", "--help"):
                print(USAGE)
                return 0
            environment.build(root, extras_for(argv))
        return go_on_with(environment.python_of(root / ".venv"), argv)
    except environment.SetupError as error:
        print(f"natgrad_lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nnatgrad_lab: interrupted. Run the same command again to go on.", file=sys.stderr)
        return 130


def extras_for(argv):
    """The optional requirements a command needs on top of the ordinary ones."""
    return ["test"] if argv[:1] == ["test"] else []


def interpreter_suffices(root, extras):
    """Whether this very interpreter can be used: it is an up-to-date `.venv`, or has every requirement of its own."""
    if environment.is_running_in(root / ".venv"):
        return environment.is_up_to_date(root, extras)
    return not environment.unmet(environment.requirements(root, extras))


def run_here(argv):
    """Hand over to the command line in this interpreter."""
    from natgrad_lab.cli import main as command_line

    return command_line(argv)


def go_on_with(python, argv):
    """Run the same command in another interpreter: it takes this process's place, or (Windows) is waited for."""
    command = [str(python), "-m", "natgrad_lab", *argv]
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the other process got it too and decides what it means
            continue


def newer_python():
    """The path of a Python that is new enough, found on PATH; SetupError with what to install if there is none."""
    this = ".".join(map(str, sys.version_info[:3]))
    for name in ("python3.13", "python3.12", "python3.11", "python3.14", "python3", "python"):
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if answer.returncode == 0 and tuple(map(int, answer.stdout.split())) >= MINIMUM:
            print(f"This is Python {this}; going on with {path}.")
            return path
    raise environment.SetupError(
        f"needs Python >= 3.11; this is {this} ({sys.executable}), and no newer one is on PATH. Install one "
        "(python.org, `apt install python3 python3-venv`, `brew install python`, or conda with environment.yml) and "
        "run the command with it, for example: make lab PYTHON=python3.12"
    )
