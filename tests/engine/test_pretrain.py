"""Pretraining: stopped, killed and resumed bit for bit, on one process or two."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from medssl import api, config
from medssl.core.errors import (
    InputError,
    InterruptedRunError,
    OutputError,
    QualityError,
    UsageError,
)
from medssl.core.random import stream
from medssl.data.store import Made, Store, write_store
from medssl.engine import estimate
from medssl.engine.build import encoder
from medssl.engine.device import machine
from medssl.engine.fit import Fitting
from medssl.engine.pretrain import _Lesson
from medssl.engine.wanted import Wanted
from medssl.io import journal, weights
from medssl.physics.phantom import head

NET = {"depths": [1, 1], "width": 4, "bottleneck": False, "stem": "small"}
SMALL = {
    "method.net": NET,
    "method.decoder_width": 8,
    "crops.size": [16, 16],
    "train.batch": 4,
    "train.save_every": 2,
    "train.warmup": 2,
}
WORDS = {"recipe": "pretrain/spark", "threads": 1, "device": "cpu", "settings": SMALL}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Phantoms of six patients, one of them for validation."""

    def made(k):
        chance = np.random.default_rng(k)
        image = 1000 * head((32, 28, 8)).numpy() + 20 * chance.standard_normal((32, 28, 8))
        return Made(
            image=image.astype(np.int16)[None],
            key=f"volume{k}",
            modality="MR",
            patient=f"patient{k}",
            split="val" if k == 5 else "train",
        )

    return write_store(tmp_path_factory.mktemp("stores") / "store", map(made, range(6))).path


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A run of eight steps that nothing interrupted."""
    return api.pretrain(store, tmp_path_factory.mktemp("runs") / "run", steps=8, **WORDS)


def stopping_at(step):
    def tell(stage, done, total):
        if stage == "learn" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return tell


def same(a, b):
    """Whether two runs left the same weights, losses and last checkpoint."""
    names = ("weights.safetensors", "metrics.jsonl", "checkpoint-8/checkpoint.safetensors")
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_a_run_holds_what_it_should(whole):
    held = {p.name for p in whole.run.iterdir()}
    assert held >= {"run.json", "weights.safetensors", "metrics.jsonl", "loss.png"}
    record = json.loads((whole.run / "run.json").read_text())
    assert record["complete"]
    assert record["recipe"]["train"]["steps"] == 8
    assert record["seen"]["patients"] == 5
    again = config.load("pretrain", str(whole.run / "recipe.yaml"))
    assert again.values["net"] == record["recipe"]["method"]["net"]
    assert again.train.steps == 8
    lines = journal.read(whole.run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert "held_out" in lines[-1]
    text = (whole.run / "run.json").read_text() + (whole.run / "metrics.jsonl").read_text()
    assert "patient" + "0" not in text
    assert str(whole.run.parent) not in text


def test_a_stopped_run_goes_on_bit_for_bit(store, whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match="stopped after step 3 of 8, which is saved"):
        api.pretrain(store, run, steps=8, progress=stopping_at(3), **WORDS)
    done = api.pretrain(store, run, steps=8, resume=True, **WORDS)
    assert done.record["complete"]
    assert same(run, whole.run)


def test_the_run_knows_its_words(store, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        api.pretrain(store, run, steps=8, progress=stopping_at(3), **WORDS)
    with pytest.raises(UsageError, match=r"begun with another train\.steps"):
        api.pretrain(store, run, steps=9, resume=True, **WORDS)
    other = write_store(tmp_path / "other", [Made(image=np.ones((1, 20, 20, 9)), key="a")])
    with pytest.raises(UsageError, match="another store"):
        api.pretrain(other.path, run, steps=8, resume=True, **WORDS)
    assert api.pretrain(store, run, resume=True, threads=1, device="cpu").record["complete"]


KILLED = textwrap.dedent(
    """
    import os, random, signal, sys, time, json
    from medssl import api
    store, out, words, kills, seed = *sys.argv[1:3], *map(json.loads, sys.argv[3:6])

    def child(run, **more):
        pid = os.fork()
        if pid == 0:
            try:
                api.pretrain(store, run, steps=8, **words, **more)
            finally:
                os._exit(0)
        return pid

    begun = time.monotonic()
    os.waitpid(child(out + "/timed"), 0)
    seconds = time.monotonic() - begun
    chance = random.Random(seed)
    for k in range(kills):
        run = f"{out}/run{k}"
        pid = child(run)
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.waitpid(child(run, resume=True), 0)
    """
)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_weights(store, whole, tmp_path, kills):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    words = [json.dumps(w) for w in (WORDS, kills, 7)]
    subprocess.run([sys.executable, script, store, tmp_path, *words], check=True, timeout=280)
    for k in range(kills):
        assert same(tmp_path / f"run{k}", whole.run), k
        assert not list((tmp_path / f"run{k}").glob(".*partial*"))


def torchrun(count, *words):
    """Run the command line in several processes."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    head += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return subprocess.run(
        [*head, "-m", "medssl.cli", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_two_processes_take_the_steps_of_one(store, tmp_path):
    """Batch norm included: the moments of masked norms are those of all ranks."""
    changes = SMALL | {"train.optimiser": "sgd", "train.lr": 0.05, "train.batch": 4}
    alone = api.pretrain(store, tmp_path / "one", steps=4, **(WORDS | {"settings": changes}))
    pairs = [f"--set={k}={json.dumps(v)}" for k, v in changes.items()]
    words = ["pretrain", "--recipe", "pretrain/spark", "--data", store, "--device", "cpu"]
    words += ["--threads", 1, "--max-steps", 4, *pairs]
    done = torchrun(2, *words, "-o", tmp_path / "two", "-q")
    assert done.returncode == 0, done.stderr
    one, two = (journal.read(r / "metrics.jsonl") for r in (alone.run, tmp_path / "two"))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    learnt = [weights.read(r / "weights.safetensors") for r in (alone.run, tmp_path / "two")]
    for key, value in learnt[0].items():
        if value.is_floating_point() and "running" not in key:
            assert torch.allclose(value, learnt[1][key], atol=2e-5), key
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    again = torchrun(2, *words, "-o", tmp_path / "two")
    assert again.returncode != 0
    assert "exists already" in again.stderr


def test_weights_can_be_shared_out_and_come_back_whole(store, tmp_path):
    """A transformer whose blocks lie on two processes learns what it learns on one, and resumes."""
    net = {"net": "vit", "patch": 8, "width": 24, "depth": 2, "heads": 2}
    changes = {"method.net": net, "method.decoder_width": 24, "method.decoder_depth": 1}
    changes |= {"method.decoder_heads": 2, "method.block": 8, "crops.size": [16, 16]}
    changes |= {"train.batch": 4, "train.warmup": 0, "train.lr": 1e-3, "train.save_every": 2}
    changes |= {"train.precision": "fp32"}
    words = {"recipe": "pretrain/mae", "threads": 1, "device": "cpu"}
    alone = api.pretrain(store, tmp_path / "one", steps=4, settings=changes, **words)
    pairs = [f"--set={k}={json.dumps(v)}" for k, v in changes.items()]
    asked = ["pretrain", "--recipe", "pretrain/mae", "--data", store, "--device", "cpu"]
    asked += ["--threads", 1, *pairs, "--set=train.shard=true", "-o", tmp_path / "two", "-q"]
    done = torchrun(2, *asked, "--max-steps", 4)
    assert done.returncode == 0, done.stderr
    one, two = (journal.read(r / "metrics.jsonl") for r in (alone.run, tmp_path / "two"))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    (tmp_path / "two" / "checkpoint-4").rename(tmp_path / "gone")
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    record |= {"phase": "learning", "complete": False}
    (tmp_path / "two" / "run.json").write_text(json.dumps(record))
    done = torchrun(2, *asked, "--max-steps", 4, "--resume")
    assert done.returncode == 0, done.stderr
    again = journal.read(tmp_path / "two" / "metrics.jsonl")
    assert [line["loss"] for line in again] == [line["loss"] for line in two]
    kept = weights.read(tmp_path / "two" / "weights.safetensors")
    for key, value in weights.read(alone.run / "weights.safetensors").items():
        assert kept[key].shape == value.shape
        assert torch.allclose(kept[key], value, atol=1e-3), key


def lesson(store, readers=1, **changes):
    """The batches of a training."""
    settings = SMALL | {"train.steps": 6} | changes
    wanted = Wanted.of("pretrain/spark", settings, estimate.asked("auto", "auto"), 3, ("pretrain",))
    method, settled = encoder(wanted.recipe)
    made = _Lesson(Store.open(store), wanted, method, settled, machine("cpu", None, 1))
    made.readers = readers
    return made


def test_the_number_of_readers_changes_no_batch(store):
    some = [list(lesson(store, readers).batches(2)) for readers in (1, 2, 4)]
    for other in some[1:]:
        for a, b in zip(some[0], other, strict=True):
            assert torch.equal(a[0].image, b[0].image)
            assert torch.equal(a[0].visible, b[0].visible)
            assert torch.equal(a[0].index, b[0].index)


def test_parts_of_a_batch_are_the_batch(store):
    (whole,) = next(lesson(store).batches(0))
    parts = next(lesson(store, **{"train.accumulate": 2}).batches(0))
    assert torch.equal(torch.cat([p.image for p in parts]), whole.image)


def test_gradients_of_parts_are_those_of_the_batch(store):
    """Where no statistic crosses the batch: the net is in its evaluation mode."""
    grown = []
    for accumulate in (1, 2):
        made = lesson(store, **{"train.accumulate": accumulate, "train.optimiser": "sgd"})
        fitting = Fitting(made.method.eval(), made.train)
        terms = fitting.advance(*next(made.batches(0)))
        grown.append((terms["total"], [p.detach().clone() for p in made.method.parameters()]))
    assert grown[0][0] == pytest.approx(grown[1][0], rel=1e-6)
    for a, b in zip(grown[0][1], grown[1][1], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_bf16_is_near(store):
    losses = []
    for precision in ("fp32", "bf16"):
        made = lesson(store, **{"train.precision": precision})
        fitting = Fitting(made.method, made.train)
        losses.append(fitting.advance(*next(made.batches(0)))["total"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_steps_with_a_wild_loss_are_left_out_and_too_many_end_the_run(store):
    made = lesson(store, **{"train.optimiser": "sgd"})
    fitting = Fitting(made.method, made.train, patience=3)
    (good,) = next(made.batches(0))
    fitting.advance(good)
    before = {k: v.clone() for k, v in made.method.state_dict().items()}
    image = torch.full_like(good.image, float("nan"))
    bad = type(good)(image=image, visible=good.visible, valid=good.valid)
    fitting.advance(bad)
    assert fitting.skipped == 1
    for key, value in made.method.state_dict().items():
        assert torch.equal(value, before[key]), key
    fitting.advance(bad)
    with pytest.raises(QualityError, match="nan at step 3"):
        fitting.advance(bad)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lamb", "lars"])
@pytest.mark.parametrize("schedule", ["cosine", "poly", "drops", "onecycle"])
def test_every_optimiser_and_schedule_goes_on_where_it_was(store, tmp_path, name, schedule):
    from medssl.engine.checkpoint import pack, unpack

    changes = {"train.optimiser": name, "train.schedule": schedule, "train.weight_decay_end": 0.2}
    changes |= {"train.ema": 0.9, "train.lr": 0.01, "train.decay_all": False}
    one, two = lesson(store, **changes), lesson(store, **changes)
    batches = list(one.batches(0))
    through = Fitting(one.method, one.train, patience=2)
    for k in range(3):
        through.advance(*batches[k])
    tensors, facts = pack(through)
    other = Fitting(two.method, two.train, patience=2)
    unpack(other, {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(facts)))
    for k in range(3, 6):
        assert through.advance(*batches[k]) == other.advance(*batches[k])
    for a, b in zip(one.method.parameters(), two.method.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"crops.size": [16]}, "crops.size is"),
        ({"crops.size": [15, 16]}, "multiples of 2"),
        ({"train.batch": 3, "train.accumulate": 2}, "train.batch is 3"),
        ({"train.warmup": -1}, "train.warmup is -1"),
        ({"crops.scale": [1.0, 0.5]}, "crops.scale is"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(
    store, tmp_path, changes, fact
):
    with pytest.raises(UsageError) as refused:
        api.pretrain(store, tmp_path / "run", steps=2, **(WORDS | {"settings": SMALL | changes}))
    assert fact in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_store_is_refused(tmp_path, store, whole):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no store"):
        api.pretrain(tmp_path / "empty", tmp_path / "run", **WORDS)
    with pytest.raises(OutputError, match="exists already"):
        api.pretrain(store, whole.run, **WORDS)
    with pytest.raises(UsageError, match="no recipe is named"):
        api.pretrain(store, tmp_path / "run")
    with pytest.raises(UsageError, match="denoise recipes cannot be trained here"):
        api.pretrain(store, tmp_path / "run", "denoise/sure")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(store, tmp_path):
    done = api.pretrain(store, tmp_path / "run", steps=2, dry_run=True, **WORDS)
    assert done.line.startswith("would learn")
    assert not (tmp_path / "run").exists()


def test_losses_come_out_for_tensorboard(store, tmp_path):
    settings = SMALL | {"train.tensorboard": True}
    run = api.pretrain(store, tmp_path / "run", steps=3, **(WORDS | {"settings": settings})).run
    events = list((run / "tensorboard").iterdir())
    assert events
    assert events[0].stat().st_size > 100


def test_weights_do_not_depend_on_the_global_generator(store, tmp_path, whole):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = api.pretrain(store, tmp_path / "run", steps=8, **WORDS)
    assert same(again.run, whole.run)


def test_recipes_of_pretraining_have_crops():
    for name in config.recipes("pretrain"):
        assert config.load("pretrain", name).crops is not None


def test_streams_differ_between_ranks_and_steps():
    names = ["loss/0/0/0", "loss/0/1/0", "loss/1/0/0"]
    assert len({int(torch.randint(1 << 60, (), generator=stream(0, n))) for n in names}) == 3
