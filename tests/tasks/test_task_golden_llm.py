"""Every XARES-LLM task, suite and recipe says what the published configurations say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xares_store.catalog import load_recipe, load_task, load_tasks, recipe_names, suites
from xares_store.kinds import PROBES_OF_KIND, Text, Transcript
from xares_store.patterns import expand
from xares_store.recipe import Recipe
from xares_store.targets import Texts, texts_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "xares_llm_tasks.json"
FACTS: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
TASKS: list[dict[str, Any]] = FACTS["tasks"]
JOINT = ("task1", "task2", "all")
METRICS = {
    "Accuracy": ("string_accuracy", None), "mAP": ("string_map", ("string_macro_f1",)), "iWER": ("iwer", ("icer",)),
    "iCER": ("icer", ("iwer",)), "FENSE": ("fense", ("cider",)), "DATE": ("date", ("cider",)),
}  # fmt: skip
DOMAINS = {"Speech": "speech", "Sound": "environment", "Music": "music"}
OPEN_DOMAINS = {  # the paper's second table has no column for it
    "aishell-1": "speech", "clotho": "environment", "librispeech": "speech", "mecat": "other", "songdescriber": "music",
}  # fmt: skip
FALLBACKS = ("captions", "caption", "text")
EVERY = pytest.mark.parametrize("facts", TASKS, ids=[facts["id"] for facts in TASKS])


def name_of(facts: dict[str, Any]) -> str:
    return f"llm-{facts['id']}"


def joint_keys(side: dict[str, Any]) -> tuple[str, ...]:
    (named,) = {keys for config, keys in side["json_key_by_config"].items() if config in JOINT}
    return tuple(dict.fromkeys([*named.split(";"), *FALLBACKS]))


def expanded(patterns: tuple[str, ...]) -> list[str]:
    return [name for pattern in patterns for name in expand(pattern)]


def test_golden_data_is_there() -> None:
    assert len(TASKS) == len({facts["id"] for facts in TASKS}) == 20
    assert sum(facts["train"]["n_shards"] for facts in TASKS) == 1087
    assert {facts["eval"]["metric"] for facts in TASKS} == set(METRICS)


@EVERY
def test_task_equals_the_facts(facts: dict[str, Any]) -> None:
    task = load_task(name_of(facts))
    target = task.target
    assert isinstance(target, Text)
    assert target.prompt == facts["prompt"]
    assert target.keys == joint_keys(facts["train"])
    assert (target.test_keys or target.keys) == joint_keys(facts["eval"])
    assert target.test_keys != target.keys, "said only where it differs"
    assert target.closed == (facts["kind"] == "closed-set")
    assert target.separator == (";" if facts["eval"]["metric"] == "mAP" else None)
    assert (task.metric.name, task.metric.also) == METRICS[facts["eval"]["metric"]]
    assert {"num_classes": task.metric.n_classes} == {"num_classes": None, **facts["eval"]["metric_args"]}
    assert task.published.weight == facts["eval"]["weight"] == 1
    assert task.published.result_name == facts["eval_name"]
    assert task.domain == DOMAINS.get(facts["challenge_paper"]["domain"]) or OPEN_DOMAINS[facts["id"]]
    assert (task.audio.crop_s, task.audio_of, task.private) == (None, None, False)


@EVERY
def test_shards_equal_the_facts(facts: dict[str, Any]) -> None:
    task = load_task(name_of(facts))
    assert (task.data.hf, task.data.hf_folder, task.data.zenodo) == (facts["hub_dataset_id"], None, None)
    patterns = task.split_patterns()
    assert patterns == {"train": tuple(facts["train"]["shards"]), "test": tuple(facts["eval"]["shards"])}
    for side, split in (("train", "train"), ("eval", "test")):
        names = expanded(patterns[split])
        assert len(names) == len(set(names)) == facts[side]["n_shards"]


def test_a_data_set_has_one_folder() -> None:
    """Tasks that share a data set share its download; two data sets in one folder would mix their commits."""
    folders = {(load_task(name_of(facts)).data.hf, load_task(name_of(facts)).folder) for facts in TASKS}
    assert folders == {("mispeech/xares_llm_data", "xares_llm"), ("mispeech/MECAT-Caption", "mecat_caption")}


def test_suites_are_the_mixtures() -> None:
    mixtures = load_recipe("xares-llm").mixtures
    assert set(mixtures) == {*JOINT, "challenge"}
    for config, count in zip(JOINT, (15, 5, 20), strict=True):
        listed = [name_of(facts) for facts in TASKS if facts["included_in"][config]]
        assert suites()[config] == listed
        assert set(mixtures[config].shares()) == set(listed)
        assert len(listed) == FACTS["configs"][config]["n_train_sets"] == count
    extra = ["llm-librispeech-gender", "llm-nsynth-pitch"]
    assert suites()["challenge"] == suites()["all"] + extra
    listed_only = {entry["dataset"]: entry for entry in FACTS["challenge_paper"]["in_paper_not_in_configs"]}
    assert set(listed_only) == {"LibriSpeech", "NSynth-Pitch"}
    ours, everything = mixtures["challenge"], mixtures["all"]
    assert set(ours.shares()) == set(suites()["challenge"])
    assert (ours.steps, ours.all_shards) == (everything.steps, everything.all_shards)
    assert ours.probability == {**everything.probability, "llm-nsynth-pitch": everything.probability["llm-nsynth"]}
    assert ours.shards == {**everything.shards, "llm-librispeech-gender": 20}
    closed = [task for task in load_tasks(["challenge"]) if isinstance(task.target, Text) and task.target.closed]
    assert len(closed) == FACTS["challenge_paper"]["closed_set_tasks"] == 17


@pytest.mark.parametrize("config", JOINT)
def test_shares_and_steps_equal_the_facts(config: str) -> None:
    mixture = load_recipe("xares-llm").mixtures[config]
    shares = mixture.shares()
    assert sum(shares.values()) == pytest.approx(1)
    for facts in TASKS:
        if config in facts["train"]["effective_share_by_config"]:
            expected = facts["train"]["effective_share_by_config"][config]
            assert shares[name_of(facts)] == pytest.approx(expected, abs=1e-6)
            assert mixture.probability.get(name_of(facts)) == facts["train"]["prob_by_config"][config]
            if facts["train"]["prob_by_config"][config] is None:
                assert mixture.shards[name_of(facts)] == facts["train"]["n_shards"]
    assert mixture.steps == FACTS["configs"][config]["max_steps"]
    given = FACTS["configs"][config]["prob_given"]
    assert len(mixture.probability) == given


def test_steps_of_a_task_alone_equal_the_facts() -> None:
    training = load_recipe("xares-llm").training
    assert training.steps == FACTS["training_defaults"]["max_steps"]
    single = {f"llm-{name}": steps for name, steps in FACTS["configs"]["single"]["max_steps"].items()}
    assert training.steps_of == {name: steps for name, steps in single.items() if steps is not None}
    assert {name_of(facts): facts["train"]["single_max_steps"] for facts in TASKS} == single
    assert set(training.steps_of) <= set(suites()["all"])


def test_the_recipe_equals_the_facts() -> None:
    recipe = load_recipe("xares-llm")
    model, training, generation = FACTS["model"], FACTS["training_defaults"], FACTS["generation"]
    assert recipe.decoder == model["decoder"]
    assert (recipe.joint, recipe.prompt, recipe.separator, recipe.selection) == (True, True, None, None)
    assert (recipe.projector.kind, recipe.projector.stride) == ("linear", 1)
    assert recipe.lora is not None
    lora = model["lora"]
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (
        lora["r"],
        lora["lora_alpha"],
        lora["lora_dropout"],
    )
    optimiser = recipe.optimiser
    assert training["optimizer"].startswith(optimiser.name)
    assert optimiser.learning_rate == training["learning_rate"]
    assert optimiser.weight_decay == training["weight_decay"]
    assert (optimiser.schedule, optimiser.warmup_steps) == ("linear", training["warmup_steps"])
    assert optimiser.max_grad_norm == training["max_grad_norm"]
    assert recipe.training.batch_size == training["per_device_train_batch_size"]
    assert recipe.training.crop_s == training["crop_audio_length_s"]
    assert recipe.training.batch_size * recipe.training.bucket == training["sort_by_length_buffer"]["train"]
    assert model["decoder_dtype"] == "float32"
    assert recipe.training.precision == "fp32"
    assert recipe.training.text_filter
    assert not generation["do_sample"]
    assert recipe.generation.max_new_tokens == generation["max_new_tokens"]
    assert recipe.generation.repetition_penalty == generation["repetition_penalty"]


def test_the_recipe_of_x_ares_equals_its_description() -> None:
    """Section 8.6 of the description of the metrics and probes, and the task's own row of the X-ARES facts."""
    recipe = load_recipe("xares-asr")
    assert (recipe.decoder, recipe.separator) == ("Qwen/Qwen2.5-0.5B", "<|vision_end|>")
    assert (recipe.joint, recipe.prompt, recipe.lora, recipe.projector.kind) == (False, False, None, "swiglu")
    assert (recipe.optimiser.name, recipe.optimiser.schedule) == ("adam", "cosine-epochs")
    assert (recipe.generation.max_new_tokens, recipe.generation.repetition_penalty) == (200, 1.1)
    x_ares = json.loads((GOLDEN.parent / "xares_tasks.json").read_text(encoding="utf-8"))
    (facts,) = [facts for facts in x_ares["tasks"] if facts["kind"] == "transcript"]
    assert recipe.optimiser.learning_rate == facts["learning_rate"]
    assert recipe.training.epochs == facts["epochs"]
    assert recipe.training.batch_size == facts["batch_size_train"]
    assert recipe.training.crop_s == facts["crop_length_s"] is None
    assert recipe.selection is not None, "a checkpoint is chosen by what it writes"


def test_recipes_differ_and_name_tasks_that_ship() -> None:
    recipes: list[Recipe] = [load_recipe(name) for name in recipe_names()]
    assert len({recipe.fingerprint for recipe in recipes}) == len(recipes) >= 2
    for recipe in recipes:
        for mixture in recipe.mixtures.values():
            assert len(load_tasks(mixture.shares())) == len(mixture.shares())


def test_two_tasks_of_the_paper_share_the_frames_of_others() -> None:
    pitch, nsynth = load_task("llm-nsynth-pitch"), load_task("llm-nsynth")
    assert pitch.audio_address == nsynth.audio_address
    assert (pitch.split_patterns(), pitch.folder) == (nsynth.split_patterns(), nsynth.folder)
    gender, librispeech = load_task("llm-librispeech-gender"), load_task("librispeech")
    assert gender.audio_address == librispeech.audio_address != load_task("librispeechmalefemale").audio_address
    assert (gender.split_patterns(), gender.data.zenodo) == (librispeech.split_patterns(), librispeech.data.zenodo)
    for task in (pitch, gender):
        assert isinstance(task.target, Text)
        assert task.target.closed
        assert task.metric.name == "string_accuracy"
        assert (task.published.weight, task.published.result_name) == (None, None), "no table prints them"
    assert texts_of(pitch, ['{"pitch": 60, "text": "a note"}'], ["a"]) == [Texts(("60",), ("60",))]
    assert texts_of(gender, ['{"gender": "F", "text": "MISTER QUILTER"}'], ["a"]) == [Texts(("F",), ("F",))]


def test_librispeech_is_asked_as_in_xares_llm_and_its_frames_stay_where_they_are() -> None:
    """The prompt is part of the definition, and no part of what decides the frames."""
    task = load_task("librispeech")
    assert isinstance(task.target, Transcript)
    (facts,) = [facts for facts in TASKS if facts["id"] == "librispeech"]
    assert task.target.prompt == facts["prompt"]
    assert PROBES_OF_KIND["transcript"] == PROBES_OF_KIND["text"] == ("llm",)
    # As in stores that were made before the task had a prompt.
    assert task.audio_address == "librispeech@1202e972"
