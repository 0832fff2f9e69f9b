"""The training loop: closed forms, exact resumption, and two processes that equal one."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from full_disk import full_disk
from stepaudio.errors import BackendError, InputError
from stepaudio.train.loop import Epochs, Loop, Loss, Schedule, checkpoints
from training import Line, Points, config

FIGURES = ("step", "rate", "loss", "gradient", "largest", "held_out")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def finished(task, loop_config):
    loop = Loop(task, loop_config)
    lines = list(loop.run())
    return loop, [{name: line[name] for name in FIGURES if name in line} for line in lines]


def written(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in FIGURES if name in line} for line in lines]


def weights(loop):
    return torch.cat([p.detach().flatten() for p in loop.task.model.parameters()])


def test_the_gradient_is_the_mean_over_all_trained_points(tmp_path):
    task = Line(steady=True, sgd=True)
    batches = [task.load((0, k)) for k in range(4)]
    x, y = (torch.cat([getattr(b, name) for b in batches]) for name in ("x_N1", "y_N1"))
    (task.model(x) - y).square().mean().backward()
    expected = [p.detach() - 0.1 * p.grad for p in task.model.parameters()]
    schedule = Schedule(warmup=0, cooldown=0)
    for cut in (4, 1):
        cursor = Epochs(lambda epoch, cut=cut: [[0, 1, 2, 3][k : k + 4 // cut] for k in range(0, 4, 4 // cut)])
        task = Line(steady=True, sgd=True)
        task.cursor = cursor
        task.load = lambda ks: Points(*(torch.cat([getattr(batches[k], n) for k in ks]) for n in ("x_N1", "y_N1")))
        loop = Loop(task, config(tmp_path / str(cut), steps=1, micro_batches=cut, clip=1e9, ema=0.0))
        object.__setattr__(loop.config, "schedule", schedule)
        list(loop.run())
        for parameter, wanted in zip(task.model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter, wanted)


def test_clipping_bounds_the_step(tmp_path):
    task = Line(steady=True, sgd=True)
    before = weights(Loop(task, config(tmp_path / "a")))
    loop, lines = finished(Line(steady=True, sgd=True), config(tmp_path / "b", steps=1, clip=0.5))
    assert lines[0]["gradient"] > 0.5
    # The first of two warm-up steps: half of the rate of 0.1.
    assert math.isclose(float((weights(loop) - before).norm()), 0.5 * 0.1 * 0.5, rel_tol=1e-4)


def test_schedules():
    linear = Schedule(warmup=4, cooldown=0.5, floor=0.2)
    assert [linear.factor(step, 20) for step in (0, 1, 3, 4, 9, 10)] == [0.25, 0.5, 1, 1, 1, 1]
    assert linear.factor(15, 20) == pytest.approx(0.2 + 0.8 * 0.5)
    cosine = Schedule(warmup=0, cooldown=1, floor=0.1, shape="cosine")
    assert cosine.factor(0, 8) == 1
    assert cosine.factor(4, 8) == pytest.approx(0.55)
    assert cosine.factor(7, 8) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * 7 / 8)))


def test_the_average_follows_the_weights(tmp_path):
    task = Line(steady=True)
    trail = [[p.detach().clone() for p in task.model.parameters()]]
    original = task.optimizers

    def watched():
        (optimizer,) = original()
        optimizer.register_step_post_hook(
            lambda *_: trail.append([p.detach().clone() for p in task.model.parameters()])
        )
        return [optimizer]

    task.optimizers = watched
    loop, _ = finished(task, config(tmp_path))
    expected = trail[0]
    for step, now in enumerate(trail[1:]):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
    learned = weights(loop)
    with loop.averaged() as model:
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter, wanted)
    assert torch.equal(weights(loop), learned)


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 11])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path, stop):
    changes = {"log_every": 1, "save_every": 2, "evaluate_every": 3}
    whole, _ = finished(Line(), config(tmp_path / "whole", **changes))
    for line in Loop(Line(), config(tmp_path / "cut", **changes)).run():
        if line["step"] == stop:  # later lines of the log are lost with what the process had in memory
            break
    resumed, _ = finished(Line(), config(tmp_path / "cut", **changes))
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(a, b) for a, b in zip(whole.averages, resumed.averages, strict=True))
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_a_checkpoint_between_two_lines_changes_no_line(tmp_path):
    finished(Line(), config(tmp_path / "whole", log_every=5, save_every=100))
    loop = Loop(Line(), config(tmp_path / "cut", log_every=5, save_every=3))
    task_loss = loop.task.loss

    def dies(batch, turn):
        if loop.step == 7:
            raise KeyboardInterrupt
        return task_loss(batch, turn)

    loop.task.loss = dies
    with pytest.raises(KeyboardInterrupt):
        list(loop.run())
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["checkpoint-00000003.pt", "checkpoint-00000006.pt"]
    finished(Line(), config(tmp_path / "cut", log_every=5, save_every=3))
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_lines_after_the_last_checkpoint_are_taken_back(tmp_path):
    finished(Line(), config(tmp_path, steps=4))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    finished(Line(), config(tmp_path, steps=8))
    assert [line["step"] for line in written(tmp_path)] == [3, 4, 6, 8]


def test_a_killed_process_loses_nothing_but_time(tmp_path):
    whole, _ = finished(Line(steady=True), config(tmp_path / "whole"))
    script = Path(__file__).parent / "training.py"
    killed = subprocess.run([sys.executable, str(script), str(tmp_path / "cut"), "12", "9"], timeout=600, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert checkpoints(tmp_path / "cut")[-1].name == "checkpoint-00000008.pt"
    resumed, _ = finished(Line(steady=True), config(tmp_path / "cut"))
    assert torch.equal(weights(whole), weights(resumed))
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_goes_on(tmp_path):
    whole = weights(finished(Line(), config(tmp_path))[0])
    last = checkpoints(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{last.name} is damaged"):
        Loop(Line(), config(tmp_path))
    last.unlink()
    assert torch.equal(weights(finished(Line(), config(tmp_path))[0]), whole)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(tmp_path):
    list(Loop(Line(), config(tmp_path, steps=4, save_every=2)).run())
    room = (tmp_path / "checkpoint-00000004.pt").stat().st_size - 500  # enough for the log
    with pytest.raises(BackendError, match="make room"), full_disk(room):
        list(Loop(Line(), config(tmp_path, steps=6, save_every=2, log_every=100)).run())
    assert [path.name for path in sorted(tmp_path.glob("checkpoint*"))] == [
        "checkpoint-00000002.pt",
        "checkpoint-00000004.pt",
    ]
    assert Loop(Line(), config(tmp_path, steps=6)).step == 4


def test_another_task_is_not_continued(tmp_path):
    finished(Line(), config(tmp_path, steps=2))
    with pytest.raises(InputError, match="another model"):
        Loop(Line(items=4), config(tmp_path))


def test_batches_are_prepared_ahead_and_each_item_comes_once(tmp_path):
    task = Line()
    finished(task, config(tmp_path, steps=5))
    assert task.loaded == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    task = Line()
    task.loss = lambda batch, turn: Loss(task.model(batch.x_N1).sum() * math.nan, 1)
    with pytest.raises(BackendError, match="step 1"):
        list(Loop(task, config(tmp_path)).run())


def test_optimisers_take_turns_and_leave_each_other_alone(tmp_path):
    class Two(Line):
        def optimizers(self):
            first, _, last = self.model
            return [torch.optim.SGD(first.parameters(), lr=0.1), torch.optim.SGD(last.parameters(), lr=0.1)]

        def loss(self, batch, turn):
            # Both losses reach all parameters.
            seen.append((turn, weights(loop).clone()))
            loss = super().loss(batch, turn)
            return Loss(loss.total * (1 if turn == 0 else 0), loss.count)

    seen = []
    loop = Loop(Two(steady=True), config(tmp_path, steps=2, micro_batches=1, ema=0.0))
    lines = list(loop.run())
    assert [turn for turn, _ in seen] == [0, 1, 0, 1]
    first, last = slice(0, 8), slice(8, 13)
    assert not torch.equal(seen[0][1][first], seen[1][1][first])
    assert torch.equal(seen[0][1][last], weights(loop)[last])  # whose own loss is 0
    assert torch.equal(seen[1][1], seen[2][1])
    assert lines[-1]["loss"] > 0
    assert lines[-1]["gradient_1"] == 0


def test_two_processes_learn_what_one_does_and_hand_over(tmp_path):
    """One process learns four steps, two under torchrun (gloo, FSDP2) the next four, one the last four."""
    finished(Line(steady=True), config(tmp_path / "shared", steps=4))
    script = Path(__file__).parent / "training.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    subprocess.run([*command, str(tmp_path / "shared"), "8"], check=True, timeout=600, capture_output=True)
    shared = Loop(Line(steady=True), config(tmp_path / "shared"))
    assert shared.step == 8
    list(shared.run())
    for steps in (4, 8, 12):  # the schedule knows how many steps are to come
        alone, _ = finished(Line(steady=True), config(tmp_path / "alone", steps=steps))
    torch.testing.assert_close(weights(shared), weights(alone))
    torch.testing.assert_close(shared.averages, alone.averages)
    for mine, theirs in zip(written(tmp_path / "shared"), written(tmp_path / "alone"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
