"""Several processes: the step of one, whatever happens to any of them."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgce.checkpoint import load_checkpoint

STEPS = '''
import sys, torch, pgce
from dataclasses import replace
from pgce import processes
from pgce.agents import A2C, PPO, RLOO, Reinforce
from pgce.heads import Categorical
from pgce.networks import ActorCritic, Normalize, Value, mlp
from pgce.optimizer import Optimizer
from pgce.rollout import Rollout
from pgce.trainer import Batch, Term, Trainer, train

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
processes.join("cpu")
rank, size = processes.rank(), processes.size()
found = {}


def keep(name, model):
    found.update({f"{name} {key}": value.clone() for key, value in model.state_dict().items()})


def classify(name, **how):
    """An uneven batch: 23 rows, of which some do not count, in batches of 7."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(23, 5, generator=generator), torch.randint(3, (23,), generator=generator)
    columns = {"target": y, "sample_weight": torch.rand(23, generator=generator) + 0.1}
    torch.manual_seed(2)
    model = mlp(5, 3, hidden=(8,))
    mask = torch.rand(23, generator=generator) < 0.7
    data = Batch(x, columns, mask).counted()
    options = {"epochs": 3, "batch_size": 7, "learning_rate": 0.1, "max_grad_norm": 0.5, "device": "cpu"}
    history = pgce.fit(model, data, **options, **how)
    keep(name, model)
    found[name + " loss"] = torch.tensor(history["loss"])


classify("mean")
classify("weighted", weight="sample_weight")
divisor = lambda batch: batch["sample_weight"].sum()
classify("weighted mean", terms={"label": Term(Categorical(), weight="sample_weight", divisor=divisor)})


def act(name, agent):
    """An update of an agent on a rollout of eight environments, of which each process has its own."""
    steps, n = 12, 8
    g = torch.Generator().manual_seed(3)
    here = slice(rank * n // size, (rank + 1) * n // size)
    terminated, truncated = torch.rand(2, steps, n, generator=g) < 0.1
    valid = torch.rand(steps, n, generator=g) < torch.linspace(0.3, 1, n)
    observation, logits = torch.randn(steps + 1, n, 4, generator=g), torch.randn(steps, n, 3, generator=g)
    action, reward = torch.randint(3, (steps, n), generator=g), torch.randn(steps, n, generator=g)
    done = (terminated | truncated)[:, here]
    returns = torch.randn(steps, n, generator=g)[:, here][done]
    none = torch.zeros(0, dtype=torch.int64)
    rollout = Rollout(
        observation=observation[:, here], action=action[:, here], logits=logits[:, here], head=Categorical(),
        reward=reward[:, here], terminated=terminated[:, here], truncated=truncated[:, here],
        valid=valid[:, here], final_index=none, final_observation=torch.zeros(0, 4),
        episode_return=returns.numpy(), episode_length=None, episode_env=None,
    )
    torch.manual_seed(4)
    model = ActorCritic(mlp(4, 3), Value(mlp(4, 1), 1.0) if agent.critic else None, normalize=Normalize(4))
    optimizer = Optimizer(model.parameters(), "adam", learning_rate=0.01)
    trainer = Trainer(model, agent.terms(rollout.head), optimizer)
    for _ in range(3):
        model.normalize.update(rollout.observation[:-1][rollout.valid])
        train(trainer, [agent.batches(agent.prepare(rollout, model), torch.Generator())])
    keep(name, model)


act("PPO", PPO(num_minibatches=1, update_epochs=3, ent_coef=0.01))
act("A2C", A2C())
act("RLOO", RLOO())
act("REINFORCE", Reinforce())
act("REINFORCE, critic", Reinforce(baseline="critic"))
if rank == 0:
    torch.save(found, sys.argv[1])
'''

AGENT = """
import os, signal, sys, time
import torch
from pgce import processes, trainer
from pgce.agents import PPO
from pgce.run import main

fault, at, once = sys.argv[1], int(sys.argv[2]), sys.argv[3]
step, calls = trainer.Trainer.step, 0


def faulty(self, batch):
    global calls
    calls += 1
    if processes.rank() == 1 and calls == at and not os.path.exists(once):
        open(once, "w").close()
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(3600)
        if fault == "nan":
            columns, total = {**batch.columns, "advantage": batch["advantage"] * float("nan")}, batch.total
            batch = trainer.Batch(batch.input, columns, batch.mask)
            vars(batch)["total"] = total  # the others know theirs, and would not answer
    if fault == "slow":
        time.sleep(0.02)
    return step(self, batch)


trainer.Trainer.step = faulty
main(PPO, None, sys.argv[4:])
"""


def torchrun(tmp_path, source, *words, options=(), ranks=2):
    """A job in a process group of its own, of which nothing may be left."""
    script = tmp_path / "script.py"
    script.write_text(source)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [*launch, "--", str(script), *map(str, words)], start_new_session=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip


def ended(job, limit=120):
    """What a job said, and its exit code; it and what it left are killed if it takes too long."""
    try:
        output, errors = job.communicate(timeout=limit)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output, errors


def agent(tmp_path, folder, fault="none", at=0, *, steps=6_000, options=(), more=()):
    words = ["--run", "it", "--runs-dir", folder, "-n", steps, "--num-envs", 8, "--num-steps", 32, "--quiet",
             "--no-stop-at-threshold", "--eval-freq", 2_000, "--eval-episodes", 5, "--norm-obs",
             "--norm-reward", "--checkpoint-every", 0, *more]  # fmt: skip
    once = tmp_path / f"{folder}.happened"
    return torchrun(tmp_path, AGENT, fault, at, once, *words, options=options)


def alone(tmp_path, source, *words):
    script = tmp_path / "alone.py"
    script.write_text(source)
    subprocess.run([sys.executable, str(script), *map(str, words)], check=True, timeout=120)


def test_two_take_the_step_of_one(tmp_path):
    alone(tmp_path, STEPS, tmp_path / "one.pt")
    code, _, errors = ended(torchrun(tmp_path, STEPS, tmp_path / "two.pt"))
    assert code == 0, errors
    one, two = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    assert len(one) > 40
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_train_into_one_folder(tmp_path):
    more = ["--json", "--checkpoint-every", 60]
    code, _, errors = ended(agent(tmp_path, "runs", steps=16_000, more=more))
    assert code == 0, errors
    result = json.loads((tmp_path / "runs" / "it" / "result.json").read_text())
    assert 15_000 < result["steps"] <= 16_000
    assert result["eval_episodes"] == 5
    events = EventAccumulator(str(tmp_path / "runs" / "it"))
    events.Reload()
    curve = events.Scalars("rollout/ep_rew_mean")
    steps = [event.step for event in curve]
    assert steps == sorted(set(steps))
    assert curve[-1].value > 2 * curve[0].value
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["it"]
    assert json.loads((tmp_path / "runs" / "it" / "versions.json").read_text())["processes"] == 2
    code, _, errors = ended(agent(tmp_path, "runs", steps=16_000, options=["--nproc-per-node", "1"]))
    assert code != 0
    assert "processes 2 -> 1" in errors


TOLD = """
import sys, torch
from pgce import processes
from pgce.agents import PPO
from pgce.run import main


class Told(PPO):
    def metrics(self, reports):
        policy, value = reports["policy"], reports["value"]
        seen = {"H": policy.cross_entropy, "w": policy.weight, "old": policy.batch["cross_entropy"],
                "value": value.logits, "return": value.target}
        torch.save({name: each.clone() for name, each in seen.items()}, f"{processes.rank()}.pt")
        return {}


main(Told, None, sys.argv[1:])
"""


@pytest.mark.parametrize("minibatches", [1, 64])
def test_numbers_that_are_logged_are_of_all_rows(minibatches, tmp_path):
    """Also where a process has no row of the last minibatch."""
    words = ["--num-envs", 2, "--num-steps", 20, "--num-minibatches", minibatches, "-n", 120, "--run", "it",
             "--runs-dir", "runs", "--eval-episodes", 2, "--no-stop-at-threshold", "--quiet"]  # fmt: skip
    code, _, errors = ended(torchrun(tmp_path, TOLD, *words))
    assert code == 0, errors
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert (minibatches == 64) == (min(len(part["H"]) for part in parts) == 0)
    seen = {name: np.concatenate([part[name].double().numpy() for part in parts]) for name in parts[0]}
    log_ratio = seen["old"] - seen["H"]
    expected = {
        "objective/cross_entropy": seen["H"].mean(),
        "objective/weight_mean": seen["w"].mean(),
        "train/approx_kl": (np.expm1(log_ratio) - log_ratio).mean(),
    }
    if minibatches == 1:
        expected["objective/weight_std"] = seen["w"].std(ddof=1)
        left = (seen["return"] - seen["value"]).var()
        expected["train/explained_variance"] = 1 - left / seen["return"].var()
    rows = [json.loads(line) for line in (tmp_path / "runs/it/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "objective/loss" in row][-1]
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def outcome(folder):
    state = load_checkpoint(folder / "it" / "checkpoints").state
    del state["seconds"], state["spent"]
    return json.dumps(state, default=lambda x: [str(x.dtype), *map(str, np.asarray(x).ravel().tolist())])


COUNTED = """
import os, sys
from pgce.agents import PPO
from pgce.run import main
from pgce.trainer import Trainer

step, rows = Trainer.step, []


def counted(self, batch):
    rows.append(batch.count)
    return step(self, batch)


Trainer.step = counted
try:
    main(PPO, None, sys.argv[1:])
finally:
    open(os.environ["RANK"], "w").write(f"{len(rows)} {min(rows)}")
"""


@pytest.mark.slow
def test_they_take_equally_many_steps_on_unequally_many_rows(tmp_path):
    """Each has one environment, and so often fewer rows that count than there are minibatches."""
    words = ["--num-envs", 2, "--num-steps", 4, "--num-minibatches", 4, "-n", 400, "--runs-dir", "runs",
             "--eval-episodes", 2, "--eval-freq", 10_000, "--no-stop-at-threshold", "--quiet"]  # fmt: skip
    code, _, errors = ended(torchrun(tmp_path, COUNTED, *words))
    assert code == 0, errors
    (steps, least), (others, other) = ((tmp_path / rank).read_text().split() for rank in "01")
    assert steps == others
    assert "0" in (least, other)


@pytest.mark.slow
def test_a_killed_process_is_started_again(tmp_path, fault_seed):
    """torchrun starts all of them anew, from the last checkpoint: as if nothing had been."""
    code, _, errors = ended(agent(tmp_path, "whole"))
    assert code == 0, errors
    at = fault_seed.randrange(100, 200)
    code, _, errors = ended(agent(tmp_path, "parts", "die", at, options=["--max-restarts", "2"]))
    assert code == 0, errors
    assert (tmp_path / "parts.happened").exists()
    attempts = json.loads((tmp_path / "parts" / "it" / "attempts.json").read_text())
    assert [each["step"] > 0 for each in attempts] == [False, True]
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_hanging_process_ends_the_job(tmp_path):
    begun = time.monotonic()
    code, _, _ = ended(agent(tmp_path, "runs", "hang", 50, more=["--process-timeout", 5]), 100)
    assert (tmp_path / "runs.happened").exists()
    assert code != 0
    assert time.monotonic() - begun < 60
    assert load_checkpoint(tmp_path / "runs" / "it" / "checkpoints").step > 0


@pytest.mark.slow
@pytest.mark.parametrize("skips", [0, 2])
def test_nan_in_one_process_is_seen_by_all(skips, tmp_path):
    """The update is left out in all, or all end at the same step; nothing that is not finite is saved."""
    code, _, errors = ended(agent(tmp_path, "runs", "nan", 100, more=["--max-skips", skips]))
    assert (tmp_path / "runs.happened").exists()
    state = load_checkpoint(tmp_path / "runs" / "it" / "checkpoints").state
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    if skips:
        assert code == 0, errors
        assert json.loads((tmp_path / "runs" / "it" / "result.json").read_text())["skipped_updates"] == 1
    else:
        assert code != 0
        assert errors.count("the gradient must be finite") == 2
        assert "exitcode  : 70" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGTERM, os.kill), (signal.SIGKILL, os.kill), (signal.SIGINT, os.killpg)],
    ids=["SIGTERM", "SIGKILL", "Ctrl-C"],
)
def test_the_launcher_is_stopped(number, whom, tmp_path):
    """All processes finish the same update and save once; none is left.

    Each of them gets more than one signal: of the launcher's death for each of its threads, of Ctrl-C from
    the terminal and from the launcher.
    """
    job = agent(tmp_path, "runs", "slow", steps=10**6)
    last = tmp_path / "runs" / "it" / "checkpoints" / "last"
    limit = time.monotonic() + 60
    while not last.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    workers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and parent(pid) == job.pid]
    assert len(workers) >= 2
    whom(job.pid, number)
    limit = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") and not zombie(pid) for pid in workers):
        assert time.monotonic() < limit, "a process goes on"
        time.sleep(0.1)
    code, _, _ = ended(job, 10)
    assert code != 0
    result = json.loads((tmp_path / "runs" / "it" / "result.json").read_text())
    assert result["stopped"] == ("interrupt" if number == signal.SIGINT else "terminate")
    found = load_checkpoint(tmp_path / "runs" / "it" / "checkpoints")
    assert found.step == result["steps"] > 0
    lengths = {key: part["collector"]["observation"].shape for key, part in found.state["processes"].items()}
    assert len(lengths) == 2
    assert math.prod(lengths["0"]) > 0


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_two_machines(tmp_path):
    """As two network namespaces, joined by a pair of devices."""
    names = [f"pgce{os.getpid()}{side}" for side in "ab"]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs the command ip, and root")
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {names[0]} type veth peer name {names[1]}")
    for number, name in enumerate(names, 1):
        commands += [
            f"link set {name} netns {name}",
            f"-n {name} addr add 10.93.0.{number}/24 dev {name}",
            f"-n {name} link set {name} up",
            f"-n {name} link set lo up",
        ]
    try:
        for command in commands:
            made = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"ip {command}: {made.stderr.strip()}")
        launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
                  "c10d", "--rdzv-id", "1", "--rdzv-endpoint", "10.93.0.1:29400"]  # fmt: skip
        agent = ["-m", "--", "pgce.agents.ppo", "--num-envs", "8", "-n", "4000", "--quiet", "--run", "it"]
        machines = []
        for number, name in enumerate(names, 1):
            where = ["--rdzv-conf", f"is_host={number % 2}", "--local-addr", f"10.93.0.{number}"]
            machine = subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, *launch, *where, *agent, "--runs-dir", name],
                env={**os.environ, "GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                cwd=tmp_path,
            )  # fmt: skip
            machines.append(machine)
        assert [ended(machine)[0] for machine in machines] == [0, 0]
        (versions,) = tmp_path.glob("*/it/versions.json")  # of the first process only
        assert json.loads(versions.read_text())["processes"] == 2
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
