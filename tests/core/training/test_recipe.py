"""Recipes: how they are merged, and what a mistake in one says."""

import pytest

from selfnpo_core import InputError
from selfnpo_core.training import Recipe, build_recipe, resolve_recipe
from selfnpo_core.training.presets import SAMPLED, SAMPLED_LORA
from selfnpo_core.training.resolving import FREE_ON_RESUME, changed_keys, model_of

PRESETS = {"lora": {"learning_rate": 1e-4, "rank": 8}, "full": {"learning_rate": 1e-6}}


def test_later_sources_win(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("rank: 32\nsteps: 7\nmixed_precision: no\n")
    recipe = resolve_recipe(PRESETS, file, ["steps=9", "trackers=[tensorboard]", "max_grad_norm=null"])
    assert (recipe.learning_rate, recipe.rank, recipe.steps) == (1e-4, 32, 9)
    assert recipe.mixed_precision == "no"
    assert recipe.trackers == ("tensorboard",)
    assert recipe.max_grad_norm is None


@pytest.mark.parametrize("where", ["file", "override"])
def test_the_preset_follows_what_is_trained(tmp_path, where):
    file = tmp_path / "recipe.yaml"
    file.write_text("train: full\n" if where == "file" else "")
    recipe = resolve_recipe(PRESETS, file, ["train=full"] if where == "override" else [])
    assert recipe.learning_rate == 1e-6
    assert resolve_recipe(PRESETS).learning_rate == 1e-4


def test_numbers_without_a_point_in_yaml_exponents_are_numbers():
    assert resolve_recipe(PRESETS, None, ["learning_rate=1e-5"]).learning_rate == 1e-5


def test_a_resolved_recipe_reads_back_the_same(tmp_path):
    recipe = resolve_recipe(PRESETS, None, ["train=full", "sample_prompts=[a, b]", "objective=dpo", "model=x"])
    (tmp_path / "config.yaml").write_text(recipe.to_yaml())
    assert resolve_recipe({}, tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("bath_size=3", ["unknown key 'bath_size'", "did you mean batch_size?"]),
        ("learningrate=3", ["did you mean learning_rate?"]),
        ("batch_size=0", ["batch_size is 0", "at least 1"]),
        ("batch_size=many", ["batch_size is 'many'", "integer"]),
        ("objective=tfdt", ["objective is tfdt", "'tdft'", "'gradient_reversal'", "'dpo'"]),
        ("engine=zero9", ["engine is zero9", "'zero3'"]),
        ("reversal_lambda=1", ["reversal_lambda is 1", "less than 1"]),
        ("learning_rate=.nan", ["learning_rate"]),
        ("teacher_guidance=.inf", ["teacher_guidance is inf"]),
        ("pool_size=4", ["pool_size is 4", "20 rows"]),
        ("pool_size=39", ["pool_size is 39", "fewer than 2 updates' rows", "set it to 40 or more"]),
        ("grad_accumulation=100", ["pool_size is 256", "2000 rows"]),
        ("steps", ["--set steps", "key=value"]),
        ("trackers=mlflow", ["trackers is mlflow", "'wandb'"]),
        ("seed=[", ["--set seed=[", "not valid YAML"]),
    ],
)
def test_a_mistake_is_one_line_naming_key_value_and_choice(override, words):
    with pytest.raises(InputError) as error:
        resolve_recipe(PRESETS, None, [override])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"rollout": "truncated", "truncation_steps": 25}, "truncation_steps is 25"),
        ({"rollout": "full", "objective": "dpo"}, "objective dpo"),
        ({"rollout": "full", "advance_guidance": 1}, "advance_guidance is for rollout pool and truncated"),
        ({"loss": "denoising"}, "finished samples, and rollout pool has none"),
        ({"loss": "denoising", "rollout": "truncated"}, "finished samples, and rollout truncated has none"),
        ({"loss": "denoising", "objective": "dpo"}, "denoising has no form for objective dpo"),
        ({"rollout": "samples", "objective": "dpo"}, "objective dpo"),
        (
            {"rollout": "samples", "samples": 2000, "uses": 9},
            "set uses to 10 or, in a new run, samples to 2223",
        ),
        (
            {"rollout": "samples", "group_offload": True, "gradient_checkpointing": True},
            "rollout samples cannot draw with weights in the host's memory",
        ),
        ({"pool_target": "endpoint", "rollout": "full"}, "pool_target is of rollout pool"),
        (
            {"pool_target": "endpoint", "objective": "dpo"},
            "one x_t, and pool_target endpoint has none",
        ),
        ({"loss_weighting": "snr"}, "not of huber: set loss_weighting to none"),
    ],
)
def test_settings_that_do_not_fit_together(values, word):
    with pytest.raises(InputError, match=word):
        build_recipe(values)


@pytest.mark.parametrize(
    ("content", "word"), [(b"- a\n- b\n", "list"), (b"a: [", "not valid YAML"), (b"a: \xe9", "cannot read")]
)
def test_a_bad_file_is_one_line(tmp_path, content, word):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=word) as error:
        resolve_recipe(PRESETS, file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        resolve_recipe(PRESETS, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("teacher_guidance=-2", "it is of rollout pool or truncated or full, and this recipe's is samples; "),
        ("pool_size=64", "pool_size changes nothing"),
        ("pool_size=64", "set rollout too, or begin with --config paper"),
        ("truncation_steps=3", "truncation_steps changes nothing"),
    ],
)
def test_a_key_of_another_rollout_than_the_preset_s_is_named(given, word, caplog):
    presets = {"lora": {"rollout": "samples", "steps": 2, "batch_size": 4}}
    resolve_recipe(presets, None, [given])
    assert word in caplog.text
    caplog.clear()
    resolve_recipe(presets, None, [given, "rollout=samples"])  # who states one knows
    resolve_recipe(presets, None, ["samples=7"])
    assert not caplog.text
    resolve_recipe(PRESETS, None, ["samples=7"])
    assert "samples changes nothing: it is of rollout samples, and this recipe's is pool" in caplog.text


SAMPLED_PRESETS = {"lora": {**SAMPLED, **SAMPLED_LORA}}


@pytest.mark.parametrize(
    ("given", "loss", "dropout"),
    [
        (["rollout=pool", "pool_size=64"], "huber", 0.0),
        (["rollout=truncated"], "huber", 0.0),
        (["objective=dpo"], "huber", 0.0),
        (["objective=gradient_reversal", "rollout=truncated"], "huber", 0.0),
        (["rollout=pool", "loss=l2", "student_prompt_dropout=0.5"], "l2", 0.5),
        (["loss=huber"], "huber", 1.0),
        (["rollout=full", "teacher_guidance=1"], "denoising", 1.0),
        (["rollout=pool", "pool_target=endpoint"], "denoising", 1.0),
    ],
)
def test_a_rollout_or_objective_brings_the_loss_that_it_has(given, loss, dropout, caplog):
    with caplog.at_level("INFO"):
        recipe = resolve_recipe(SAMPLED_PRESETS, None, given)
    assert (recipe.loss, recipe.student_prompt_dropout) == (loss, dropout)
    assert recipe.loss_weighting == ("snr" if loss == "denoising" else "none")
    assert ("as in --config paper" in caplog.text) == (loss != "denoising")
    for text in given:
        key, _, value = text.partition("=")
        assert str(getattr(recipe, key)) in (value, f"{value}.0")


@pytest.mark.parametrize("given", ["advance_guidance=1", "pool_target=endpoint", "pool_size=2", "teacher_guidance=-5"])
def test_an_idle_key_of_the_default_is_left_out(given, caplog):
    assert resolve_recipe(SAMPLED_PRESETS, None, [given]) == resolve_recipe(SAMPLED_PRESETS)
    assert f"{given.partition('=')[0]} changes nothing" in caplog.text


def test_the_model_is_known_before_the_presets_are(tmp_path):
    """Other keys may be wrong without them: here 64 rows of a pool of 50."""
    file = tmp_path / "recipe.yaml"
    file.write_text("model: some/base\npool_size: 50\n")
    keys = ["batch_size=64", "loss_weighting=snr"]
    assert model_of(file, keys) == "some/base"
    assert model_of(file, [*keys, "model=another"]) == "another"
    assert model_of(None, keys) is None
    with pytest.raises(InputError, match="model is 3"):
        model_of(None, ["model=3"])
    with pytest.raises(InputError, match="did you mean batch_size"):
        model_of(None, ["bath_size=3"])


@pytest.mark.parametrize(
    ("changes", "processes", "count"),
    [
        ({"steps": 600, "batch_size": 16, "grad_accumulation": 2}, 1, 1920),
        ({"steps": 600, "batch_size": 16, "grad_accumulation": 1}, 2, 1920),
        ({"steps": 400, "batch_size": 1, "grad_accumulation": 8, "uses": 16}, 1, 200),
        ({"steps": 7, "batch_size": 3}, 1, 3),  # 21 rows, three of ten uses; and no less than an update's
        ({"steps": 7, "batch_size": 3}, 2, 6),
        ({"steps": 11, "batch_size": 3}, 1, 4),
        ({"steps": 31, "batch_size": 10, "rounds": 3}, 1, 11),  # the first round has eleven updates
        ({"steps": 600, "batch_size": 32, "samples": 2000}, 4, 2000),
    ],
)
def test_as_many_samples_as_the_updates_take(changes, processes, count):
    recipe = build_recipe({"rollout": "samples", **changes})
    assert recipe.sample_count(processes) == count
    if recipe.samples is None:
        assert recipe.too_few_samples(processes) is None


def test_a_number_of_samples_that_is_not_given_is_no_change():
    old = build_recipe({"rollout": "samples", "samples": 50, "steps": 20})
    assert changed_keys(old, old.model_copy(update={"samples": None})) == []
    assert changed_keys(old, old.model_copy(update={"samples": 60})) == ["samples"]


def test_only_what_changes_no_update_may_change_on_resume():
    old = Recipe()
    assert changed_keys(old, old.model_copy(update={"steps": 2, "trackers": (), "sample_every": 3})) == []
    assert changed_keys(old, old.model_copy(update={"rank": 2, "steps": 2})) == ["rank"]
    assert set(Recipe.model_fields) >= FREE_ON_RESUME


@pytest.mark.parametrize(
    ("start", "processes", "first"), [(None, 1, 100), (1, 1, 20), (50, 1, 50), (50, 4, 80), (200, 1, 100)]
)
def test_a_pool_begins_with_two_updates_rows_at_least(start, processes, first):
    recipe = build_recipe({"batch_size": 5, "grad_accumulation": 2, "pool_size": 100, "pool_start": start})
    assert recipe.first_trajectories(processes) == first
