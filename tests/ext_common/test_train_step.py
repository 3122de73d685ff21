from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ext_common.errors import ConfigError, ExtError
from ext_common.hooks import LossRecorder
from ext_common.non_finite import NonFiniteLossError, NonFiniteStep
from ext_common.train_step import Precision, StepLosses, StepOptions, TrainStep

Losses = Callable[[Tensor], Any]


class Model(nn.Module):
    """Turns the batch into what ``losses`` makes of one parameter."""

    def __init__(self, losses: Losses) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.losses = losses

    def forward(self, batch: Any) -> Any:
        return self.losses(self.weight)


def make_step(losses: Losses, **precision: Any) -> tuple[TrainStep, Model]:
    model = Model(losses)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainStep(model, optimizer, Precision("cpu", **precision)), model


BATCH = [{"image_id": 17}, {"file_name": "b.jpg"}]


def test_one_step_is_one_step_of_the_optimizer_on_the_sum() -> None:
    step, model = make_step(lambda w: {"a": w[0] ** 2, "b": 3 * w[1]})
    losses = step(BATCH)
    assert losses.names == ("a", "b")
    assert losses.values_K.tolist() == [4.0, 9.0]
    assert not losses.values_K.requires_grad
    torch.testing.assert_close(model.weight.detach(), torch.tensor([2 - 0.4, 3 - 0.3]))


def test_a_single_tensor_is_the_total() -> None:
    step, _ = make_step(lambda w: w.sum())
    assert step(BATCH).names == ("total_loss",)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_stops_before_the_update(bad: float) -> None:
    step, model = make_step(lambda w: {"loss_cls": w.sum(), "loss_box": w[0] * bad})
    with pytest.raises(NonFiniteLossError) as error:
        step(BATCH, 12)
    assert isinstance(error.value, FloatingPointError)
    text = str(error.value)
    for part in ("iteration 12", "loss_cls=5", f"loss_box={bad}", "images 17, b.jpg", "BASE_LR"):
        assert part in text
    assert model.weight.tolist() == [2.0, 3.0]


def test_a_non_finite_gradient_of_finite_losses_stops_before_the_update() -> None:
    # the square root's slope at 0 is infinite, the loss is 5
    step, model = make_step(lambda w: {"a": w.sum() + (w[0] - 2).sqrt()})
    with pytest.raises(NonFiniteLossError, match=r"images 17, b\.jpg.*iteration 3.*weight"):
        step(BATCH, 3)
    assert model.weight.tolist() == [2.0, 3.0]


def test_steps_are_left_out_up_to_the_limit_and_described() -> None:
    model = Model(lambda w: {"a": w.sum() * math.nan, "b": w[0]})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[NonFiniteStep] = []
    options = StepOptions(skip_non_finite=1, on_non_finite=seen.append)
    step = TrainStep(model, optimizer, Precision("cpu"), options)
    assert step(BATCH, 1) is None
    assert step.state_dict() == {"skipped": 1}
    again = TrainStep(model, optimizer, Precision("cpu"), options)
    again.load_state_dict(step.state_dict())
    with pytest.raises(NonFiniteLossError):
        again(BATCH, 2)
    assert model.weight.tolist() == [2.0, 3.0]
    assert [one.iteration for one in seen] == [1, 2]
    (process,) = seen[0].processes
    assert process.images == ("17", "b.jpg")
    assert process.losses["b"] == 2.0
    assert math.isnan(seen[0].gradient_norms["weight"])
    assert seen[0].learning_rates == (0.1,)


def test_a_request_to_stop_is_answered_after_the_step() -> None:
    asked = False
    step, model = make_step(lambda w: {"a": w.sum()})
    step.options = StepOptions(stop_asked=lambda: asked)
    step(BATCH)
    assert not step.stop_agreed
    asked = True
    step(BATCH)
    assert step.stop_agreed
    assert model.weight.tolist() == pytest.approx([1.8, 2.8])


def test_infinities_that_cancel_are_found_too() -> None:
    step, _ = make_step(lambda w: {"a": w[0] * math.inf, "b": -w[0] * math.inf})
    with pytest.raises(NonFiniteLossError, match="a=inf, b=-inf"):
        step(BATCH)


def test_divergence_that_the_model_notices_names_the_images() -> None:
    def diverged(_: Tensor) -> Any:
        raise FloatingPointError("Predicted boxes contain NaN.")

    step, _ = make_step(diverged)
    with pytest.raises(NonFiniteLossError, match=r"images 17.*contain NaN\. Iteration 3"):
        step(BATCH, 3)


def test_long_batches_are_not_listed_in_full() -> None:
    step, _ = make_step(lambda w: {"a": w[0] * math.nan})
    with pytest.raises(NonFiniteLossError, match="images 0, 1, 2, 3, 4, 5, 6, 7 and 24 more"):
        step([{"image_id": i} for i in range(32)])
    with pytest.raises(NonFiniteLossError, match="without image ids"):
        step(torch.zeros(2))


def test_losses_without_gradient_leave_the_weights_and_work() -> None:
    step, model = make_step(lambda _: {"a": torch.tensor(1.5)})
    assert step(BATCH).values_K.tolist() == [1.5]
    assert model.weight.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ({}, "dict"),
        (None, "NoneType"),
        ([1], "list"),
        ({"a": 1.0}, "loss 'a' is float"),
        ({"a": torch.zeros(2)}, r"loss 'a' is \[2\]"),
    ],
)
def test_what_is_no_loss_is_explained(returned: Any, text: str) -> None:
    step, _ = make_step(lambda _: returned)
    with pytest.raises(ExtError, match=text):
        step(BATCH)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_computes_in_half_and_updates_in_float(dtype: str) -> None:
    seen = []

    def losses(w: Tensor) -> dict[str, Tensor]:
        product = w[None] @ w[:, None]
        seen.append(product.dtype)
        # small: gradients are scaled by 65536 and half precision ends at 65504
        return {"a": 0.1 * product.float().sum(), "b": w.sum()}

    step, model = make_step(losses, enabled=True, dtype=dtype)
    values_K = step(BATCH).values_K
    assert seen == [getattr(torch, dtype)]
    assert step.precision.scaler.is_enabled() == (dtype == "float16")
    assert values_K.dtype == torch.float32
    assert values_K.tolist() == pytest.approx([1.3, 5.0])
    expected = torch.tensor([2 - 0.1 * 1.4, 3 - 0.1 * 1.6])
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-2, atol=0)


def test_an_overflowing_gradient_skips_the_update_and_lowers_the_scale() -> None:
    step, model = make_step(lambda w: {"a": w.half().sum().float() * 60_000}, enabled=True)
    scale = step.precision.scaler.get_scale()
    step(BATCH)
    assert model.weight.tolist() == [2.0, 3.0]
    assert step.precision.scaler.get_scale() < scale


def test_an_unknown_precision_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="SOLVER.AMP.DTYPE"):
        Precision("cpu", enabled=True, dtype="float8")


class CountReads(TorchDispatchMode):
    """Counts how often the host asks a tensor for its value."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("losses_K", [1, 30])
def test_the_device_is_asked_once_per_step_however_many_losses(losses_K: int) -> None:
    step, _ = make_step(lambda w: {f"loss_{k}": w.sum() * k for k in range(losses_K)})
    recorder = LossRecorder()
    with CountReads() as count:
        recorder.record(0, step(BATCH), 0.1)
    assert count.reads == 1


class FakeTrainer:
    def __init__(self, storage: EventStorage) -> None:
        self.storage = storage
        self.iter = 0
        self.max_iter = 45


def at_iteration(iteration: int) -> dict[str, int]:
    """detectron2 main wants to be told the iteration."""
    accepted = inspect.signature(SimpleTrainer.write_metrics).parameters
    return {"cur_iter": iteration} if "cur_iter" in accepted else {}


def test_metrics_are_those_of_detectron2() -> None:
    generator = torch.Generator().manual_seed(0)
    expected, actual = EventStorage(), EventStorage()
    recorder = LossRecorder(period=20)
    trainer = FakeTrainer(actual)
    recorder.trainer = trainer  # type: ignore[assignment]
    for iteration in range(45):
        values = torch.rand(2, generator=generator)
        # the second kind of batch has a loss of its own
        names = ("loss_cls", "loss_box") if iteration % 3 else ("loss_cls", "loss_image")
        with expected as storage:
            storage.iter = iteration
            losses = dict(zip(names, values, strict=True))
            SimpleTrainer.write_metrics(losses, iteration / 100, **at_iteration(iteration))
        trainer.iter = actual.iter = iteration
        recorder.record(iteration, StepLosses(names, values), iteration / 100)
        recorder.after_step()
        assert actual.iter == iteration
        if (iteration + 1) % 20 == 0 or iteration == 44:
            assert actual.latest().keys() == expected.latest().keys()
            for name, (value, when) in expected.latest_with_smoothing_hint(20).items():
                assert actual.latest_with_smoothing_hint(20)[name] == (pytest.approx(value), when)
