import pytest

from benchmarks.ranks.exchange import Kernel, account_for, merge


def test_merge_joins_what_overlaps_or_touches() -> None:
    assert merge([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (3.0, 4.0), (5.5, 6.0)]) == [(0.0, 4.0), (5.0, 7.0)]
    assert merge([]) == []


def test_account_for_exchange_counts_as_exposed_only_where_nothing_else_runs() -> None:
    kernels = [
        Kernel("nvjet_sm90_gemm", 0.0, 3.0),
        Kernel("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 1.0, 4.0),
        Kernel("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(args)", 3.5, 5.0),
        Kernel("triton_poi_fused_mul_silu_3", 4.5, 7.0),
    ]
    found = account_for(kernels, step_time_s=10.0)
    assert (found["exchange_s"], found["exposed_s"], found["compute_s"], found["idle_s"]) == (4.0, 1.5, 5.5, 3.0)
    assert (found["exchange_share"], found["exposed_share"]) == (0.4, 0.15)
    assert found["seconds_by_kind"] == {
        "matrix products": 3.0,
        "ncclDevKernel_AllGather_RING_LL": 3.0,
        "compiled elementwise": 2.5,
        "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL": 1.5,
    }


def test_account_for_one_rank_has_no_exchange() -> None:
    found = account_for([Kernel("gemm", 0.0, 1.0)], step_time_s=1.25)
    assert (found["exchange_s"], found["exposed_s"]) == (0, 0)
    assert found["idle_s"] == pytest.approx(0.25)
