"""benchmarks.step_stages: a whole Detic step in stages, at a size that tests can run."""

from __future__ import annotations

import pytest
import torch

from benchmarks import step_stages
from benchmarks.detic_step import KINDS, SMALL, StepModel, build_step, plain_computation
from benchmarks.step_stages import STAGES, half_precision, measure

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def step() -> StepModel:
    return build_step(CPU, num_classes=70, opts=SMALL, size=64)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_of_a_step_is_timed(step: StepModel, kind: str, plain: bool) -> None:
    row = measure(step, kind, plain=plain, half=False, device=CPU, repeat=1)
    used = set(STAGES) - {"image": {"NMS", "masks"}, "box": {"NMS"}}.get(kind, {"backward"})
    assert {name for name in STAGES if row[name] > 0} == used
    # what no stage covers is the rest of the whole
    assert sum(row[name] for name in (*STAGES, "left")) == pytest.approx(row["all"])
    assert row["left"] > 0


def test_plain_computation_computes_all_logits(step: StepModel) -> None:
    predictor = step.model.roi_heads.predictors[0]
    features_RF = torch.rand(9, 24)
    rows_M, columns_S = torch.tensor([3]), torch.tensor([5, 0])
    wanted = predictor.classify_with(features_RF)(rows_M, columns_S)
    seen: list[torch.Size] = []
    hook = predictor.cls_score.register_forward_hook(lambda m, i, out: seen.append(out.shape))
    with plain_computation(step.model):
        found = predictor.classify_with(features_RF)(rows_M, columns_S)
    hook.remove()
    assert seen == [torch.Size([9, 71])]
    torch.testing.assert_close(found, wanted)


def test_half_precision_is_in_backbone_and_heads_alone(step: StepModel) -> None:
    full = step.run("inference")
    assert len(full["scores"]) == 5
    with half_precision(step):
        half = step.run("inference")
        maps = step.model.backbone(torch.rand(1, 3, 64, 64))
    assert {value.dtype for value in maps.values()} == {torch.float32}
    assert half["scores"].dtype == torch.float32
    assert not torch.equal(half["scores"], full["scores"])
    torch.testing.assert_close(step.run("inference")["scores"], full["scores"])  # put back


def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "small", "--classes", "70", "--kind", "inference"]
    assert step_stages.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| batch | classes | way | backbone ms |")
    assert [line.split(" | ")[2] for line in lines[3:]] == ["ours", "plain"]
