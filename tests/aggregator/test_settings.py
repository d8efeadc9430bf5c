"""Settings and recipes: defaults, bounds, and what is said about a key that does not exist."""

from pathlib import Path

import pytest

from cloud_aggregator.config import CONFIG_NAME, AggregatorSettings, database_url, load_settings
from cloud_aggregator.recipe import load_recipe
from edge_agent import config as agent_config
from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Fit

RECIPE = """
[model]
name = "tiny"
loss = "softmax-cross-entropy"
classes = ["left", "right"]

[[model.fits]]
parameter = "standardize.mean"
statistic = "mean"
input = "x"
axes = [0, 2]

[task]
rounds_max = 24

[task.plan]
kind = "train"
learning_rate = 0.1

[task.rounds]
goal = 8

[store]
block_s = 8
"""


def written(folder: Path, text: str, name: str = CONFIG_NAME) -> Path:
    (folder / name).write_text(text)
    return folder


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == AggregatorSettings()
    assert agent_config.load_settings(tmp_path) == agent_config.AgentSettings()


def test_what_the_file_says_holds_and_the_rest_stays(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, 'fleet = "watches"\n[pacing]\nrejected_max_s = 60.0\n'))
    assert (settings.fleet, settings.pacing.rejected_max_s, settings.pacing.rejected_min_s) == ("watches", 60.0, 5.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('fleat = "x"', "unknown setting 'fleat'; did you mean 'fleet'?"),
        ("[pacing]\naccepted_mx_s = 1.0", "pacing: unknown setting 'accepted_mx_s'; did you mean 'accepted_max_s'?"),
        ('[brocker]\nkind = "embedded"', "unknown setting 'brocker'; did you mean 'broker'?"),
        ("[broker]\nqqqq = 1", "broker: unknown setting 'qqqq'; known are advertised_host, host, kind"),
        ('fleet = "My Fleet"', r"aggregator.toml: .*\$\.fleet"),
        ('fleet = "fleet\\n"', r"aggregator.toml: .*\$\.fleet"),
        ("[broker]\nport = 65536", r"aggregator.toml: .*\$\.broker\.port"),
        ('[broker]\nkind = "rabbit"', r"aggregator.toml: .*\$\.broker\.kind"),
        ('command_interval_s = "soon"', r"aggregator.toml: .*\$\.command_interval_s"),
        ("command_interval_s = nan", r"aggregator.toml: .*\$\.command_interval_s"),
        ("fleet = [\n1,,2]", "aggregator.toml: .*line 2"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LocalMisuseError, match=said):
        load_settings(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[eligibility]\nrequire_powr = false", "eligibility: unknown setting 'require_powr'; did you mean"),
        ("[trainer]\nthread_count = 0", r"agent.toml: .*\$\.trainer\.thread_count"),
        ("[store]\nholdout_every = 1", r"agent.toml: .*\$\.store\.holdout_every"),
    ],
)
def test_an_agent_s_mistakes_are_named_in_the_same_way(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LocalMisuseError, match=said):
        agent_config.load_settings(written(tmp_path, text, agent_config.CONFIG_NAME))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).mkdir()
    with pytest.raises(LocalMisuseError, match=r"aggregator.toml: cannot be read"):
        load_settings(tmp_path)


def test_the_database_lies_beside_the_settings_unless_they_say_otherwise(tmp_path: Path) -> None:
    assert database_url(tmp_path, AggregatorSettings()) == f"sqlite:///{tmp_path}/aggregator.db"
    assert database_url(tmp_path, AggregatorSettings(database_url="postgresql://db")) == "postgresql://db"


def test_a_recipe_says_how_a_model_is_made_trainable_and_trained(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, RECIPE, "plan.toml") / "plan.toml")
    assert recipe.model.fits == (Fit("standardize.mean", "mean", "x", (0, 2)),)
    assert (recipe.task.rounds_max, recipe.task.plan.learning_rate, recipe.task.rounds.goal) == (24, 0.1, 8)
    assert recipe.store == {"block_s": 8}


def test_what_the_command_line_says_of_rounds_goes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, RECIPE, "plan.toml") / "plan.toml"
    recipe = load_recipe(path, goal=3, report_count_min=None)
    assert (recipe.task.rounds.goal, recipe.task.rounds.report_count_min) == (3, 2)
    with pytest.raises(LocalMisuseError, match="unknown setting 'goals'; did you mean 'goal'"):
        load_recipe(path, goals=3)
    with pytest.raises(LocalMisuseError, match=r"\$\.task\.rounds\.goal"):
        load_recipe(path, goal=0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate", "learning_rat", "task: plan: unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
        ("[task.plan]", "[task.plam]", "task: unknown setting 'plam'; did you mean 'plan'?"),
        ('loss = "softmax-cross-entropy"', "", r"model"),
        ("axes = [0, 2]", "axes = [-1]", r"fits"),
        ('statistic = "mean"', 'statistic = "median"', r"fits"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(LocalMisuseError, match=said):
        load_recipe(written(tmp_path, RECIPE.replace(old, new), "plan.toml") / "plan.toml")
    with pytest.raises(LocalMisuseError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")
