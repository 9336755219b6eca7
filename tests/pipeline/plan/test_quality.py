import pytest

from benchmarks.step.workloads import WITH_SEVERAL_IMAGES, instruction_sizes
from pipeline.plan.packing import pack_step
from pipeline.plan.quality import pooled, quality_of

LENGTHS = [size.fused(576).num_tokens for size in instruction_sizes(128 * 20, 5, 576, WITH_SEVERAL_IMAGES)]


@pytest.mark.parametrize("num_ranks", [2, 8])
@pytest.mark.parametrize("budget", [4096, 8192, 16384])
def test_llava_like_batches_of_128_are_useful_to_97_percent_and_level_to_3_percent(num_ranks: int, budget: int) -> None:
    batches = [LENGTHS[start : start + 128] for start in range(0, len(LENGTHS), 128)]
    quality = pooled([quality_of(pack_step(lengths, num_ranks, budget), lengths) for lengths in batches])
    assert quality.useful_tokens == sum(LENGTHS)
    assert quality.efficiency > 0.97
    assert quality.imbalance < 0.03


def test_quality_counts_waiting_for_the_fullest_rank_in_every_micro_batch() -> None:
    ranks = (((0, 1), (2,)), ((3,), ()))
    quality = quality_of(ranks, [5, 7, 3, 11])
    assert (quality.useful_tokens, quality.occupied_tokens) == (26, 2 * (12 + 3))
    assert quality.efficiency == pytest.approx(26 / 30)
    assert quality.imbalance == pytest.approx(15 / 13 - 1)


def test_pooled_adds_tokens_and_keeps_the_worst_imbalance() -> None:
    steps = [quality_of((((0,),), ((1,),)), lengths) for lengths in ([2, 2], [1, 3])]
    assert pooled(steps) == (8, 2 * 2 + 2 * 3, 0.5)
