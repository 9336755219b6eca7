from benchmarks.step.report import render

MACHINE = {
    "date": "2026-01-02", "cpu": "some CPU", "cores": 2, "threads": 2, "torch": "2.13.0", "transformers": "5.23.0",
    "ray": "2.60.0", "python": "3.11.0", "load_before": [0.13, 0.2, 0.3],
}  # fmt: skip


def test_render_compares_with_the_targets_and_leaves_out_what_was_not_run() -> None:
    scenario = {
        "useful_tokens_per_s": {"ours": 670.4, "transformers": 200.0},
        "speedup": 3.35,
        "memory_growth_bytes": {"ours": 400 << 20, "transformers": 1000 << 20},
        "memory_share": 0.4,
        "loss_difference": 9e-8,
        "grad_norm_difference": 7e-8,
    }
    page = render({"machine": MACHINE, "side by side": {"full finetuning, 384 x 6": scenario}}, "make bench")
    assert page.startswith("# CPU benchmarks, 2026-01-02\n\n    make bench\n")
    assert (
        "| full finetuning, 384 x 6 | 670 | 200 | 3.35x (at least 3.0x) met "
        "| 400 of 1000 MiB: 0.400 (at most 0.333) **missed** | 9.0e-08, 7.0e-08 |" in page
    )
    assert "## Packing" not in page


def test_render_draws_the_largest_value_as_the_longest_bar() -> None:
    points = [
        {"size": n, "tokens": 7, "step_time_s": time_s, "growth_bytes": 3 << 20} for n, time_s in ((5, 1), (9, 4))
    ]
    page = render({"machine": MACHINE, "growth": {"vocabulary": points}}, "make bench")
    assert "| 5 | 7 | 1.00 s | 3 MiB | `########` |" in page
    assert f"| 9 | 7 | 4.00 s | 3 MiB | `{'#' * 30}` |" in page


def test_render_says_why_a_part_failed() -> None:
    page = render({"machine": MACHINE, "end to end": {"failed": "OSError: no space"}}, "make bench")
    assert "## end to end\n\nOSError: no space" in page
