from pathlib import Path

import pytest

from pipeline.config import (
    ConfigError,
    ExperimentConfig,
    OnResume,
    check_resumable,
    fields_with_policy,
    load_config,
    parse_config,
)

MINIMAL = """
name: tiny
run_dir: runs/tiny
stage: pretrain
data: {shards: [a.tar], max_length: 31}
model: {language_model: lm, vision_tower: tower}
training: {global_batch_size: 7, learning_rate: 0.001, micro_batch_tokens: 61}
"""


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL)
    return path


def test_load_config_override_replaces_value_and_keeps_the_rest(config_path: Path) -> None:
    config = load_config(config_path, ["training.learning_rate=2e-5", "data.shards=[b.tar, c.tar]", "seed=3"])
    assert config.training.learning_rate == 2e-5
    assert config.data.shards == ("b.tar", "c.tar")
    assert (config.seed, config.training.global_batch_size) == (3, 7)


def test_to_yaml_read_back_gives_the_same_config(config_path: Path, tmp_path: Path) -> None:
    config = load_config(config_path)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_with_absolute_paths_leaves_urls_and_hub_ids_alone(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tower").mkdir()
    config = load_config(config_path, ["data.shards=[a.tar, s3://bucket/b.tar]"]).with_absolute_paths()
    assert config.data.shards == (f"{tmp_path}/a.tar", "s3://bucket/b.tar")
    assert (config.model.language_model, config.model.vision_tower) == ("lm", f"{tmp_path}/tower")
    assert config.run_dir == f"{tmp_path}/runs/tiny"
    assert config.with_absolute_paths() == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.learning_rate=1", "unknown key trainig; did you mean 'training'?"),
        ("training.learning_rte=1", "unknown key training.learning_rte; did you mean 'learning_rate'?"),
        ("training.zzz=1", "unknown key training.zzz; known keys here: num_epochs"),
        ("training.learning_rate=-1", "training.learning_rate: Input should be greater than 0 (found -1)"),
        ("stage=evaluate", "stage: Input should be 'pretrain' or 'finetune' (found 'evaluate')"),
        ("data.max_length=67", "training.micro_batch_tokens (61) is smaller than data.max_length (67)"),
        ("seed", "override 'seed': expected section.key=value"),
        ("name.x=3", "override 'name.x=3': name is a value, not a section"),
        ("cluster={launcher: ray, data_workers: 0}", "cluster: data_workers is 0, which only launcher=local can do"),
        ("run_dir=gs://bucket/runs/a", "run_dir gs://bucket/runs/a is a URL, expected a folder; only s3://"),
        ("run_dir=s3://bucket", "run_dir s3://bucket: expected a prefix below the bucket"),
        ("run_dir=s3://k:secret@bucket/a", "user and password in a URL would be shown"),
        ("run_dir=s3://bucket/../a", "'.', '..' or nothing between two slashes"),
        ("run_dir=s3://bucket/a#b", "'#' is where some programs end a URL"),
        ("run_dir=s3:/bucket/runs/a", "is a URL, expected a folder"),
        ("data.index_dir=gs://bucket/index", "index_dir gs://bucket/index is a URL"),
        ("data.feature_cache=s3://bucket/f", "feature_cache s3://bucket/f is a URL"),
        ("data.shards=[s3://bucket/a/../b.tar]", "'.', '..' or nothing between two slashes"),
        ("checkpoint.folder=s3://bucket", "expected a prefix below the bucket"),
        ("checkpoint.folder=s3://bucket/run#1", "'#'"),
        ("checkpoint.folder=ftp://host/x", "expected a folder, or a URL that begins with s3:// or gs://"),
        ("seed=[", "override 'seed=[': the value is not valid YAML"),
    ],
)
def test_load_config_bad_override_says_where_and_what(config_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_path, [override])
    assert message in str(error.value)


def test_with_absolute_paths_reaches_the_checkpoints(config_path: Path) -> None:
    config = load_config(config_path, ["checkpoint.folder=kept"]).with_absolute_paths()
    assert config.checkpoint.folder == str(Path("kept").absolute())
    config = load_config(config_path, ["checkpoint.folder=s3://bucket/kept"]).with_absolute_paths()
    assert config.checkpoint.folder == "s3://bucket/kept"


def test_load_config_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_load_config_python_object_tag_is_refused_without_running_it(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "evil.yaml")
    assert not marker.exists()


def test_missing_required_key_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match="run_dir is required; add it to the file or pass run_dir=VALUE"):
        parse_config({"name": "x"}, where="here")


def test_every_field_declares_its_resume_policy_and_its_meaning() -> None:
    policies = dict(fields_with_policy(ExperimentConfig))
    assert policies["training.global_batch_size"] is OnResume.FIXED
    assert policies["cluster.num_workers"] is OnResume.FREE

    def undocumented(section: type, prefix: str) -> list[str]:
        names = []
        for name, info in section.model_fields.items():  # type: ignore[attr-defined]
            if hasattr(info.annotation, "model_fields"):
                names += undocumented(info.annotation, f"{prefix}{name}.")
            elif not info.description:
                names.append(f"{prefix}{name}")
        return names

    assert undocumented(ExperimentConfig, "") == []


def test_check_resumable_fixed_field_changed_names_field_and_both_values(config_path: Path) -> None:
    started = load_config(config_path)
    check_resumable(started, load_config(config_path, ["cluster.num_workers=3", "name=other"]))
    with pytest.raises(ConfigError) as error:
        check_resumable(started, load_config(config_path, ["seed=5", "training.learning_rate=0.5"]))
    assert "seed: the run was started with 0, now 5" in str(error.value)
    assert "training.learning_rate: the run was started with 0.001, now 0.5" in str(error.value)


@pytest.mark.parametrize("field", ["run_dir", "checkpoint.folder", "data.shards", "data.index_dir"])
def test_user_and_password_in_a_url_are_refused_and_not_shown(config_path: Path, field: str) -> None:
    value = "s3://mykey:mysecret@bucket/a"
    with pytest.raises(ConfigError) as refused:
        load_config(config_path, [f"{field}=[{value}]" if field == "data.shards" else f"{field}={value}"])
    assert "bucket/a" in str(refused.value)
    assert "mysecret" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"training\.precision is float32; set that to bfloat16"),
        (["training.precision=bfloat16"], r"cluster\.use_gpu is false; set it to true"),
        (
            ["training.precision=bfloat16", "cluster.use_gpu=true", "training.sharding=fsdp"],
            r"set training\.sharding=none or training\.linear_precision=null",
        ),
        (
            [
                "training.precision=bfloat16",
                "cluster.use_gpu=true",
                "stage=finetune",
                "lora.rank=2",
                "lora.quantize_base=nf4",
            ],
            r"lora\.quantize_base=nf4 both quantise",
        ),
    ],
)
def test_fp8_layers_that_contradict_other_settings_are_refused(
    overrides: list[str], message: str, config_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_path, ["training.linear_precision=fp8", *overrides])


def test_fp8_layers_may_not_come_or_go_on_resume(config_path: Path) -> None:
    changes = ["training.precision=bfloat16", "cluster.use_gpu=true"]
    started = load_config(config_path, changes)
    with pytest.raises(ConfigError, match=r"training\.linear_precision: the run was started with None, now 'fp8'"):
        check_resumable(started, load_config(config_path, [*changes, "training.linear_precision=fp8"]))


@pytest.mark.parametrize(
    "override",
    ["training.learning_rate=.inf", "training.weight_decay=.inf", "lora.alpha=.inf", "cluster.cpus_per_worker=.inf"],
)
def test_number_that_is_not_finite_is_refused(config_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="should be a finite number"):
        load_config(config_path, [override])


def test_limits_of_gradients_and_spikes_may_be_lifted_and_are_never_nan(config_path: Path) -> None:
    lifted = load_config(config_path, ["training.max_grad_norm=.inf", "training.loss_spike_deviations=.inf"])
    assert lifted.training.max_grad_norm == lifted.training.loss_spike_deviations == float("inf")
    with pytest.raises(ConfigError, match=r"training\.max_grad_norm"):
        load_config(config_path, ["training.max_grad_norm=.nan"])
