"""Configs, training and runs: plain values in, records out, and nothing lost by a kill at any moment."""

import functools
import importlib
import json
import os
from dataclasses import replace
from types import GeneratorType

import pytest
import torch

from natgrad_lab.experiments import ExperimentConfig, RunFolder, StepRecord, prepare, run
from natgrad_lab.experiments.storage import FORMAT
from natgrad_lab.optimizers import METHODS

methods = pytest.mark.parametrize("method", METHODS)
SMALL = ExperimentConfig(
    sizes=(64, 5, 10), num_examples=40, batch_size=7, steps=9, method="kfac", lr=0.05, damping=0.1, dtype="float64",
    device="cpu",
)  # fmt: skip
SHORT = replace(SMALL, steps=2)  # where any finished run will do


def numbers(records):
    """What has to be the same bit for bit: everything but times. repr tells nan and every last digit."""
    return [repr(replace(record, seconds=0.0, phases={})) for record in records]


@functools.cache
def uninterrupted(method):
    """Numbers and weights of SMALL by this method, run from beginning to end once for all tests that compare with it."""
    config = replace(SMALL, method=method)
    training = prepare(config)
    return numbers(run(config, training)), weights(training)


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


# ---- configs


CONFIGS = [
    ExperimentConfig(),
    SMALL,
    ExperimentConfig(
        sizes=[64, 10], activation="relu", bias=False, likelihood="gaussian", variance=0.5, method="sgd", lr=1e-300, seed=7,
        options={"momentum": 0.9}, steps=0,
    ),
    ExperimentConfig(sizes=(), dataset="gaussian_blobs", options={"ema_decay": 0.1, "fisher_type": "exact"}),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=range(4))
def test_a_config_is_the_same_as_json(config):
    assert ExperimentConfig.from_json(config.to_json()) == config
    assert ExperimentConfig.from_json(config.to_json()).to_json() == config.to_json()


def test_a_config_is_frozen_and_does_not_share_what_it_was_given():
    options, sizes = {"ema_decay": 0.5}, [64, 10]
    config = ExperimentConfig(sizes=sizes, options=options)
    options["ema_decay"], sizes[0] = 0.9, 3
    assert config.options == {"ema_decay": 0.5} and config.sizes == (64, 10)
    with pytest.raises(AttributeError):
        config.lr = 1.0


@pytest.mark.parametrize("choices, words", [
    ({"likelihood": "gausian"}, "no likelihood 'gausian'. Did you mean 'gaussian'"),
    ({"dtype": "float16"}, "no dtype 'float16'"),
    ({"steps": -1}, "steps must be an integer >= 0; got -1"),
    ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
    ({"num_examples": 0}, "num_examples must be an integer >= 1; got 0"),
])  # fmt: skip
def test_bad_values_of_a_config(choices, words):
    with pytest.raises(ValueError, match=words):
        ExperimentConfig(**choices)


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="no field of ExperimentConfig 'learning_rate'.*There are: sizes"):
        ExperimentConfig.from_json('{"learning_rate": 1.0}')


# ---- prepare


@pytest.mark.parametrize("choices, words", [
    ({"dataset": "digitz"}, "no data set 'digitz'. Did you mean 'digits'"),
    ({"method": "kfca"}, "no method 'kfca'. Did you mean 'kfac'"),
    ({"activation": "rellu"}, "no activation 'rellu'. Did you mean 'relu'"),
    ({"sizes": (63, 10)}, r"sizes \(63, 10\) do not fit digits: it has 64 inputs and 10 outputs"),
    ({"sizes": (64, 5)}, r"sizes \(64, 5\) do not fit digits"),
    ({"sizes": (64, 0, 10)}, "sizes must be two or more positive integers"),
    ({"num_examples": 5000}, "num_examples = 5000, but digits has only 1797"),
    ({"batch_size": 41}, "batch_size = 41 is more than the 40 examples"),
    ({"device": "cudo"}, "no device 'cudo' here.*Use 'auto' or 'cpu'"),
    ({"device": "meta"}, "no device 'meta' here"),
    ({"options": {"ema_decy": 0.5}}, "'kfac' does not take these options: {'ema_decy': 0.5}"),
    ({"options": {"ema_decay": 2.0}}, r"ema_decay must be in \[0, 1\); got 2.0"),
    ({"lr": -1.0}, "lr must be a finite number >= 0; got -1.0"),
    ({"damping": -1.0}, "damping must be a finite number >= 0; got -1.0"),
    ({"dataset": "linear_teacher", "sizes": (), "likelihood": "categorical"},
     "linear_teacher has real-valued targets; use likelihood='gaussian'"),
    ({"likelihood": "gaussian", "variance": 0.0}, "variance that is a positive number; got 0.0"),
])  # fmt: skip
def test_prepare_refuses(choices, words):
    with pytest.raises(ValueError, match=words):
        prepare(replace(SMALL, **choices))


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@methods
def test_every_method_trains_under_every_likelihood(method, likelihood):
    config = replace(SMALL, method=method, likelihood=likelihood, lr=0.01, steps=5, batch_size=None)
    records = list(run(config))
    assert len(records) == 5 and records[-1].loss < records[0].loss and all(r.status == "ok" for r in records)


def test_the_same_config_gives_the_same_numbers_and_another_seed_others():
    first, again, other = (list(run(replace(SMALL, seed=seed))) for seed in (0, 0, 1))
    assert numbers(first) == numbers(again) != numbers(other)


def test_sizes_can_come_from_the_data():
    model = prepare(ExperimentConfig(sizes=(), dataset="gaussian_blobs", device="cpu")).model
    assert [(m.in_features, m.out_features) for m in model if hasattr(m, "weight")] == [(2, 32), (32, 32), (32, 3)]


def test_batches_are_a_function_of_seed_and_step_and_cut_each_epoch_into_a_permutation():
    training, other = prepare(SMALL), prepare(replace(SMALL, seed=1))
    torch.manual_seed(5)
    ahead = [training.batch(step)[0] for step in (7, 3, 0)]
    assert all(torch.equal(x, prepare(SMALL).batch(step)[0]) for x, step in zip(ahead, (7, 3, 0), strict=True))
    assert not torch.equal(training.batch(0)[0], other.batch(0)[0])
    epochs = [torch.cat([training.batch(5 * epoch + piece)[0] for piece in range(5)]) for epoch in (0, 1)]
    for epoch in epochs:  # 40 examples in 5 batches of 7: each at most once
        assert len(epoch) == 35 and len(epoch.unique(dim=0)) == 35
    assert not torch.equal(*epochs)
    inputs, targets = training.batch(2)
    for x, y in zip(inputs, targets, strict=True):
        where = (training.inputs == x).all(dim=1).nonzero()[0]
        assert training.targets[where] == y


# ---- runs


def test_a_run_is_a_generator_that_whoever_iterates_it_drives():
    steps = run(SMALL)
    assert isinstance(steps, GeneratorType)
    first = next(steps)
    assert isinstance(first, StepRecord) and first.step == 1
    assert [record.step for record in steps] == list(range(2, 10))


def test_nothing_is_computed_before_the_first_next(monkeypatch):
    training = prepare(SMALL)
    before = weights(training).clone()
    steps = run(SMALL, training)
    assert torch.equal(weights(training), before) and training.step == 0
    next(steps)
    assert not torch.equal(weights(training), before) and training.step == 1


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(run(SMALL))
    assert os.listdir(tmp_path) == []


def test_a_folder_holds_config_versions_records_and_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    records = list(run(SMALL, folder=folder.path, checkpoint_every=4))
    assert sorted(os.listdir(folder.path)) == [".lock", "about.json", "checkpoint.pt", "config.json", "records.jsonl"]
    assert ExperimentConfig.from_json(folder.config_path.read_text()) == SMALL
    assert [repr(r) for r in folder.records()] == [repr(r) for r in records]
    about = json.loads((folder.path / "about.json").read_text())
    assert about["torch"] == torch.__version__ and {"natgrad_lab", "python", "device", "threads"} <= set(about)
    assert torch.load(folder.checkpoint_path, weights_only=True)["step"] == 9


@methods
@pytest.mark.parametrize("stop, every", [(1, 50), (5, 3)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, stop, every, tmp_path):
    config = replace(SMALL, method=method)
    steps = run(config, folder=tmp_path, checkpoint_every=every)
    for _ in range(stop):
        next(steps)
    steps.close()
    again = prepare(config)
    rest = list(run(config, again, folder=tmp_path, resume=True))
    assert [r.step for r in rest] == list(range(stop + 1, 10))
    expected, expected_weights = uninterrupted(method)
    assert numbers(RunFolder(tmp_path).records()) == expected
    assert torch.equal(weights(again), expected_weights)


@methods
def test_a_run_interrupted_inside_a_step_resumes_bit_for_bit(method, tmp_path, monkeypatch):
    """Ctrl-C falls into a step, after targets were sampled or parameters moved, far more often than between two."""
    config = replace(SMALL, method=method)
    training = prepare(config)
    steps = run(config, training, folder=tmp_path, checkpoint_every=2)
    for _ in range(5):
        next(steps)
    step = training.optimizer.step

    def interrupted(*batch):
        step(*batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    list(run(config, folder=tmp_path, resume=True))
    assert numbers(RunFolder(tmp_path).records()) == uninterrupted(method)[0]


def test_checkpoints_are_written_while_it_runs_and_when_it_is_closed(tmp_path):
    steps = run(SMALL, folder=tmp_path, checkpoint_every=2)
    saved = []
    for _ in range(5):
        next(steps)
        path = RunFolder(tmp_path).checkpoint_path
        saved.append(torch.load(path, weights_only=True)["step"] if path.exists() else 0)
    steps.close()
    assert saved == [0, 2, 2, 4, 4] and torch.load(path, weights_only=True)["step"] == 5


def test_more_steps_continue_a_finished_run(tmp_path):
    list(run(SMALL, folder=tmp_path))
    longer = replace(SMALL, steps=12)
    assert [r.step for r in run(longer, folder=tmp_path, resume=True)] == [10, 11, 12]
    assert numbers(RunFolder(tmp_path).records()) == numbers(run(longer))
    assert list(run(longer, folder=tmp_path, resume=True)) == []


def test_resume_in_an_empty_folder_begins(tmp_path):
    assert numbers(run(SMALL, folder=tmp_path / "new", resume=True)) == numbers(run(SMALL))


def test_a_record_cut_short_by_a_kill_is_left_out_and_made_again(tmp_path):
    whole = list(run(SMALL))
    steps = run(SMALL, folder=tmp_path, checkpoint_every=2)
    for _ in range(5):
        next(steps)
    steps.close()
    folder = RunFolder(tmp_path)
    text = folder.records_path.read_text()
    folder.records_path.write_text(text + text.splitlines()[-1][:37])
    assert len(folder.records()) == 5
    list(run(SMALL, folder=tmp_path, resume=True))
    assert numbers(folder.records()) == numbers(whole)


def test_a_changed_config_is_no_resume(tmp_path):
    list(run(SMALL, folder=tmp_path))
    with pytest.raises(ValueError, match="holds another run: lr was 0.05, is 0.2; seed was 0, is 3. Resume with its config"):
        run(replace(SMALL, lr=0.2, seed=3), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds a run already. Continue it with resume=True"):
        run(SMALL, folder=tmp_path)
    assert len(RunFolder(tmp_path).records()) == 9


class Code:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def broken_checkpoints(path):
    other = prepare(replace(SMALL, sizes=(64, 6, 10)))
    state = {"format": FORMAT, "config": SHORT.to_json(), "step": 2, "model": other.model.state_dict(), "optimizer": {}}
    content = path.read_bytes()
    return {
        "cut short": lambda: path.write_bytes(content[: len(content) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "no checkpoint at all": lambda: path.write_bytes(b"a letter to the editor\n" * 9),
        "another package's": lambda: torch.save({"state_dict": {}}, path),
        "a list": lambda: torch.save([1, 2], path),
        "of another network": lambda: torch.save(state, path),
        "with code inside": lambda: torch.save({"format": Code(path.with_name("executed"))}, path),
        "a flipped byte": lambda: path.write_bytes(content[:700] + bytes([content[700] ^ 255]) + content[701:]),
    }  # fmt: skip


@pytest.mark.parametrize("damage", [
    "cut short", "empty", "no checkpoint at all", "another package's", "a list", "of another network", "with code inside",
    "a flipped byte",
])  # fmt: skip
def test_a_broken_checkpoint_is_refused_by_name(damage, tmp_path):
    list(run(SHORT, folder=tmp_path))
    folder = RunFolder(tmp_path)
    broken_checkpoints(folder.checkpoint_path)[damage]()
    with pytest.raises(
        ValueError, match=r"the checkpoint '.*checkpoint.pt' cannot be read \(.+\). It is cut short or from else"
    ):
        run(SHORT, folder=tmp_path, resume=True)
    assert len(folder.records()) == 2  # refused, and nothing lost
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sizes": [64, 10], "colour": "red"}'])
def test_a_broken_config_file_is_refused_by_name(text, tmp_path):
    list(run(SHORT, folder=tmp_path))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        run(SHORT, folder=tmp_path, resume=True)


def test_an_unwritable_folder_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    module = importlib.import_module("natgrad_lab.experiments.run")  # hidden by the function of the same name
    monkeypatch.setattr(module, "prepare", lambda config: pytest.fail("it prepared first"))
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/natgrad"):
        with pytest.raises(ValueError, match="results folder '.*' cannot be written .*Choose another"):
            run(SMALL, folder=path)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    """Root may write everywhere, so the refusal of the file system is played."""

    def denied(**place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", denied)
    with pytest.raises(ValueError, match=r"results folder '.*' cannot be written \(Permission denied\)"):
        run(SMALL, folder=tmp_path)


# ---- ends


@methods
@pytest.mark.parametrize("dtype, lr", [("float64", 1e200), ("float32", 1e300)])
@pytest.mark.filterwarnings("ignore::natgrad_lab.errors.NumericalWarning")
def test_a_diverging_run_ends_with_a_record_and_keeps_what_it_had(method, dtype, lr, tmp_path):
    config = replace(SMALL, method=method, dtype=dtype, likelihood="gaussian", activation="relu", steps=300, lr=lr)
    training = prepare(config)
    records = list(run(config, training, folder=tmp_path))
    assert [r.status for r in records[:-1]] == ["ok"] * (len(records) - 1)
    assert records[-1].status in ("diverged", "failed") and records[-1].message and len(records) < 300
    assert [r.step for r in records] == list(range(1, len(records) + 1))
    folder = RunFolder(tmp_path)
    assert numbers(folder.records()) == numbers(records)
    if len(records) > 1:
        saved = torch.load(folder.checkpoint_path, weights_only=True)
        assert saved["step"] == len(records) - 1
        assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert torch.isfinite(weights(training)).all()


def test_a_system_that_can_no_longer_be_inverted_ends_the_run_by_name(tmp_path):
    training = prepare(replace(SMALL, method="exact_ngd"))
    steps = run(SMALL, training, folder=tmp_path)
    next(steps)
    training.optimizer.param_groups[0]["damping"] = 0.0
    record = next(steps)
    assert record.status == "failed" and record.step == 2 and "singular" in record.message and "damping" in record.message
    assert list(steps) == [] and len(RunFolder(tmp_path).records()) == 2


def test_an_error_at_the_first_step_is_raised():
    training = prepare(SMALL)
    with torch.no_grad():
        training.model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="0.weight"):
        next(run(SMALL, training))


@pytest.mark.parametrize("method", ["kfac", "exact_ngd"])
def test_a_slider_moved_while_running_counts_from_the_next_step(method):
    config = replace(SMALL, method=method)
    training = prepare(config)
    steps = run(config, training)
    next(steps)
    training.optimizer.param_groups[0].update(lr=0.001, damping=0.7)
    record = next(steps)
    assert (record.lr, record.damping) == (0.001, 0.7)
