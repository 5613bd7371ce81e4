"""The optimizer stack: precision, finite check, clipping, schedule, the update, the averaged weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pgce import processes
from pgce.checkpoint import CheckpointError, check_like
from pgce.choices import OptimizerName, Precision, Schedule, check_type, check_types
from pgce.tapes import Tape

__all__ = ["SETTINGS", "Optimizer", "resolve_device", "schedule_factor"]

SETTINGS = "learning_rate", "schedule", "warmup_steps", "max_grad_norm", "precision", "ema_decay", "max_skips"
"""Of a stack, beside the algorithm's name and options."""


class _Plain(torch.optim.Optimizer):
    """What torch decorates to keep its compiler out, which only for that it imports: 1.2 s and 66 MiB."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)


def _plain(algorithm: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """An algorithm of torch without those decorators; that of its step also turns gradients off."""
    step: Any = torch.no_grad()(inspect.unwrap(algorithm.step))
    step.hooked = True  # nobody's hooks nor a profiler's record are in it, which takes longer than the update
    return type(f"_{algorithm.__name__}", (_Plain, algorithm), {"step": step})


# By these names pickled estimators find them.
_Adam, _AdamW = _plain(torch.optim.Adam), _plain(torch.optim.AdamW)
_SGD, _RMSprop, _Adadelta = map(_plain, (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adadelta))
_ALGORITHMS = {"adam": _Adam, "adamw": _AdamW, "sgd": _SGD, "rmsprop": _RMSprop, "adadelta": _Adadelta}
_FUSED = {"adam", "adamw", "sgd"}  # one kernel for the whole update, on CPU as well
_UNWAITED = {"cuda"}  # kinds of device whose updates need not be waited for
_LOOK = 100  # updates after which a GPU is asked at the latest whether all were finite


class Optimizer:
    """A torch optimizer by name, over parameters that lie in one flat buffer.

    The parameters become views of one tensor a dtype and device, and so do their gradients: one norm, one
    finite check and one kernel for the update, however many layers there are. (For two 64 × 64 networks on
    512 rows that takes the step's overhead from about 0.4 ms to 0.05 ms on one core.)

    On a GPU nobody waits for an update by a fused algorithm ("adam", "adamw", "sgd"), but for the first: one
    that is not finite changes nothing, nor does any after it, until `look` finds and raises it, once a round
    (or after 100 updates). With `max_skips`, float16 or several processes each update is waited for.

    Args:
        parameters: of a model that is already on its device. Those without `requires_grad` are left alone; if
            they are to learn later, that takes another stack.
        name: "adam", "adamw", "sgd", "rmsprop" or "adadelta".
        learning_rate: step size, > 0, before the schedule.
        schedule: the factor on the learning rate, see `schedule_factor`. Whoever knows how far training is
            sets `progress` (0 to 1).
        warmup_steps: the factor also climbs linearly from 1/warmup_steps to 1 over so many steps.
        max_grad_norm: the gradient is scaled down to this Euclidean norm; None leaves it.
        precision: of the model's matrix products; parameters, losses and updates stay as they are.
            "float16" scales the loss so that small gradients survive, and leaves a step out where they
            overflow.
        ema_decay: d of an exponential moving average of the parameters, average ← d · average + (1 − d) ·
            parameters after each update (with d = (1 + n)/(10 + n) while that is smaller); None keeps none.
        max_skips: how many updates in a row may be left out since the gradient was not finite; 0 raises at
            the first.
        options: what torch's optimizer of that name takes (momentum, weight_decay, betas, eps, …).

    Attributes:
        progress: share of training done, 0 to 1.
        steps: updates made.
        skipped: updates left out because the gradient was not finite.
        device: where the parameters are.
        defers: whether updates but the first are not waited for.
        not_finite: where they are not: 1 on the device once one was not finite.

    Raises:
        ValueError: an unknown name or schedule, or a number out of its range.
        TypeError: an option that the named optimizer does not take.

    Example:
        >>> import torch
        >>> from pgce.optimizer import Optimizer
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = Optimizer(model.parameters(), "sgd", learning_rate=0.5, max_grad_norm=1.0)
        >>> before = model.weight.detach().clone()
        >>> model(torch.tensor([3.0, 4.0])).sum().backward()  # gradient (3, 4): norm 5, clipped to 1
        >>> optimizer.step()
        >>> before - model.weight.detach()
        tensor([[0.3000, 0.4000]])
        >>> optimizer.grad_norm
        5.0
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        name: OptimizerName = "adam",
        *,
        learning_rate: float = 1e-3,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        max_grad_norm: float | None = None,
        precision: Precision = "float32",
        ema_decay: float | None = None,
        max_skips: int = 0,
        **options: Any,
    ) -> None:
        check_type("optimizer", name, OptimizerName)
        check_types(locals(), Optimizer.__init__)
        algorithm = inspect.signature(_ALGORITHMS[name]).parameters
        if unknown := options.keys() - (algorithm.keys() - {"params", "lr"}):
            raise TypeError(
                f"an option of {name} is one of {', '.join([*algorithm][2:])}: "
                f"{min(unknown)} is none (its step size is learning_rate)"
            )
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"the decay of averaged weights lies in [0, 1): it is {ema_decay}")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"the learning rate is positive and finite: it is {learning_rate}")
        if warmup_steps < 0:
            raise ValueError(f"warm-up takes zero or more steps: warmup_steps is {warmup_steps}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"the gradient norm's limit is positive: it is {max_grad_norm}")
        if max_skips < 0:
            raise ValueError(f"zero or more updates in a row may be left out: max_skips is {max_skips}")
        self.max_skips = max_skips
        every = [*parameters]
        self._parameters = [p for p in every if p.requires_grad]
        self._others = [p for p in every if not p.requires_grad]
        if not self._parameters:
            raise ValueError("there is nothing to train: no parameter requires a gradient")
        self._lay()
        self.device = self._flat[0].device
        # By torch 2.13's fused SGD parameters of half precision stay where they are, on a CPU.
        lost = name == "sgd" and self.device.type == "cpu" and any(p.element_size() < 4 for p in self._flat)
        if name in _FUSED and not lost:
            options = {"fused": True, **options}
        can_wait = bool(options.get("fused")) and not max_skips and precision != "float16"
        self.defers = self.device.type in _UNWAITED and can_wait and processes.size() == 1
        if self.defers and name != "sgd":
            options = {"capturable": True, **options}
        self.torch_optimizer = _ALGORITHMS[name](self._flat, lr=learning_rate, **options)
        self._options = options
        self.name = name
        self.schedule = schedule
        self.base_learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.precision = precision
        self.ema_decay = ema_decay
        self._average = [] if ema_decay is None else [flat.detach().clone() for flat in self._flat]
        self._trained: list[Tensor] = []  # parameters in whose place the average is
        self._scaler = torch.amp.GradScaler(self.device.type) if precision == "float16" else None
        self.progress = 0.0
        self.steps = 0
        self.skipped = 0
        self._in_a_row = 0  # updates left out
        self._grad_norm = 0.0
        self._loads = 0
        self._unseen = 0  # updates launched since the last look
        on_cpu = self.device.type == "cpu" and bool(options.get("fused"))
        self._cpu_rate = torch.zeros((), dtype=torch.float64) if on_cpu else None  # of recorded updates
        self._cpu_told = 0.0  # what it is
        self._recorded: object = None  # what the recorded update depends on
        self._play: Callable[[], object] | None = None
        if self.defers:  # what the device knows of them, and what it is told
            self._norm, self._missed = torch.zeros(2, dtype=torch.float64, device=self.device)
            self.not_finite, self._rate, self._pull = torch.zeros(3, device=self.device)
            self._told = (0.0, 0.0)  # the last two, as they are there

    def _lay(self) -> None:
        """Lay the parameters, and their gradients, into flat ones."""
        self._flat, self._values, self._views = _flatten(self._parameters)
        self._places = [value.data_ptr() for value in self._values]
        self._frozen: list[Tensor] = []  # values that someone has frozen since

    @property
    def grad_norm(self) -> float:
        """Euclidean norm of the last gradient before clipping."""
        return self._norm.item() if self._unseen else self._grad_norm

    @property
    def deferred(self) -> bool:
        """Whether the next update is not waited for; the first is, before which there is no state."""
        return self.defers and self.steps > 0

    @property
    def constants(self) -> tuple[object, ...]:
        """What a recorded update depends on, beside tensors that change in place."""
        return self._loads, self.max_grad_norm, *(value.data_ptr() for value in self._frozen)

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled by a factor that changes."""
        return self._scaler is not None

    @property
    def learning_rate(self) -> float:
        """Step size of the next update: the base rate times schedule and warm-up."""
        return self._rate_of(self.steps + 1)

    @property
    def last_rate(self) -> float:
        """Step size of the last update, until `progress` is set anew; of the first, before it."""
        return self._rate_of(max(self.steps, 1))

    def _rate_of(self, step: int) -> float:
        rate = self.base_learning_rate * schedule_factor(self.schedule, self.progress)
        return rate * min(1.0, step / max(self.warmup_steps, 1))

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model runs: its matrix products are of the stack's precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.precision))

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from: itself, unless its gradients would be too small for float16."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Inside, backward leaves each gradient where it made it; then all go to the flat ones at once.

        What was there before goes.
        """
        self.adopt_gradients()
        for parameter in self._parameters:
            parameter.grad = None
        try:
            yield
        finally:
            made, views, none = list[Tensor](), list[Tensor](), list[Tensor]()
            for parameter, view in zip(self._parameters, self._views, strict=True):
                if (gradient := parameter.grad) is None:
                    none.append(view)
                else:
                    made.append(gradient.to_dense() if gradient.is_sparse else gradient)
                    views.append(view)
                parameter.grad = view
            if made:
                torch._foreach_copy_(views, made)
            if none:
                torch._foreach_zero_(none)

    def adopt_gradients(self) -> None:
        """Gradients that someone replaced (`zero_grad()` drops them) go back into the flat buffer.

        So do the parameters; those that do not require a gradient any more are left alone by updates.

        Raises:
            ValueError: a parameter has another shape, type or device than it had, or one that was left alone
                requires a gradient now.
        """
        if late := sum(parameter.requires_grad for parameter in self._others):
            raise ValueError(
                "what is to learn requires a gradient when the optimizer is made: "
                f"{late} of the parameters that it left alone do so now (fit once more, or make another)"
            )
        self._frozen = []
        laid = zip(self._parameters, self._values, self._places, self._views, strict=True)
        for parameter, value, place, view in laid:
            if not parameter.requires_grad:
                self._frozen.append(value)
            if parameter.data_ptr() != place:
                self._take_back(parameter, value)
            if parameter.grad is not view:
                if parameter.grad is None:
                    view.zero_()
                else:
                    view.copy_(parameter.grad)
                parameter.grad = view

    @staticmethod
    def _take_back(parameter: nn.Parameter, own: Tensor) -> None:
        """What a parameter holds that someone put elsewhere, in the place of its own."""
        now = parameter.data
        if (own.shape, own.dtype, own.device) != (now.shape, now.dtype, now.device):
            raise ValueError(
                f"parameters stay as an optimizer has them: one was {_told(own)}, it is {_told(now)}"
            )
        parameter.data = own.copy_(now)

    def step(self) -> None:
        """One update from the gradients that `backward` left, which are then zero again.

        Gradients of several processes add up. One that is not finite changes nothing.

        Raises:
            FloatingPointError: the gradient was not finite more often in a row than `max_skips`. Parameters
                and optimizer state are as before. (Where updates are deferred, `look` raises it.)
        """
        self.adopt_gradients()
        self.update()

    def update(self) -> None:
        """As `step`, of gradients that lie in the flat buffer, where `adopt_gradients` puts them."""
        if self.deferred:
            self.set_rates()
            self.launch()
            self.launched()
            return
        if self._scaler is not None:
            self._scaler.unscale_(self.torch_optimizer)
        gradients, norm = self._gradients()
        self._grad_norm = norm.item()
        if not math.isfinite(self._grad_norm):
            self._leave_out()
            return
        self._in_a_row = 0
        if self.max_grad_norm is not None:
            scale = self.max_grad_norm / (self._grad_norm + 1e-6)  # as torch's clip_grad_norm_
            if scale < 1:
                for gradient in gradients:
                    gradient.mul_(scale)
        self._move(self._torch_step)
        self.drop_gradients()
        if self._scaler is not None:
            self._scaler.update()
        self.steps += 1
        for average, flat in zip(self._average, self._flat, strict=False):
            average.lerp_(flat.detach(), self._share(self.steps))

    def _leave_out(self) -> None:
        """Count an update that is not made, or raise that there were too many in a row."""
        self.drop_gradients()
        self.skipped += 1
        if self._scaler is not None:
            scale = self._scaler.get_scale()
            self._scaler.update(max(scale / 2, 1.0))  # in all processes
            if scale >= 2:
                return
        self._in_a_row += 1
        if self._in_a_row > self.max_skips:
            raise self._failure(f", {self._in_a_row} times in a row" if self.max_skips else "")

    def _gradients(self) -> tuple[list[Tensor], Tensor]:
        """The flat gradients, of all processes, and their norm."""
        gradients = [processes.total(flat.grad) for flat in self._flat if flat.grad is not None]
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        return gradients, norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def _torch_step(self) -> None:
        """The update as torch makes it; a CPU replays a fused one, to whose kernel torch takes a long way."""
        groups, rate = self.torch_optimizer.param_groups, self._cpu_rate
        for group in groups:
            group["lr"] = self.learning_rate if rate is None else rate
        tape: Tape | None = None
        if rate is not None:
            if self._cpu_told != (now := self.learning_rate):
                rate.fill_(now)
                self._cpu_told = now
            settings = [value for group in groups for name, value in group.items() if name != "params"]
            kept = [value for entries in self.torch_optimizer.state.values() for value in entries.values()]
            state = [*settings, *(value.data_ptr() for value in kept if isinstance(value, Tensor))]
            if state != self._recorded:
                self._recorded, self._play = state, None
            elif self._play is not None:
                self._play()
                return
            else:
                tape = Tape()
        with tape or nullcontext():
            self.torch_optimizer.step()
        if tape is not None and tape.whole:
            self._play = tape.close([])[0]

    def _move(self, update: Callable[[], object]) -> None:
        """An update that leaves frozen parameters alone, which momentum and decay would still move."""
        kept = [value.clone() for value in self._frozen]
        update()
        for value, before in zip(self._frozen, kept, strict=True):
            value.copy_(before)

    def drop_gradients(self) -> None:
        """Gradients are zero again."""
        for flat in self._flat:
            if flat.grad is not None:
                flat.grad.zero_()

    def set_rates(self) -> None:
        """Tell the device what the next update's learning rate is, and how far the average follows."""
        rates = self.learning_rate, self._share(self.steps + 1)
        for tensor, rate, told in zip((self._rate, self._pull), rates, self._told, strict=True):
            if rate != told:
                tensor.fill_(rate)
        self._told = rates

    def launch(self) -> None:
        """An update as the device makes it by itself: all of it can be recorded, and replayed."""
        norm = self._gradients()[1]
        fine = self.not_finite == 0
        torch.where(fine, norm, self._norm, out=self._norm)  # the first that is not finite stays
        torch.ne(0 * self._norm, 0, out=self.not_finite)
        self._missed += self.not_finite
        for group in self.torch_optimizer.param_groups:
            group["lr"] = self._rate
        how: Any = self.torch_optimizer  # whose kernel divides gradients, and changes nothing, by these two
        how.found_inf = self.not_finite
        if self.max_grad_norm is not None:
            how.grad_scale = ((norm + 1e-6) / self.max_grad_norm).clamp(min=1).float()
        self._move(how.step)
        how.grad_scale = how.found_inf = None
        self.drop_gradients()
        for average, flat in zip(self._average, self._flat, strict=False):
            average.lerp_(flat.detach(), (self._pull * (1 - self.not_finite)).to(flat.dtype))

    def launched(self) -> None:
        """Count an update that was launched; now and then, look."""
        self.steps += 1
        self._unseen += 1
        if self._unseen >= _LOOK:
            self.look()

    def look(self) -> None:
        """Wait for the updates launched since the last look, if there are any.

        Raises:
            FloatingPointError: a gradient was not finite. Parameters and optimizer state are as before that
                update: neither it nor those launched after it were made.
        """
        if not self._unseen:
            return
        self._grad_norm, missed = torch.stack([self._norm, self._missed]).tolist()
        self.steps -= int(missed)
        self._forget()
        if not math.isfinite(self._grad_norm):
            self.skipped += 1
            raise self._failure()

    def _forget(self) -> None:
        """Begin to count anew what is launched."""
        self._unseen = 0
        for tensor in (self._norm, self._missed, self.not_finite):
            tensor.zero_()

    def _failure(self, often: str = "") -> FloatingPointError:
        return FloatingPointError(
            f"the gradient must be finite: its norm is {self._grad_norm} at update {self.steps}{often}; "
            "parameters and optimizer are left as they were"
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are their moving average; without one, nothing changes."""
        kept = [flat.detach().clone() for flat in self._flat] if self._average else []
        self._load(self._average)
        try:
            yield
        finally:
            self._load(kept)

    def keep_average(self) -> None:
        """Make the moving average, if there is one, the parameters, until training goes on."""
        self._trained = [flat.detach().clone() for flat in self._flat] if self._average else []
        self._load(self._average)

    def go_on(self) -> None:
        """Take the average back that was kept, unless somebody has changed the parameters since."""
        if all(map(torch.equal, self._flat, self._average)):
            self._load(self._trained)
        self._trained = []

    def _share(self, steps: int) -> float:
        """How far the average goes to the parameters after so many updates."""
        return 0.0 if self.ema_decay is None else 1 - min(self.ema_decay, (1 + steps) / (10 + steps))

    def _load(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for flat, value in zip(self._flat, values, strict=False):
                flat.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that updates leave beside the parameters, as nested plain data.

        Settings are not in it, nor gradients, which between updates are zero.

        Example:
            >>> import torch
            >>> from pgce.optimizer import Optimizer
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = Optimizer(model.parameters(), "adam", ema_decay=0.9)
            >>> model(torch.ones(2)).sum().backward()
            >>> optimizer.step()
            >>> state = optimizer.state_dict()
            >>> state["steps"], sorted(state["torch"]["0"])
            (1, ['exp_avg', 'exp_avg_sq', 'step'])
            >>> resumed = Optimizer(model.parameters(), "adam", ema_decay=0.9)
            >>> resumed.load_state_dict(state)
            >>> resumed.steps
            1
        """
        self.look()
        state = self.torch_optimizer.state_dict()["state"]
        return {
            "name": self.name,
            "progress": self.progress,
            "steps": self.steps,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "grad_norm": self.grad_norm,
            "torch": {str(n): _copied(entries) for n, entries in state.items()},
            "average": _copied(_numbered(self._average)),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: with the same parameters, the next updates are bit-equal.

        Args:
            state: of a stack with the same settings over parameters of the same shapes. Settings are this
                stack's own.

        Raises:
            CheckpointError: the state is of another kind of stack, or not one, or not finite. All is as
                before.
        """
        try:
            name, told = state["name"], {n: dict(entries) for n, entries in state["torch"].items()}
            steps, skipped = (_count(state[key]) for key in ("steps", "skipped"))
            in_a_row = _count(state.get("in_a_row", 0))  # which older states have not
            progress, grad_norm = float(state["progress"]), float(state["grad_norm"])
            average, scaler = dict(state["average"]), state["scaler"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is no optimizer's state: {error!r}") from error
        if name != self.name:
            raise CheckpointError(f"the state of {name!r} does not fit the optimizer {self.name!r}")
        if not 0 <= progress <= 1:
            raise CheckpointError(f"progress of training lies in [0, 1]: it is {progress}")
        check_like("averaged weights", average, _numbered(self._average))
        expected = self._state_after_a_step() if steps else {}
        if told.keys() != expected.keys():
            raise CheckpointError(f"an optimizer's state has parts {[*expected]} here: it has {[*told]}")
        for n, entries in expected.items():
            check_like(f"optimizer state {n}", told[n], entries)
        if (scaler is None) != (self._scaler is None):
            raise CheckpointError(f"precision is {self.precision} here: the state is of another")
        if self._scaler is not None:
            own = self._scaler.state_dict()
            if not (isinstance(scaler, Mapping) and scaler.keys() == own.keys()):
                raise CheckpointError(f"a gradient scaler's state has {[*own]}: it is {scaler!r}")
            if not all(
                isinstance(value, (int, float)) and 0 <= value < math.inf for value in scaler.values()
            ):
                raise CheckpointError(f"a gradient scaler's numbers are finite: its state is {scaler!r}")
            self._scaler.load_state_dict(dict(scaler))
        groups = self.torch_optimizer.state_dict()["param_groups"]
        kept = {int(n): _copied(told[n]) for n in told}
        self.torch_optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self._average = [average[str(n)].to(own, copy=True) for n, own in enumerate(self._average)]
        self.progress, self.steps, self.skipped, self._grad_norm = progress, steps, skipped, grad_norm
        self._in_a_row = in_a_row
        self._loads += 1
        if self.defers:
            self._forget()

    def _state_after_a_step(self) -> dict[str, dict[str, Tensor]]:
        """What the torch optimizer keeps of each flat parameter once it made an update."""
        like = [nn.Parameter(torch.zeros_like(flat)) for flat in self._flat]
        for parameter in like:
            parameter.grad = torch.zeros_like(parameter)
        other = _ALGORITHMS[self.name](like, lr=self.base_learning_rate, **self._options)
        other.step()
        return {str(n): dict(entries) for n, entries in other.state_dict()["state"].items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recorded": None, "_play": None}  # a recording is of these tensors only

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # in which each tensor has memory of its own: they are laid flat again
        old, kept = self._flat, self.torch_optimizer.state
        self._lay()
        for group in self.torch_optimizer.param_groups:
            group["params"] = self._flat
        for flat, now in zip(old, self._flat, strict=True):
            if flat in kept:
                kept[now] = kept.pop(flat)


def _told(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"


def _flatten(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[Tensor], list[Tensor]]:
    """One flat parameter with gradient a (dtype, device), and each parameter's views of it and of that."""
    groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    flats: list[nn.Parameter] = []
    views: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
    for group in groups.values():
        flat = nn.Parameter(torch.cat([p.detach().flatten() for p in group]))
        flat.grad = torch.zeros_like(flat)
        sizes = [p.numel() for p in group]
        pieces = zip(group, flat.detach().split(sizes), flat.grad.split(sizes), strict=True)
        for parameter, value, gradient in pieces:
            parameter.data = value.view(parameter.shape)
            parameter.grad = gradient.view(parameter.shape)
            views[parameter] = parameter.data, parameter.grad
        flats.append(flat)
    return flats, [views[p][0] for p in parameters], [views[p][1] for p in parameters]


def _numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(n): tensor for n, tensor in enumerate(tensors)}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a count is a whole number: it is {value!r}")
    return value


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """The factor on a setting: "constant" 1; "linear" 1 − progress; "cosine" ½(1 + cos π · progress).

    Args:
        schedule: its name.
        progress: share of training done, 0 to 1.

    Example:
        >>> from pgce.optimizer import schedule_factor
        >>> [schedule_factor(name, 0.75) for name in ("constant", "linear", "cosine")]
        [1.0, 0.25, 0.1464]
    """
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device that `name` stands for; "auto" is the first at hand of cuda, mps, cpu.

    Raises:
        ValueError: torch knows no such device, or it is not at hand.

    Example:
        >>> from pgce.optimizer import resolve_device
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    at_hand = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, there in at_hand.items() if there), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'a device is "auto", "cpu", "cuda" or "mps": it is {name!r}') from None
    if not at_hand.get(device.type, True):
        raise ValueError(f"device {name!r} is not at hand: this machine has {resolve_device()}")
    return device
